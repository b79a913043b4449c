"""Centroids that old and new rows move, in the whole program; the run stays as it was."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.small_extension import NEW, content, folder, kill_at
from tests.small_run import manifest, rows, stages_done, state, table, write_rows

pytestmark = pytest.mark.ray


def losses_and_strata(places: list[Path]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    found = pa.concat_tables([table(place / "trajectories") for place in places])
    losses = np.stack(found["loss_nats"].to_numpy()).astype(float)
    return losses, np.array(found["stratum"]), found["example_id"].to_pylist()


def nearest(losses, strata, place: Path) -> tuple[np.ndarray, float]:
    """Return labels by definition, and the inertia, in the clusters of the folder `place`."""
    centroid_KT = np.load(place / "_centroids.npy").astype(float)
    of_cluster = np.array(manifest(place)["summary"]["stratum_of_cluster"])
    sqdist_NK = ((losses[:, None] - centroid_KT) ** 2).sum(axis=2)
    sqdist_NK[strata[:, None] != of_cluster] = np.inf
    return sqdist_NK.argmin(axis=1), sqdist_NK.min(axis=1).sum()


@pytest.fixture(scope="module")
def updated(extended, s2l, tmp_path_factory) -> Path:
    """The extended run, after its centroids have moved."""
    run = Path(shutil.copytree(extended, tmp_path_factory.mktemp("updated") / "run"))
    before = {path: found for path, found in state(run).items() if "/extensions/" not in path}
    done = s2l("extend", run, "--update-centroids")
    assert done.returncode == 0, done.stdout + done.stderr
    assert stages_done(done.stdout) == {"clusters", "selection"}
    assert "of 60 old rows changed their cluster" in done.stdout
    assert "placed    with all old rows, in" in done.stdout
    assert {path: found for path, found in state(run).items() if path in before} == before
    return run


def test_all_rows_are_in_the_nearest_of_the_moved_clusters(updated, extended):
    place = folder(updated) / "clusters"
    losses, strata, ids = losses_and_strata([updated, folder(updated)])
    label_N, inertia = nearest(losses, strata, place)
    found = table(place)
    assert found["example_id"].to_pylist() == ids
    assert found["cluster"].to_pylist() == label_N.tolist()
    assert found["sqdist"].to_numpy().sum() == pytest.approx(inertia, rel=1e-5)
    _, stored = nearest(losses, strata, folder(extended) / "clusters")
    assert inertia < stored
    assert manifest(place)["summary"]["fit"]["centroids_updated"]
    of_cluster = [
        manifest(where / "clusters")["summary"]["stratum_of_cluster"]
        for where in (folder(extended), folder(updated))
    ]
    assert of_cluster[0] == of_cluster[1]


def test_the_ranking_is_by_the_moved_clusters(updated):
    place = folder(updated)
    ranking = table(place / "selection", "ranking.parquet").to_pylist()
    labels = {row["example_id"]: row["cluster"] for row in table(place / "clusters").to_pylist()}
    assert {row["example_id"]: row["cluster"] for row in ranking} == labels
    assert len(ranking) == 60 + len(NEW)


@pytest.mark.cluster
def test_whatever_is_killed_the_centroids_move_to_the_same_place(
    updated, copied, new_data, s2l, s2l_environment
):
    run = copied()
    for beginning in ("trajectories/units/losses-", "clusters/unfinished", "clusters/part-"):
        kill_at(beginning, run, new_data, s2l_environment, "--update-centroids")
    # It has been said once; neither the flag nor the data is needed any more.
    done = s2l("extend", run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "placed    with all old rows, in" in done.stdout
    assert content(run) == content(updated)


def test_later_rows_are_placed_in_the_moved_clusters(updated, s2l, tmp_path):
    run = Path(shutil.copytree(updated, tmp_path / "run"))
    before = content(run)
    more = rows(first=300)[30:36]
    done = s2l("extend", run, write_rows(tmp_path / "more.jsonl", more))
    assert done.returncode == 0, done.stdout + done.stderr
    place = folder(run, 2)
    losses, strata, ids = losses_and_strata([place])
    label_N, _ = nearest(losses, strata, folder(run) / "clusters")
    found = table(place / "clusters")
    assert found["example_id"].to_pylist() == ids
    assert found["cluster"].to_pylist() == label_N.tolist()
    ranking = table(place / "selection", "ranking.parquet")
    assert len(set(ranking["example_id"].to_pylist())) == 60 + len(NEW) + len(more)
    assert {path: found for path, found in content(run).items() if path in before} == before
