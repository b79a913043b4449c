"""Runs on brought trajectories that fit one process: they need neither Ray nor its workers."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml

import s2l_ray as s2l
from s2l_ray import events
from s2l_ray.artifacts.tables import Parts
from s2l_ray.distributed import resources
from s2l_ray.pipeline import run as pipeline
from s2l_ray.storage.location import Location
from s2l_ray.trajectories import footers, import_existing
from tests import handmade
from tests.program import called
from tests.small_run import NOBODY, refusal, sets, stages_done


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield
    assert not ray.is_initialized()


def trajectories(folder: Path, losses: list[list[float]], name: str = "example_id") -> Path:
    """A configuration that brings these trajectories, as parquet."""
    ids = [f"e{i}" for i in range(len(losses))]
    pq.write_table(pa.table({name: ids, "loss_nats": losses}), folder / "t.parquet")
    tree = {
        "run_dir": str(folder / "run"),
        "trajectories": {"path": str(folder / "t.parquet")},
        "clusters": {"num_clusters": 2, "rows_per_cluster": 1},
        "selection": {"budget": 2},
    }
    (folder / "brought.yaml").write_text(yaml.safe_dump(tree))
    return folder / "brought.yaml"


def test_brought_trajectories_become_a_ranking_in_this_process(tmp_path):
    losses = np.random.default_rng(0).gamma(2.0, size=(12, 2)).tolist()
    config = trajectories(tmp_path, losses)
    read_before = footers._footer.cache_info().misses

    done = called("run", config, "--from", "clusters", "--until", "selection")

    assert done.returncode == 0, done.stdout + done.stderr
    assert stages_done(done.stdout) == {"trajectories", "clusters", "selection"}
    assert "Ray" not in done.stdout
    assert footers._footer.cache_info().misses - read_before == 2  # of the file, and of the part
    ranking = pq.read_table(tmp_path / "run" / "selection" / "ranking.parquet")
    assert sorted(ranking["example_id"].to_pylist()) == sorted(f"e{i}" for i in range(12))
    again = called("run", config, "--from", "clusters", *sets(clusters__num_clusters=3))
    assert again.returncode == 0 and "Ray" not in again.stdout
    assert stages_done(again.stdout) == {"clusters", "selection", "report"}


def test_on_a_cluster_that_is_joined_ray_does_it(tmp_path):
    config = trajectories(tmp_path, [[1.0, 2.0]] * 4)

    done = called("run", config, "--until", "clusters", "--address", NOBODY)

    assert done.returncode == 2 and "no Ray cluster answers" in done.stderr


def test_what_does_not_fit_this_process_needs_ray(tmp_path, monkeypatch):
    tree = yaml.safe_load(trajectories(tmp_path, [[1.0, 2.0]] * 4).read_text())
    brought = handmade.planned(tree)[:2]
    assert [step.stage for step in brought] == ["trajectories", "clusters"]

    told: list[events.Event] = []
    with events.heard_by(told.append):
        assert not pipeline.needs_ray(brought, None)
    assert {event["stage"] for event in told} == {"checking what fits this process"}
    monkeypatch.setattr(resources, "MAX_BYTES_HERE", 4 * 2 * 4 - 1)
    assert all(pipeline.needs_ray([step], None) for step in brought)


def test_stored_trajectories_are_clustered_anew_in_this_process(tmp_path):
    tree = handmade.inputs(tmp_path)
    run = handmade.finish(tree)
    changed = handmade.changed(tree, "clusters.num_clusters", 4)

    labels = handmade.run(changed, until="clusters")

    assert labels == ["clusters"]
    tables = Parts(Location.of(run.uri) / "clusters").tables()
    assert sum(table.num_rows for table in tables) == handmade.NUM_ROWS


def test_losses_that_stay_where_they_lie_give_the_bytes_of_a_copy(tmp_path, monkeypatch):
    losses = np.random.default_rng(0).gamma(2.0, size=(40, 3)).astype(np.float32)
    table = {
        "example_id": [f"e{i}" for i in range(40)],
        "stratum": [f"s{i % 2}" for i in range(40)],
        "loss_nats": pa.array(losses.tolist(), pa.list_(pa.float32(), 3)),
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet", row_group_size=16)
    monkeypatch.setattr(import_existing, "ROWS_PER_PART", 16)
    left = {}
    for name, bytes_copied in (("copied", 480), ("stays", 479)):
        monkeypatch.setattr(import_existing, "BYTES_COPIED", bytes_copied)
        tree = yaml.safe_load(trajectories(tmp_path, [[1.0, 2.0]]).read_text())
        pq.write_table(pa.table(table), tmp_path / "t.parquet", row_group_size=16)
        run = tmp_path / name
        handmade.run({**tree, "run_dir": str(run)}, until="report")
        np.testing.assert_array_equal(s2l.load(run).trajectories().to_numpy(), losses)
        files = [file for stage in ("clusters", "selection") for file in (run / stage).iterdir()]
        left[name] = {file.name: file.read_bytes() for file in files if file.name[0] != "_"}
        left[name]["centroids"] = (run / "clusters" / "_centroids.npy").read_bytes()

    assert not list((tmp_path / "stays" / "trajectories").glob("part-*"))
    assert len(left["stays"]) == 3 + 1 + 1
    assert left["stays"] == left["copied"]


@pytest.mark.parametrize(
    ("losses", "name", "pieces"),
    [
        ([[1.0, 2.0], [1.0, float("nan")], [3.0, 4.0]], "example_id", ["NaN", "(first: e1)"]),
        ([[1.0, 2.0], [3.0, 4.0], [1.0]], "example_id", ["2 values", "1 in row 2", "example e2"]),
        ([[1.0, 2.0]], "name", ["no column 'example_id'", "it has name, loss_nats"]),
        ([[1.0, 2.0]], "example_id", ["selection.budget: 2 examples", "the pool has (1)"]),
    ],
    ids=["NaN", "unequal", "column", "budget"],
)
def test_brought_trajectories_that_cannot_be_used_are_explained(tmp_path, losses, name, pieces):
    message = refusal(called("run", trajectories(tmp_path, losses, name), "--until", "selection"))
    assert [piece for piece in pieces if piece not in message] == []
    assert not (tmp_path / "run" / "selection" / "ranking.parquet").exists()
