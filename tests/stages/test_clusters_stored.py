"""Trajectories are placed in stored clusters; strata without one are clustered by themselves."""

import numpy as np
import pytest

from s2l_ray.progress import Progress
from s2l_ray.stages import clusters
from s2l_ray.storage import Location
from tests.stages.test_clusters import (
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
        fleet, config, folder, progress=Progress("clusters"), stored=dict(stored)
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
