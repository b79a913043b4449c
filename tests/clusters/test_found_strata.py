"""Strata found in embeddings: rows are clustered as if these strata had been in their fields."""

import json

import numpy as np
import pyarrow as pa
import pytest

from s2l_ray import hashing
from s2l_ray.artifacts.extensions import BaseRun, Extension
from s2l_ray.artifacts.manifest import EMBEDDINGS, StageDir
from s2l_ray.artifacts.tables import Parts, embedding_table, part_name
from s2l_ray.clusters import found_strata, kmeans, placement
from s2l_ray.clusters import stage as clusters
from s2l_ray.clusters.found_strata import StrataWorker
from s2l_ray.config.clusters import ClustersConfig
from s2l_ray.config.load import from_tree
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.progress import Progress
from s2l_ray.storage.location import Location
from tests import handmade
from tests.clusters.test_stage import (
    IDS,
    LOSS_NT,
    NUM_ROWS,
    SEVEN_PARTS,
    STRATA,
    centroids,
    in_process,
    labels,
    settings,
    write_parts,
)
from tests.handmade import changed

metrics = pytest.importorskip("sklearn.metrics")

WIDTH = 24
RNG = np.random.default_rng(8)
KIND_N = np.repeat([0, 1, 2], [120, 70, 40])[RNG.permutation(NUM_ROWS)]
"""Three kinds of rows, the largest first, which have nothing to do with STRATA."""
SPREAD_NH = np.eye(3, WIDTH)[KIND_N] + RNG.normal(0, 0.05, (NUM_ROWS, WIDTH))
VECTOR_NH = (SPREAD_NH / np.linalg.norm(SPREAD_NH, axis=1, keepdims=True)).astype(np.float16)
AUTO = {"strata": "auto", "num_strata": 3}
FEW = {**AUTO, "num_strata": 2}


@pytest.fixture
def folder(tmp_path) -> Location:
    return Location.of(tmp_path)


@pytest.fixture(autouse=True)
def _small_pools_have_strata(monkeypatch):
    monkeypatch.setattr("s2l_ray.config.clusters.ROWS_PER_STRATUM", 10)


def write_vectors(folder, parts, vector_NH=VECTOR_NH, ids=IDS) -> None:
    for number, rows in enumerate(parts):
        rows = np.asarray(rows, dtype=int)
        if len(rows):  # as scoring does
            table = embedding_table(pa.array([ids[row] for row in rows]), vector_NH[rows])
            (folder / part_name(number, EMBEDDINGS)).write_table(table)


def write_both(folder, parts=SEVEN_PARTS, **rows) -> Parts:
    """Trajectories and embeddings as scoring leaves them, in two folders."""
    vector_NH = rows.pop("vector_NH", VECTOR_NH)
    write_parts(folder / "trajectories", parts, **rows)
    write_vectors(folder / EMBEDDINGS, parts, vector_NH, rows.get("ids", IDS))
    return Parts(folder / "trajectories")


def shares(files, shards=None):
    return [{part: files[part] for part in shard} for shard in shards or [range(len(files))]]


def found_in(trajectories, folder, config, shards=None):
    vectors = found_strata.embedding_files(trajectories)
    held = shares(trajectories.files(), shards)
    fleet = in_process([StrataWorker(share, vectors, 3) for share in held])
    return found_strata.find(fleet, config, folder, progress=Progress("clusters"))


def clustered(trajectories, folder, config, shards=None):
    found, of_strata = found_in(trajectories, folder, config, shards)
    held = shares(trajectories.files(), shards)
    fleet = in_process([clusters.ClusterWorker(share, config, 3, None, found) for share in held])
    summary = clusters.cluster(fleet, config, folder, progress=Progress("clusters"))
    summary = found_strata.told(summary, found, of_strata, folder)
    names = [*folder.names(), *(f"staged/{name}" for name in (folder / "staged").names())]
    return summary, {name: (folder / name).read_bytes() for name in names if "." in name}


def test_rows_are_clustered_as_if_their_field_named_the_kind_that_embeddings_show(folder):
    config = settings(**AUTO)
    summary, _ = clustered(write_both(folder), folder / "found", config)
    named = [f"found-{kind + 1:02d}" for kind in KIND_N]
    files = write_parts(folder / "named", SEVEN_PARTS, strata=named)
    fleet = in_process([clusters.ClusterWorker(dict(enumerate(files)), settings(), 3)])
    clusters.cluster(fleet, settings(), folder / "by field", progress=Progress("clusters"))

    assert labels(folder / "found") == labels(folder / "by field")
    np.testing.assert_array_equal(centroids(folder / "found"), centroids(folder / "by field"))
    assert summary["found_strata"]["sizes"] == {"found-01": 120, "found-02": 70, "found-03": 40}
    expected = metrics.adjusted_rand_score(STRATA, KIND_N)
    assert summary["found_strata"]["agreement"] == pytest.approx(expected)
    assert summary["notes"][0] == (
        f"3 strata found in embeddings, of 40 to 120 rows; they agree to {expected:.2f} (adjusted "
        "Rand index) with the 3 that the rows have"
    )


def test_centroids_of_strata_are_the_means_of_their_rows(folder):
    clustered(write_both(folder), folder / "out", settings(**AUTO))
    mean_GH = [VECTOR_NH[kind == KIND_N].astype(float).mean(axis=0) for kind in range(3)]
    np.testing.assert_allclose((folder / "out" / "_strata.npy").read_npy(), mean_GH, atol=1e-6)


@pytest.mark.parametrize("scaling", ["raw", "standardised"])
@pytest.mark.parametrize(
    "shards", [[[6, 2, 0, 5, 1, 4, 3]], [[1, 3, 5], [0, 2, 4, 6]], [[0, 1, 2, 3, 4, 5, 6], []]]
)
def test_every_byte_is_the_same_whoever_holds_which_parts(folder, shards, scaling, monkeypatch):
    monkeypatch.setattr(found_strata, "ROWS_IN_SAMPLE", 90)
    config, trajectories = settings(**FEW), write_both(folder)

    expected = clustered(trajectories, folder / "one", config)
    found = clustered(trajectories, folder / "other", config, shards)

    assert found == expected
    assert len(expected[1]) == 7 + 7 + 2


def test_centroids_are_fitted_to_the_rows_with_the_lowest_hashes(folder, monkeypatch):
    monkeypatch.setattr(found_strata, "ROWS_IN_SAMPLE", 60)
    key_N = hashing.mixed(hashing.example_keys(IDS), 3, found_strata.SAMPLE)
    sampled_N = key_N < 60 / NUM_ROWS * 2.0**64
    found, _ = found_in(write_both(folder), folder / "out", settings(**FEW))

    sample_SH = VECTOR_NH[sampled_N].astype(np.float32)
    expected_GH = kmeans.initial_centroids(sample_SH, 2, 3 + found_strata.START)
    assert 40 < sampled_N.sum() < 80
    assert sorted(found.centroid_GH.tolist()) == sorted(expected_GH.tolist())


@pytest.mark.parametrize(
    ("rows", "wanted", "number"), [(9, 24, 1), (2_399, 24, 23), (10**7, 24, 24), (10**7, 60, 60)]
)
def test_small_pools_have_fewer_strata(rows, wanted, number, monkeypatch):
    monkeypatch.undo()
    assert ClustersConfig(strata="auto", num_strata=wanted).strata_of(rows) == number


def test_over_all_clusters_leave_the_found_strata_to_the_selection(folder):
    trajectories = write_both(folder)
    over_all = settings(**AUTO, per_stratum=False)
    summary, _ = clustered(trajectories, folder / "all", over_all)

    fleet = in_process([clusters.ClusterWorker(dict(enumerate(trajectories.files())), over_all, 3)])
    clusters.cluster(fleet, over_all, folder / "plain", progress=Progress("clusters"))
    assert labels(folder / "all")["cluster"] == labels(folder / "plain")["cluster"]
    assert summary["stratum_of_cluster"] == [""] * 5
    assert labels(folder / "all")["stratum"].to_pylist() == [f"found-0{k + 1}" for k in KIND_N]


def test_a_part_without_rows_has_no_embeddings_and_needs_none(folder):
    parts = [[], *SEVEN_PARTS, []]
    _, of_strata = found_in(write_both(folder, parts), folder / "out", settings(**AUTO))
    assert list(of_strata["sizes"].values()) == [120, 70, 40]
    empty, _ = found_in(write_both(folder / "no", [[1], []]), folder / "o", settings(**AUTO))
    assert len(empty.centroid_GH) == 1


def test_rows_without_strata_of_their_own_agree_with_nothing(folder):
    trajectories = write_both(folder, strata=[""] * NUM_ROWS)
    summary, _ = clustered(trajectories, folder / "out", settings(**AUTO))
    assert "agreement" not in summary["found_strata"]
    assert summary["notes"][0] == "3 strata found in embeddings, of 40 to 120 rows"


def test_embeddings_of_other_rows_are_refused(folder):
    trajectories = write_both(folder)
    write_vectors(folder / EMBEDDINGS, SEVEN_PARTS, ids=["other", *IDS[1:]])
    with pytest.raises(
        DataError, match=r"part-000000.* has 33 rows.* not those of 1 .*\(first: e0"
    ):
        found_in(trajectories, folder / "out", settings(**AUTO))


def test_missing_embeddings_are_refused(folder):
    trajectories = write_both(folder)
    (folder / EMBEDDINGS / part_name(4, EMBEDDINGS)).remove()
    with pytest.raises(DataError, match=r"part-000004.*its 0 embeddings .*embeddings: true"):
        found_in(trajectories, folder / "out", settings(**AUTO))
    (folder / EMBEDDINGS).remove()
    with pytest.raises(DataError, match=r"none for the 7 parts in .*--from trajectories"):
        found_in(trajectories, folder / "out", settings(**AUTO))


def test_embeddings_of_two_widths_are_refused(folder):
    trajectories = write_both(folder)
    write_vectors(folder / EMBEDDINGS, SEVEN_PARTS[:1], VECTOR_NH[:, :9])
    with pytest.raises(DataError, match="have 9 and 24 components"):
        found_in(trajectories, folder / "out", settings(**AUTO))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("trajectories", {}, "set `trajectories.embeddings: true`"),
        ("trajectories", {"path": "there.parquet"}, "existing trajectories have none"),
        ("selection.weights", {"math": 2.0}, "names 'math', .* are found-01 to found-03"),
        ("selection.minimum", {"found-04": 2}, "names 'found-04'"),
    ],
)
def test_what_found_strata_do_not_go_with_is_refused(tmp_path, key, value, message):
    tree = changed(handmade.inputs(tmp_path), "clusters", AUTO)
    tree = changed(tree, "trajectories", {"embeddings": True})
    from_tree(changed(tree, "selection.weights", {"found-03": 2.0}), "test")
    with pytest.raises(ConfigError, match=message):
        from_tree(changed(tree, key, value), "test")


def test_bounds_of_found_strata_wait_for_these(tmp_path):
    tree = changed(handmade.inputs(tmp_path), "clusters", AUTO)
    tree = changed(tree, "trajectories", {"embeddings": True})
    tree = changed(tree, "selection.weights", {"found-03": 2.0})
    handmade.finish(tree, until="prepare")
    assert handmade.planned(tree)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_rows_of_an_extension_go_to_the_nearest_found_stratum(folder, tmp_path):
    tree = changed(handmade.inputs(tmp_path / "inputs"), "run_dir", folder.uri)
    tree = changed(tree, "trajectories", {"embeddings": True})
    config = from_tree(changed(tree, "clusters", {**AUTO, "num_clusters": 4}), "test")
    trajectories = write_both(folder)
    out = StageDir(folder / "clusters", "clusters", {})
    summary = clusters.run(config.clusters, trajectories, out, seed=3, progress=Progress("c"))
    base = BaseRun(folder, config, {"clusters": out.finish(summary, 1.0)})

    new = {"ids": [f"new{row}" for row in range(NUM_ROWS)], "vector_NH": VECTOR_NH[::-1]}
    extension = Extension(folder, 1, ("new",))
    write_both(extension.location, **new, strata=["unknown"] * NUM_ROWS, loss_NT=LOSS_NT[::-1])
    more = StageDir(extension.folder("clusters"), "clusters", {})
    placed = json.loads(
        json.dumps(placement.place(base, [extension], more, Progress("clusters"), moves=False))
    )

    assert not (folder / "clusters" / "staged").exists()
    assert placed["new_strata"] == {} and placed["num_clusters"] == summary["num_clusters"]
    assert labels(extension.folder("clusters"))["stratum"].to_pylist() == [
        f"found-0{kind + 1}" for kind in KIND_N[::-1]
    ]
    assert (
        labels(extension.folder("clusters"))["cluster"].to_pylist()
        == labels(folder / "clusters")["cluster"].to_pylist()[::-1]
    )
