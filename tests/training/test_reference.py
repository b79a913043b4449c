"""The reference stage: its checkpoints, restarts, and existing checkpoints."""

import contextlib
import json
import math
import threading
from functools import partial

import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray
import torch
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._private.state import actors
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)
from ray.util import placement_group_table

from s2l_ray import events
from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import Parts, part_name
from s2l_ray.config.load import load
from s2l_ray.config.training import RandomModel, ReferenceConfig, WorkerRange
from s2l_ray.distributed import resources, waiting
from s2l_ray.errors import ConfigError, DataError, ModelError
from s2l_ray.models import checkpoints
from s2l_ray.progress import Progress
from s2l_ray.storage.location import Location
from s2l_ray.training import loop, ray_train, reference
from s2l_ray.training.batches import TrainingPlan
from s2l_ray.training.token_parts import TokenParts
from s2l_ray.trajectories import stage as trajectories
from tests import small_run, tiny
from tests.training.held import HELD_AT, fit

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
NUM_ROWS, STEPS = (9, 0, 7, 4), 100


@pytest.mark.parametrize(("gpus", "hidden"), [(0, True), (1, False)])
def test_trainings_without_gpus_see_none(tmp_path, gpus, hidden):
    out = StageDir(Location.of(tmp_path), "target", {})
    settings = ray_train.run_config(out, resources.Workers("target", 2, 2, gpus=gpus))
    variables = settings.worker_runtime_env["env_vars"]
    assert (variables.get("CUDA_VISIBLE_DEVICES") == "") is hidden
    assert variables["OMP_NUM_THREADS"] == "1"


@pytest.fixture
def cluster(ray_cluster, monkeypatch):
    """Ray Train takes in one report at every look at its workers: let it look often."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")


@pytest.fixture
def held(monkeypatch):
    """Trainings wait at a step for what takes a worker away."""
    monkeypatch.setattr(ray_train, "fit", partial(fit, ray_train.fit))


@pytest.fixture
def prepared(tmp_path):
    folder = Location.of(tmp_path) / "prepared"
    rng = np.random.default_rng(5)
    for part, num_rows in enumerate(NUM_ROWS):
        ids = [rng.integers(0, 256, rng.integers(4, 20)).tolist() for _ in range(num_rows)]
        columns = {
            "example_id": [f"{part}-{row}" for row in range(num_rows)],
            "input_ids": pa.array(ids, pa.list_(pa.int32())),
            "num_prompt_tokens": pa.array([2] * num_rows, pa.int32()),
            "num_tokens": pa.array([len(row) for row in ids], pa.int32()),
        }
        (folder / part_name(part)).write_table(pa.table(columns))
    return Parts(folder)


def settings(tmp_path, *, dropout=0.1, **changes):
    tiny.tokenizer().save_pretrained(tmp_path / "tokenizer")
    shape = {"model_type": "gpt_neox", "num_attention_heads": 2, **SHAPE}
    shape |= {"hidden_dropout": dropout}
    usual = {
        "model": RandomModel(architecture=shape, tokenizer=str(tmp_path / "tokenizer")),
        "batch_size": 5,
        "max_steps": STEPS,
        "checkpoints": 2,
        "learning_rate": 1e-3,
        "precision": "fp32",
        "workers": 2,
        "resume_every": 20,
    }
    return ReferenceConfig(**{**usual, **changes})


def stage(tmp_path, name):
    out = StageDir(Location.of(tmp_path) / name, "reference", {"reference.model": name})
    out.begin()
    return out


class TakesAway(Progress):
    """Calls `take`, once training waits and has left a state to return to."""

    def __init__(self, out, take):
        super().__init__("reference")
        self.resume, self.take, self.taken = out.location / "resume", take, False
        self.starts = []

    def start(self, total, unit="rows", *, done=0):
        super().start(total, unit, done=done)
        if self.starts[-1:] != [done]:  # else nothing was heard of the workers for a while
            self.starts.append(done)

    def update(self, done, tokens=0, note=""):
        super().update(done, tokens, note)
        if not self.taken and self.reached >= HELD_AT and self.has_state():
            self.taken = True
            self.take()

    def has_state(self):
        names = [name for name, _, _ in self.resume.files()]
        return any(name.endswith("/checkpoint_manager_snapshot.json") for name in names)


def kill_a_worker():
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.name().startswith("ray::RayTrainWo"):
                process.kill()
                return


class AnotherNode:
    """One more CPU for the tests' Ray, as a node of its own, until it is lost."""

    def __init__(self):
        params = RayParams(
            gcs_address=ray.get_runtime_context().gcs_address,
            num_cpus=1,
            object_store_memory=150 << 20,
            include_log_monitor=False,
        )
        self.node = Node(params, head=False, shutdown_at_exit=True)

        while ray.cluster_resources()["CPU"] < 3:
            threading.Event().wait(0.1)
        # Ray Train asks an actor for what there is, and that counts nodes every 20 s.
        ray.kill(get_or_create_autoscaling_coordinator())

    def lose(self):
        """The node says goodbye (Ray finds out by heartbeats else, in minutes), its worker not."""
        (raylet,) = self.node.all_processes["raylet"]
        workers = psutil.Process(raylet.process.pid).children(recursive=True)
        raylet.process.terminate()
        for worker in workers:
            worker.kill()
        self.node.kill_all_processes(check_alive=False, allow_graceful=False)


@contextlib.contextmanager
def another_node():
    node = AnotherNode()
    try:
        yield
    finally:
        node.lose()


@pytest.mark.ray
@pytest.mark.cluster
def test_a_run_that_loses_a_worker_ends_with_the_same_bits(
    tmp_path, finished, config, cluster, held
):
    """The run that lost none is that of the whole program.

    What is scored beside it would gladly take the place of the worker that was lost.
    """
    run = load(config)
    whole = Location.of(finished) / "reference"
    broken = stage(tmp_path, "broken")
    scored = StageDir(Location.of(tmp_path) / "scored", "trajectories", {})
    prepared = Parts(Location.of(finished) / "prepared")
    kept = [
        trajectories.Checkpoint(step, broken.location / name)
        for step, name in reference.planned(run.reference, sum(small_run.NUM_ROWS.values())).items()
    ]
    with another_node(), TakesAway(broken, kill_a_worker) as killer:
        with trajectories.score_while_training(
            run.trajectories, prepared, kept, scored, steps_done=lambda: killer.reached
        ):
            summary = reference.run(run.reference, prepared, broken, seed=run.seed, progress=killer)
        shown = Progress("trajectories")
        trajectories.run(run.trajectories, prepared, kept, scored, progress=shown)

    assert len(killer.starts) == 2 and killer.starts[1] % 20 == 0 < killer.starts[1]
    expected = (whole / "_manifest.json").read_json()["summary"]
    assert json.loads(json.dumps(summary)) == expected
    assert summary["names"] == [f"step-{step:06d}" for step in (20, 40, 60, 80)]
    assert summary["num_rows"] == 60 and summary["num_steps"] == 80
    assert math.isfinite(summary["loss_nats"]) and len(summary["curve"]) == 80
    broken.finish(summary, seconds=1.0)
    assert broken.location.names() == ["_manifest.json", *summary["names"]]
    for name in summary["names"]:
        model = f"{name}/model.safetensors"
        assert (broken.location / model).read_bytes() == (whole / model).read_bytes()
    losses = [table["loss_nats"] for table in Parts(scored.location).tables()]
    expected = Parts(Location.of(finished) / "trajectories").tables(["loss_nats"])
    assert losses == [table["loss_nats"] for table in expected]
    found = reference.existing(str(whole))
    assert (found["names"], found["steps"]) == (summary["names"], summary["steps"])


@pytest.mark.ray
@pytest.mark.cluster
def test_elastic_training_goes_on_with_the_workers_that_are_left(
    tmp_path, prepared, cluster, held, monkeypatch
):
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")
    config = settings(tmp_path, workers=WorkerRange(min=1, max=3), dropout=0.0)
    out, node = stage(tmp_path, "out"), AnotherNode()
    with TakesAway(out, node.lose) as progress:
        summary = reference.run(config, prepared, out, seed=3, progress=progress)

    (_, before), (start, after) = summary["workers"]
    assert (before, after) == (3, 2) and start % 20 == 0 < start < STEPS
    assert summary["num_steps"] == STEPS and len(summary["names"]) == 2
    # The same batches, their gradients summed in another order.
    expected = trained_in_this_process(config, prepared)
    np.testing.assert_allclose([loss for _, loss in summary["curve"]], expected, rtol=1e-3)


@pytest.mark.ray
@pytest.mark.cluster
def test_a_training_whose_node_does_not_come_back_waits_in_words_and_ends(
    tmp_path, prepared, cluster, held, monkeypatch
):
    monkeypatch.setattr(waiting, "SECONDS_UNTIL_SAID", 0.0)
    config, out, node = settings(tmp_path, workers=3), stage(tmp_path, "out"), AnotherNode()
    told: list[events.Event] = []
    lost = (
        r"reference: no room for 3 workers of 1 CPU in 0:08 \(resources\.wait\)\. The cluster "
        r"has 2 CPU .*\. Its workers were lost\. Give the cluster nodes .* the last saved state\."
    )
    with (
        events.heard_by(told.append),
        waiting.limited_to(8.0),
        pytest.raises(ConfigError, match=lost),
        TakesAway(out, node.lose) as progress,
    ):
        reference.run(config, prepared, out, seed=3, progress=progress)

    said = [event["text"] for event in told if event["event"] == "notice"]
    assert any("reference: waiting for room for 3 workers of 1 CPU, at most 0:08" in text
               for text in said)  # fmt: skip
    # Nothing goes on asking for that room.
    while any(group["state"] == "PENDING" for group in placement_group_table().values()):
        threading.Event().wait(0.1)


def trained_in_this_process(config, prepared):
    model = checkpoints.load_model(config.model, seed=3)
    engine = loop.Replica(model, config, device=torch.device("cpu"), dtype=torch.float32)
    parts, history = TokenParts.of(prepared.files()), loop.History()
    for report in loop.steps(engine, TrainingPlan(parts, config, 3, STEPS)):
        history.add(report)
    return [loss for _, loss in history.curve()]


@pytest.mark.ray
def test_what_a_user_must_change_is_said_by_a_worker_once(tmp_path, prepared, cluster):
    config = settings(tmp_path, model=str(tmp_path / "nowhere"), workers=1)
    before = actors()
    with pytest.raises(ModelError, match="nowhere"), Progress("reference") as progress:
        reference.run(config, prepared, stage(tmp_path, "out"), seed=3, progress=progress)

    # One worker, tried once. Ray Train's processes for data sets and left-over room are not there.
    started = [actor["ActorClassName"] for name, actor in actors().items() if name not in before]
    kinds = ["TrainController", "RayTrainWorker", "SynchronizationActor", "_Board"]
    assert sorted(started) == sorted(kinds)


def test_more_checkpoints_than_steps_are_refused_before_anything_starts(tmp_path, prepared):
    config = settings(tmp_path, max_steps=3, checkpoints=4)
    with pytest.raises(ConfigError, match="4 checkpoints cannot come from 3"):
        reference.run(config, prepared, stage(tmp_path, "out"), seed=3, progress=Progress("r"))


def test_existing_checkpoints_are_found_in_numeric_order_and_left_alone(tmp_path):
    for step in (20, 100, 3):
        tiny.save(tmp_path / f"checkpoint-{step}")
    (tmp_path / "notes").mkdir()

    config = ReferenceConfig(path=str(tmp_path))
    out = stage(tmp_path, "out")
    summary = reference.run(config, Parts(out.location), out, seed=3, progress=Progress("r"))

    assert summary == {
        "path": str(tmp_path),
        "names": ["checkpoint-3", "checkpoint-20", "checkpoint-100"],
        "steps": [3, 20, 100],
    }


def test_a_folder_without_checkpoints_and_a_broken_one_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no step-\* or checkpoint-\* directories"):
        reference.existing(str(tmp_path))
    tiny.save(tmp_path / "step-1")
    (tmp_path / "step-1" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"step-1 has no model\.safetensors"):
        reference.existing(str(tmp_path))


def test_parts_are_read_as_they_were_written_and_empty_ones_are_left_out(prepared):
    parts = TokenParts.of(prepared.files())

    assert list(parts.num_rows) == [9, 7, 4]
    table = prepared.files()[2].read_table()
    rows = parts.read(1)
    assert [rows.row(i).tolist() for i in range(7)] == table["input_ids"].to_pylist()
    learned = np.split(rows.learned, rows.offset[1:-1])
    assert [np.flatnonzero(row).tolist() for row in learned] == [
        list(range(2, len(row))) for row in learned
    ]
