"""`num_clusters: auto`: each stratum gets as many clusters as it has, whoever holds its rows."""

import numpy as np
import pytest

from s2l_ray.clusters import stage as clusters
from s2l_ray.progress import Progress
from s2l_ray.storage.location import Location
from tests.clusters.test_num_clusters import known
from tests.clusters.test_stage import clustered, fleet_of, labels, settings, write_parts

NUM_CLUSTERS = {"few": 3, "many": 8, "none": 1}
ROWS_OF_STRATUM = 700
STRATA = np.repeat(list(NUM_CLUSTERS), ROWS_OF_STRATUM)
LOSS_NT = np.concatenate(
    [known(count, ROWS_OF_STRATUM, 6, seed) for seed, count in enumerate((3, 8))]
    + [np.full((ROWS_OF_STRATUM, 6), 2.0)]
).astype(np.float32)
IDS = [f"e{number}" for number in range(len(STRATA))]
ORDER = np.random.default_rng(3).permutation(len(STRATA))
PARTS = np.array_split(ORDER, 7)
AUTO = settings(num_clusters="auto", rows_per_sample=None)


@pytest.fixture
def folder(tmp_path) -> Location:
    return Location.of(tmp_path)


def parts(folder, loss_NT=LOSS_NT, strata=STRATA) -> list[Location]:
    return write_parts(folder, PARTS, loss_NT, IDS, list(strata))


def test_every_stratum_has_the_clusters_that_it_is_made_of(folder):
    summary, _ = clustered(folder / "out", parts(folder / "in"), AUTO)

    of_stratum = summary["stratum_of_cluster"]
    assert {name: of_stratum.count(name) for name in NUM_CLUSTERS} == NUM_CLUSTERS
    assert {name: tried["chosen"] for name, tried in summary["tried"].items()} == NUM_CLUSTERS
    assert summary["shrunk_strata"] == {} and summary["converged"]
    assert summary["notes"][0].startswith("auto chose 1 to 8 clusters in each of 3 strata: the")
    # Ten standard deviations apart, no row is in doubt.
    assert summary["stability"] == pytest.approx(1)


def test_over_all_there_is_one_choice(folder):
    one_pool = LOSS_NT[STRATA == "many"]
    files = write_parts(
        folder / "in", np.array_split(np.arange(ROWS_OF_STRATUM), 4), one_pool, IDS, list(STRATA)
    )
    config = AUTO.model_copy(update={"per_stratum": False})
    summary, _ = clustered(folder / "out", files, config)

    assert summary["num_clusters"] == 8 and list(summary["tried"]) == [""]
    assert summary["notes"][0].startswith("auto chose 8 clusters: ")


@pytest.mark.parametrize("sample", [None, 300])
@pytest.mark.parametrize(
    "shards",
    [
        [[6, 2, 0, 5, 1, 4, 3]],
        [[1, 3, 5], [0, 2, 4, 6]],
        [[6], [5], [4], [3], [2], [1], [0]],
    ],
)
def test_every_byte_is_the_same_whoever_holds_which_parts(folder, shards, sample):
    files = parts(folder / "in")
    config = AUTO.model_copy(update={"rows_per_sample": sample})
    expected = clustered(folder / "one", files, config)

    assert clustered(folder / "other", files, config, shards) == expected


def test_a_chosen_number_gives_the_clusters_that_it_gives_when_it_is_given(folder):
    few = [int(row) for row in ORDER if STRATA[row] == "few"]
    files = write_parts(folder / "in", np.array_split(few, 3), LOSS_NT, IDS, list(STRATA))
    _, chosen = clustered(folder / "a", files, settings(num_clusters="auto", rows_per_sample=400))
    _, given = clustered(folder / "b", files, settings(num_clusters=3, rows_per_sample=400))

    assert chosen == given


@pytest.mark.parametrize("num_rows", [1, 3])
def test_a_handful_of_rows_is_one_cluster(folder, num_rows):
    files = write_parts(folder / "in", [range(num_rows)], LOSS_NT, IDS, list(STRATA))
    summary, _ = clustered(folder / "out", files, AUTO)

    assert summary["size_of_cluster"] == [num_rows]
    assert summary["notes"] == [
        "auto chose 1 cluster in stratum 'few': there are too few rows, or too few that differ, to "
        "try more"
    ]


def test_one_checkpoint_with_three_losses_has_three_clusters(folder):
    loss_N1 = np.repeat([0.5, 2.0, 7.0], ROWS_OF_STRATUM).astype(np.float32)[:, None]
    files = parts(folder / "in", loss_N1, np.repeat("x", len(loss_N1)))
    fleet = fleet_of(files, AUTO)
    summary = clusters.cluster(fleet, AUTO, folder / "out", progress=Progress("clusters"))

    assert summary["size_of_cluster"] == [ROWS_OF_STRATUM] * 3 and summary["inertia"] == 0


def test_only_new_strata_of_an_extension_are_chosen_for(folder):
    files = parts(folder / "in")
    stored = {name: LOSS_NT[np.equal(STRATA, name)][:5] for name in ("few", "none")}
    summary = clusters.cluster(
        fleet_of(files, AUTO),
        AUTO,
        folder / "out",
        progress=Progress("clusters"),
        stored=clusters.StoredClusters(stored),
    )

    assert list(summary["tried"]) == ["many"] and summary["shrunk_strata"] == {}
    assert summary["notes"][0].startswith("auto chose 8 clusters in stratum 'many': ")
    of_stratum = summary["stratum_of_cluster"]
    assert {name: of_stratum.count(name) for name in NUM_CLUSTERS} == {
        "few": 5,
        "many": 8,
        "none": 5,
    }
    assert labels(folder / "out").num_rows == len(STRATA)


def test_a_number_that_was_given_is_not_tried(folder):
    summary, _ = clustered(folder / "out", parts(folder / "in"), settings())
    assert "tried" not in summary and not [n for n in summary["notes"] if "auto" in n]
