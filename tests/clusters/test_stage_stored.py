"""Trajectories are placed in stored clusters; strata without one are clustered by themselves."""

import numpy as np
import pytest

from s2l_ray.clusters import stage as clusters
from s2l_ray.clusters.stage import StoredClusters
from s2l_ray.progress import Progress
from s2l_ray.storage.location import Location
from tests.clusters.test_stage import (
    IDS,
    LOSS_NT,
    SEVEN_PARTS,
    STRATA,
    centroids,
    fleet_of,
    labels,
    settings,
    write_parts,
)

STORED = {"math": LOSS_NT[:4] + 0.25, "art": LOSS_NT[4:6], "code": LOSS_NT[6:9] * 2}
FIRST = {"math": 0, "art": 4, "code": 6, "chat": 9}


def place(tmp_path, name: str, config, stored=STORED, shards=None, strata=STRATA):
    files = write_parts(Location.of(tmp_path / "trajectories"), SEVEN_PARTS, strata=strata)
    folder = Location.of(tmp_path / name)
    fleet = fleet_of(files, config, shards)
    summary = clusters.cluster(
        fleet, config, folder, progress=Progress("clusters"), stored=StoredClusters(dict(stored))
    )
    return folder, summary


def oracle(row: int, stored: dict, stratum: str) -> tuple[int, float]:
    sqdist_K = ((LOSS_NT[row].astype(float) - stored[stratum].astype(float)) ** 2).sum(axis=1)
    return int(sqdist_K.argmin()), float(sqdist_K.min())


def test_rows_of_known_strata_go_to_the_nearest_stored_centroid(tmp_path):
    folder, _ = place(tmp_path, "clusters", settings())
    found = labels(folder).to_pylist()
    assert [item["example_id"] for item in found] == IDS
    for row, item in enumerate(found):
        if item["stratum"] != "chat":
            number, sqdist = oracle(row, STORED, STRATA[row])
            assert item["cluster"] == FIRST[STRATA[row]] + number
            assert item["sqdist"] == pytest.approx(sqdist, rel=1e-6)


@pytest.mark.parametrize("method", ["minibatch", "authors"])
def test_a_new_stratum_is_clustered_as_if_it_were_alone(tmp_path, method):
    config = settings(method=method)
    folder, summary = place(tmp_path, "clusters", config)
    own = [row for row in range(len(IDS)) if STRATA[row] == "chat"]
    files = write_parts(Location.of(tmp_path / "alone"), [own])
    alone = Location.of(tmp_path / "by-itself")
    clusters.cluster(fleet_of(files, config), config, alone, progress=Progress("clusters"))

    found = [item for item in labels(folder).to_pylist() if item["stratum"] == "chat"]
    assert [item["cluster"] - FIRST["chat"] for item in found] == [
        item["cluster"] for item in labels(alone).to_pylist()
    ]
    assert summary["stratum_of_cluster"] == ["math"] * 4 + ["art"] * 2 + ["code"] * 3 + ["chat"] * 5
    assert summary["size_of_cluster"][4:6] == [0, 0]


def test_stored_centroids_keep_their_bits_and_numbers(tmp_path):
    folder, summary = place(tmp_path, "clusters", settings())
    np.testing.assert_array_equal(centroids(folder)[:9], np.concatenate(list(STORED.values())))
    assert len(centroids(folder)) == summary["num_clusters"] == 14


def test_nothing_is_fitted_where_all_strata_are_known(tmp_path):
    config = settings(per_stratum=False)
    folder, summary = place(tmp_path, "clusters", config, {"": LOSS_NT[:7]})
    assert summary["lloyd_sweeps"] == 0 and summary["num_clusters"] == 7
    assert [item["cluster"] for item in labels(folder).to_pylist()] == [
        oracle(row, {"": LOSS_NT[:7]}, "")[0] for row in range(len(IDS))
    ]


def test_places_do_not_depend_on_who_holds_the_rows(tmp_path):
    one, summary = place(tmp_path, "one", settings())
    two, other = place(tmp_path, "two", settings(), shards=[[6, 2, 0], [1, 3, 4, 5]])
    assert summary == other
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in one.names())


def test_only_clusters_of_new_strata_are_judged(tmp_path):
    _, placed = place(tmp_path, "a", settings(), strata=["math"] * len(IDS))
    _, with_new = place(tmp_path, "b", settings())
    assert "stability" not in placed and "notes" not in placed
    assert 0 < with_new["stability"] <= 1


FAR = np.full((1, 4), 500, np.float32)
"""No row is nearest to this."""
START = {**STORED, "code": np.concatenate([STORED["code"], FAR])}
FITTED = {"math": 50, "art": 20, "code": 60}
KNOWN = ["math", "code", "art"]


def move(tmp_path, name: str, shards=None, fitted=FITTED, **changes):
    """Every third row is of a stored stratum; those of chat are of a new one."""
    config = settings(lloyd_sweeps=500, **changes)
    strata = [(*KNOWN, "chat")[row % 4] for row in range(len(IDS))]
    files = write_parts(Location.of(tmp_path / "trajectories"), SEVEN_PARTS, strata=strata)
    folder = Location.of(tmp_path / name)
    summary = clusters.cluster(
        fleet_of(files, config, shards),
        config,
        folder,
        progress=Progress("clusters"),
        stored=StoredClusters(dict(START), rows_fitted=fitted),
    )
    return folder, summary, strata


def lloyd(loss_NT: np.ndarray, start_KT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From the definition, until no label changes; a cluster without rows stays where it was."""
    centroid_KT, label_N = start_KT.astype(float), None
    while True:
        nearest_N = ((loss_NT[:, None].astype(float) - centroid_KT) ** 2).sum(axis=2).argmin(axis=1)
        if label_N is not None and (nearest_N == label_N).all():
            return centroid_KT, label_N
        label_N = nearest_N
        for k in set(label_N.tolist()):
            centroid_KT[k] = loss_NT[label_N == k].mean(axis=0, dtype=float)


def test_moved_centroids_are_where_lloyds_sweeps_from_the_stored_ones_end(tmp_path):
    folder, summary, strata = move(tmp_path, "clusters")
    found, label_N = centroids(folder), np.array(labels(folder)["cluster"])
    start = 0
    for name, start_KT in START.items():
        own_N = np.array(strata) == name
        expected_KT, expected_N = lloyd(LOSS_NT[own_N], start_KT)
        np.testing.assert_allclose(found[start : start + len(start_KT)], expected_KT, rtol=1e-6)
        np.testing.assert_array_equal(label_N[own_N] - start, expected_N)
        assert not np.array_equal(found[start : start + len(start_KT)], start_KT)
        start += len(start_KT)
    assert summary["converged"] and summary["lloyd_sweeps"] > 1


def test_a_moved_cluster_without_rows_keeps_its_number_and_its_place(tmp_path):
    folder, summary, _ = move(tmp_path, "clusters")
    expected = ["math"] * 4 + ["art"] * 2 + ["code"] * 4 + ["chat"] * 5
    assert summary["stratum_of_cluster"] == expected
    assert summary["size_of_cluster"][9] == 0
    np.testing.assert_array_equal(centroids(folder)[9], FAR[0])


def test_moved_centroids_do_not_depend_on_who_holds_the_rows(tmp_path):
    """From so few rows that mini-batches come first."""
    few = dict.fromkeys(KNOWN, 2)
    one, summary, _ = move(tmp_path, "one", fitted=few)
    two, other, _ = move(tmp_path, "two", shards=[[6, 2, 0], [1, 3, 4, 5]], fitted=few)
    assert summary == other
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in one.names())
    other_way, _, _ = move(tmp_path, "three")
    assert not np.array_equal(centroids(one)[:10], centroids(other_way)[:10])


@pytest.mark.parametrize("method", ["minibatch", "authors"])
def test_a_new_stratum_is_clustered_as_if_others_did_not_move(tmp_path, method):
    folder, _, strata = move(tmp_path, "clusters", method=method)
    config = settings(lloyd_sweeps=500, method=method)
    files = write_parts(
        Location.of(tmp_path / "alone"), [np.flatnonzero(np.array(strata) == "chat")], strata=strata
    )
    alone = Location.of(tmp_path / "by-itself")
    clusters.cluster(fleet_of(files, config), config, alone, progress=Progress("clusters"))
    np.testing.assert_array_equal(centroids(folder)[10:], centroids(alone))


def test_all_clusters_are_judged_once_they_have_moved(tmp_path):
    _, placed = place(tmp_path, "placed", settings(), strata=["math"] * len(IDS))
    _, moved, _ = move(tmp_path, "moved")
    assert "silhouette" not in placed and -1 <= moved["silhouette"] <= 1
