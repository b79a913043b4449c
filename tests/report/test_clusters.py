"""What the page says of the clusters' quality, their scaling and how many there are."""

from dataclasses import replace

import numpy as np
import pytest

from s2l_ray.clusters.num_clusters import Trials
from s2l_ray.clusters.scaling import Moments, standardised
from s2l_ray.report import charts, clusters, page
from s2l_ray.report.contents import ReportData
from s2l_ray.report.strata import StratumLine
from tests.report.test_page import HOSTILE, Page

SHOWN = {"silhouette": 0.4321, "stability": 0.6789, "inertia": 1234.5}
SUMMARY = {
    "stratum_of_cluster": ["code"] * 2 + ["math"] * 4,
    "size_of_cluster": [40, 60, 1, 2, 3, 94],
    "shrunk_strata": {},
    **SHOWN,
}
CENTROID_KT = np.random.default_rng(2).gamma(2.0, size=(6, 5)).astype(np.float32)
TRIED = {
    "code": Trials([1, 2, 3], [1.0, 0.25, 0.24], 0.25).as_json(),
    "math": Trials([1, 2, 3, 4], [1.0, 0.5, 0.2, 0.05], 0.25).as_json(),
}
CHOICE = "auto chose 2 to 4 clusters in 2 strata: for a reason"


def view(**changes) -> clusters.ClusterView:
    return clusters.view_of_summary(CENTROID_KT, {**SUMMARY, **changes}, None, None)


def drawn(shown: clusters.ClusterView) -> set[str]:
    return {chart.name for chart in charts.cluster_charts(shown)}


def rendered(shown: clusters.ClusterView) -> Page:
    return Page(page.render(ReportData("run", clusters=shown)))


def test_numbers_that_are_known_stand_above_the_figures():
    assert clusters.quality(view()) == [
        ("6", "clusters (2 to 4 a stratum)"),
        ("1,234", "inertia, nats²"),
        ("0.43", "silhouette"),
        ("0.68", "stability"),
        ("raw", "scaling"),
    ]
    shown = rendered(view()).text
    assert "0.43" in shown and "0.68" in shown and "another seed" in shown


def test_numbers_that_are_not_known_are_left_out():
    bare = {key: value for key, value in SUMMARY.items() if key not in SHOWN}
    shown = clusters.view_of_summary(CENTROID_KT, bare, None, None)

    assert [name for _, name in clusters.quality(shown)][1:] == ["scaling"]
    assert "another seed" not in rendered(shown).text


@pytest.mark.parametrize(
    ("strata", "tried", "words"),
    [
        (["a"] * 6, {}, "clusters"),
        (["a"] * 6, {"a": TRIED["code"]}, "clusters (auto)"),
        (["a"] * 3 + ["b"] * 3, {}, "clusters (3 a stratum)"),
        (["a"] * 1 + ["b"] * 5, TRIED, "clusters (auto: 1 to 5 a stratum)"),
    ],
)
def test_what_the_number_of_clusters_is_made_of_is_told(strata, tried, words):
    shown = view(stratum_of_cluster=strata, tried=tried, notes=[CHOICE])
    assert clusters.quality(shown)[0] == ("6", words)


def test_a_chosen_number_has_its_ladder_and_its_reason():
    shown = view(tried=TRIED, notes=[CHOICE, "silhouette"])
    found = rendered(shown)

    assert drawn(shown) == {"trajectories", "ladders"}
    assert "Auto chose 2 to 4 clusters in 2 strata: for a reason." in found.text
    assert "A line is a stratum." in found.text
    assert sum(tag == "figure" for tag, _ in found.tags) == 2
    assert "ladders" not in drawn(view())


def test_a_ladder_of_one_rung_or_with_nothing_left_is_no_reason_to_fail():
    flat = {"a": Trials([1], [1.0], 0.25).as_json()}
    assert "ladders" not in drawn(view(tried=flat, notes=[CHOICE]))
    exact = {"a": Trials([1, 2], [1.0, 0.0], 0.25).as_json()}
    assert "ladders" in drawn(view(tried=exact, notes=[CHOICE]))


def test_standardised_centroids_are_drawn_in_nats():
    loss_NT = np.random.default_rng(3).gamma(2.0, size=(200, 5)).astype(np.float32)
    scales = {"code": Moments.of(loss_NT[:100]).scale(), "math": Moments.of(loss_NT[100:]).scale()}
    rows_K = [range(40), range(40, 100), [100], [101, 102], range(103, 106), range(106, 200)]
    names = SUMMARY["stratum_of_cluster"]
    pairs = list(zip(rows_K, names, strict=True))
    scaled_KT = np.stack([standardised(loss_NT[r], scales[n]).mean(axis=0) for r, n in pairs])
    summary = SUMMARY | {
        "scaling": "standardised",
        "scales": {name: scale.as_json() for name, scale in scales.items()},
    }

    shown = clusters.view_of_summary(scaled_KT, summary, None, None)
    expected_KT = np.stack([loss_NT[row_N].mean(axis=0) for row_N in rows_K])
    np.testing.assert_allclose(shown.centroid_KT, expected_KT, rtol=1e-4, atol=1e-5)
    assert ("standardised", "scaling") in clusters.quality(shown)
    assert charts.trajectories(shown).spec["encoding"]["y"]["title"] == "mean loss, nats per token"


def test_shapes_are_not_called_losses():
    shown = view(scaling="shape")
    assert charts.trajectories(shown).spec["encoding"]["y"]["title"] == "mean shape"
    text = rendered(shown).text
    assert "Mean shape of each cluster" in text and "inertia, scaled" in text


def test_strata_have_a_column_for_their_clusters_where_clusters_are_theirs():
    lines = [StratumLine("a", 10, 2, 3), StratumLine("b", 5, 1, 4)]
    with_column = Page(page.render(ReportData("run", strata=lines))).text
    without = [replace(line, num_clusters=None) for line in lines]

    assert "clusters" in with_column and "clusters" not in Page(
        page.render(ReportData("run", strata=without))
    ).text.replace("Clusters", "")


def test_hostile_names_of_strata_stay_text():
    strata = [HOSTILE] * 2 + ["math"] * 4
    tried = {HOSTILE: TRIED["code"], "math": TRIED["math"]}
    found = rendered(view(stratum_of_cluster=strata, tried=tried, notes=[f"auto {HOSTILE}"]))
    assert [tag for tag, _ in found.tags if tag in ("script", "img")] == ["script"] * 3
