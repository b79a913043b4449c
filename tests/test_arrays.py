"""`s2l.cluster` and `s2l.rank`: the numbers of a run, from arrays."""

import numpy as np
import pytest

import s2l_ray as s2l
from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import Parts
from s2l_ray.config.selection import SelectionConfig
from s2l_ray.selection import methods
from s2l_ray.selection import stage as selection
from s2l_ray.storage.location import Location
from tests.clusters.test_stage import (
    IDS,
    LOSS_NT,
    SEVEN_PARTS,
    STRATA,
    centroids,
    clustered,
    labels,
    settings,
    write_parts,
)

NAMES = [name for name, method in methods.METHODS.items() if not method.vectors]
OF_LOSSES = [name for name in NAMES if name not in ("longest-responses", "el2n", "ifd", "score")]


@pytest.mark.parametrize("per_stratum", [True, False])
@pytest.mark.parametrize("rows", [1, None, 40], ids=["any", "default", "many"])
def test_clusters_are_those_of_the_stage(tmp_path, per_stratum, rows):
    files = write_parts(Location.of(tmp_path / "trajectories"), SEVEN_PARTS)
    folder = Location.of(tmp_path / "clusters")
    given = {} if rows is None else {"rows_per_cluster": rows}
    usual = {"rows_per_sample": None, "tolerance": 3.0e-4, "rows_per_cluster": 25}
    config = settings(**{**usual, **given}, per_stratum=per_stratum)
    clustered(folder, files, config, [[0, 3, 5], [1, 2, 4, 6]], seed=11)

    strata = STRATA if per_stratum else None
    found = s2l.cluster(LOSS_NT, 5, 11, IDS, strata=strata, **given)

    table = labels(folder)
    assert table["example_id"].to_pylist() == IDS
    np.testing.assert_array_equal(found.labels, table["cluster"].to_numpy())
    np.testing.assert_array_equal(found.sqdist, table["sqdist"].to_numpy())
    np.testing.assert_array_equal(found.centroids, centroids(folder))


def test_mini_batches_are_those_of_the_stage(tmp_path):
    """A sample of 40 rows of 230, so that batches are 160 rows and then all."""
    files = write_parts(Location.of(tmp_path / "trajectories"), SEVEN_PARTS)
    folder = Location.of(tmp_path / "clusters")
    config = settings(tolerance=3.0e-4, per_stratum=False)
    clustered(folder, files, config, [range(7)], seed=11)

    found = s2l.cluster(LOSS_NT, 5, 11, IDS, rows_per_sample=config.rows_per_sample)

    np.testing.assert_array_equal(found.centroids, centroids(folder))


@pytest.mark.parametrize("method", ["s2l", "s2l-authors", "high-learnability"])
def test_a_ranking_is_that_of_a_run(tmp_path, method):
    trajectories = Location.of(tmp_path / "trajectories")
    files = write_parts(trajectories, SEVEN_PARTS)
    folder = Location.of(tmp_path / "clusters")
    usual = {"rows_per_sample": None, "tolerance": 3.0e-4, "rows_per_cluster": 25}
    clustered(folder, files, settings(**usual), [range(7)], seed=11)
    config = SelectionConfig(budget=5, method=method)
    out = StageDir(Location.of(tmp_path / "selection"), "selection", {})
    sources = selection.Sources(Parts(folder), Parts(trajectories), None)
    selection.run(config, sources, out, seed=11)

    order = s2l.rank(LOSS_NT, IDS, STRATA, method, 11, num_clusters=5)

    ranking = (out.location / "ranking.parquet").read_table()
    assert [IDS[row] for row in order] == ranking["example_id"].to_pylist()


def test_clusters_and_rankings_do_not_depend_on_the_order_of_rows():
    shuffled = np.random.default_rng(0).permutation(len(IDS))
    ids, strata = [IDS[row] for row in shuffled], [STRATA[row] for row in shuffled]
    found = s2l.cluster(LOSS_NT[shuffled], 7, 3, ids)
    np.testing.assert_array_equal(found.labels, s2l.cluster(LOSS_NT, 7, 3, IDS).labels[shuffled])

    order = s2l.rank(LOSS_NT[shuffled], ids, strata, seed=3)
    np.testing.assert_array_equal(shuffled[order], s2l.rank(LOSS_NT, IDS, STRATA, seed=3))


def test_without_ids_the_row_numbers_are_the_ids():
    numbers = [str(row) for row in range(len(IDS))]
    with_ids, without = s2l.cluster(LOSS_NT, 6, 1, numbers), s2l.cluster(LOSS_NT, 6, 1)
    np.testing.assert_array_equal(with_ids.labels, without.labels)
    assert without.labels.dtype == np.int32 and without.sqdist.dtype == np.float32
    assert without.centroids.shape == (6, LOSS_NT.shape[1])


@pytest.mark.parametrize("method", OF_LOSSES)
def test_a_ranking_is_a_permutation_that_begins_with_every_stratum(method):
    order = s2l.rank(LOSS_NT, IDS, STRATA, method, 5)
    assert sorted(order.tolist()) == list(range(len(IDS)))
    if method != "random":
        assert len({STRATA[row] for row in order[:3]}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"losses": LOSS_NT[0]}, r"losses must be an array \(examples, checkpoints\), not \(4,\)"),
        ({"losses": LOSS_NT[:0], "ids": []}, r"not \(0, 4\)"),
        ({"losses": np.full((2, 3), np.nan), "ids": ["a", "b"]}, "2 of 2 trajectories hold"),
        ({"ids": IDS[:-1]}, "229 ids for 230 trajectories"),
        ({"strata": STRATA[1:]}, "229 strata for 230 trajectories"),
        ({"ids": [*IDS[1:], IDS[7]]}, r"1 of 230 ids are given more than once \(first: e7\)"),
        ({"method": "best"}, "method 'best' is unknown; methods: s2l, "),
        ({"method": "el2n"}, "needs error_norm, which losses do not tell"),
        ({"method": "rds-plus"}, "needs embeddings and queries, which losses"),
        ({"num_clusters": 0}, "num_clusters must be at least 1, not 0"),
        ({"num_clusters": "auto"}, "num_clusters must be a whole number, not 'auto'"),
        ({"num_clusters": 2.5}, "num_clusters must be a whole number, not 2.5"),
        ({"seed": 1.5}, "seed must be a whole number, not 1.5"),
    ],
)
def test_what_cannot_be_ranked_is_refused(arguments, message):
    with pytest.raises(s2l.UserError, match=message):
        s2l.rank(**{"losses": LOSS_NT, "ids": IDS, **arguments})


def test_many_clusters_of_few_rows_are_as_few_as_in_a_run():
    found = s2l.cluster(LOSS_NT, 1000)
    every = s2l.cluster(LOSS_NT, 1000, rows_per_cluster=1)

    assert len(found.centroids) == len(LOSS_NT) // 25
    assert len(every.centroids) == len(np.unique(LOSS_NT, axis=0))
    with pytest.raises(s2l.UserError, match="rows_per_cluster must be at least 1, not 0"):
        s2l.cluster(LOSS_NT, 5, rows_per_cluster=0)


def test_a_sample_smaller_than_its_clusters_is_refused():
    with pytest.raises(s2l.UserError, match=r"rows_per_sample \(4\) is below num_clusters"):
        s2l.cluster(LOSS_NT, 5, rows_per_sample=4)
