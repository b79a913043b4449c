"""The charts: the compiler of Vega-Lite accepts every one, and their numbers are right."""

import statistics
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import vl_convert

from s2l_ray.report import charts, lengths, page, score_charts, training_charts
from s2l_ray.report.clusters import ClusterView
from s2l_ray.report.comparison import ComparedArm, ComparisonView
from s2l_ray.report.contents import ArmScore, ReportData
from s2l_ray.report.lengths import Lengths
from s2l_ray.report.strata import StratumLine
from tests.report.test_page import Page, clusters, full


def coloured(spec):
    """A specification with colours in place of the names of the theme's."""
    if isinstance(spec, dict):
        return {key: coloured(value) for key, value in spec.items()}
    if isinstance(spec, list):
        return ["#111111", "#222222"] if spec == ["@series"] else [coloured(item) for item in spec]
    return "#123456" if isinstance(spec, str) and spec.startswith("@") else spec


def compiled(chart: charts.Chart) -> dict:
    spec = {**coloured(chart.spec), "data": {"values": list(chart.rows)}, "width": 300}
    return vl_convert.vegalite_to_vega(spec, vl_version="6.4")


def test_every_chart_compiles_and_has_rows_and_words():
    tried = {"a": {"num_clusters": [1, 2, 4], "spread": [1.0, 0.5, 0.0], "chosen": 2}}
    whole = full()
    view = replace(clusters(5), stratum_K=["a"] * 5, tried=tried, choice="auto: a reason")
    drawn = page.drawn_charts(replace(whole, clusters=view))

    names = ["headline", "strata", "lengths", "trajectories", "selected", "ladders", "training"]
    assert [chart.name for chart in drawn] == [*names, "target", "budgets"]
    for chart in drawn:
        assert compiled(chart)["marks"] and chart.rows and len(chart.words) > 20


@pytest.mark.parametrize("selected_K", [np.array([0, 0]), np.array([1, 1]), None])
def test_extreme_selections_can_be_drawn(selected_K):
    view = ClusterView(np.ones((2, 1), np.float32), np.array([1, 1]), ["", ""], None, selected_K)

    drawn = charts.cluster_charts(view)

    expected = ["trajectories"] if selected_K is None else ["trajectories", "selected"]
    assert [chart.name for chart in drawn] == expected
    assert drawn[0].spec["encoding"]["x"]["title"] == "checkpoint"
    for chart in drawn:
        compiled(chart)


def test_dots_stand_for_every_cluster_once_and_stay_few():
    view = clusters(20_000)

    _, _, count_D = charts.merged_dots(view.size_K, view.selected_K)

    assert count_D.sum() == 20_000
    assert len(count_D) < 200


def test_lines_of_at_most_a_hundred_clusters_are_drawn():
    chart = charts.trajectories(clusters(3000, num_steps=2))
    assert len({row["cluster"] for row in chart.rows}) == 100
    assert len(chart.rows) == 200


@pytest.mark.parametrize("longest", [0, 5, 39, 40, 41, 2047])
def test_bins_hold_every_length_once(longest):
    lengths_N = np.random.default_rng(longest).integers(0, longest + 1, 500)
    lengths_N[0] = longest
    found = Lengths(np.bincount(lengths_N), np.bincount(lengths_N[:50]))

    lines = [line for line in lengths.histogram(found) if line["part"] == "pool"]

    edges = [lines[0]["from"], *(line["to"] for line in lines)]
    expected, _ = np.histogram(lengths_N, [*edges[:-1], edges[-1] - 0.5])
    assert [line["examples"] for line in lines] == expected.tolist()
    assert len(lines) <= lengths.NUM_BINS
    assert sum(line["share"] for line in lines) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("num_rows", [1, 2, 7, 100])
def test_the_median_length_is_the_one_of_sorting(num_rows):
    lengths_N = np.random.default_rng(num_rows).integers(0, 30, num_rows)
    assert lengths.median(np.bincount(lengths_N)) == statistics.median_low(lengths_N.tolist())


def test_held_out_losses_have_a_line_each_and_their_lowest_in_words():
    held_out = [(5, {"a": 2.5, "b": 9.0}), (10, {"a": 2.0, "b": 9.5}), (12, {"a": 2.25, "b": 9.75})]
    chart = training_charts.target([(1, 4.0), (12, 1.5)], held_out)

    lines = Counter(row["rows"] for row in chart.rows)
    assert lines == {training_charts.SUBSET: 2, "held out: a": 3, "held out: b": 3}
    assert "goes from 4 to 1.5 nats per token in 12 steps." in chart.words
    assert "On a it is 2.25 at the end, and lowest, 2, after step 10." in chart.words
    compiled(chart)


@pytest.mark.parametrize(
    ("label", "column"), [("topic", "topic"), ("meta.kind", "stratum"), ("share", "stratum")]
)
def test_strata_have_the_name_of_their_field(label, column):
    lines = [StratumLine("a", 10, 5), StratumLine("b", 5, 1)]
    chart = charts.strata(lines, label)

    assert [row[column] for row in chart.rows] == ["a", "a", "b", "b"]
    assert f"by {label}." in chart.words
    compiled(chart)
    text = Page(page.render(ReportData("run", strata=lines, stratum_label=label))).text
    assert f"Share of each {label} in the pool" in text and f"of {label}" in text
    assert "source" not in text


def test_names_of_strata_that_are_cut_alike_stay_apart():
    lines = [StratumLine("x" * 50 + end, 10, 5) for end in "ab"]
    chart = charts.strata(lines)
    names = [row["stratum"] for row in chart.rows]
    assert len(set(names)) == 2 and names[2].endswith("... (2)")


def test_an_untrained_model_far_away_does_not_hide_the_others():
    own = ComparedArm("t", "loss", "9", "s2l", "s2l", mean=0.5, examples=9)
    arms = [
        own,
        ComparedArm("t", "loss", "9", "random", "random", mean=0.7, examples=9),
        ComparedArm("t", "loss", "", "all-data", "all-data", mean=0.4, examples=90),
        ComparedArm("t", "loss", "", "no-training", "no-training", mean=7.0, examples=0),
        ComparedArm("t", "loss", "20", "s2l", "s2l", mean=0.45, examples=20),
    ]

    headline = score_charts.compared(ComparisonView(arms, own))
    budgets = score_charts.budgets(ComparisonView(arms, own))

    assert [row["arm"] for row in headline.rows] == ["s2l", "random", "all-data"]
    assert [row["own"] for row in headline.rows] == [True, False, False]
    assert headline.spec["layer"][0]["data"] == {"values": [{"mean": 0.7}]}
    assert [row["examples"] for row in budgets.rows] == [9, 9, 90, 20]


def test_arms_without_a_comparison_are_drawn_on_their_first_set():
    scores = [
        ArmScore("x", "s2l", 5, 1.0, 0.9, 1.1),
        ArmScore("x", "random", 5),
        ArmScore("y", "s2l", 5, 3.0),
    ]
    (headline,) = page.drawn_charts(ReportData("run", evaluation=scores))
    assert [row["mean"] for row in headline.rows] == [1.0]
    assert "s2l 1 (0.9 to 1.1)" in headline.words
