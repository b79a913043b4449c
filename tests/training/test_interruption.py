"""Ctrl-C in a training saves what was learned; the same command goes on with the next step."""

import signal
import threading
from functools import partial

import pytest
import ray
from ray.util import placement_group_table

from s2l_ray import events
from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import Parts
from s2l_ray.background import running_thread
from s2l_ray.config.load import load
from s2l_ray.distributed.resources import Workers
from s2l_ray.distributed.waiting import LostRoom
from s2l_ray.progress import Progress
from s2l_ray.storage.location import Location
from s2l_ray.training import ray_train, reference
from s2l_ray.training.board import MEASURING
from s2l_ray.training.interruption import InterruptibleTrainer, _Interruption, interruptible
from tests.training.held import HELD_AT, HeldUntilStopped, fit

LAST = "step-000080/model.safetensors"


THREE = Workers("reference", 3, 3, cpus=1)
ROOM = LostRoom(THREE, lambda: pytest.fail("the training has not lost its room"))


class Board:
    """Counts how often workers were asked to stop, as an actor would be called."""

    def __init__(self):
        self.asked = 0
        self.stop = self

    def remote(self):
        self.asked += 1


def test_before_the_first_step_and_at_the_second_ctrl_c_workers_are_ended():
    board, step = Board(), Progress("reference")
    interruption = _Interruption(board, step, 80, ROOM)
    assert not interruption.begin() and board.asked == 0

    step.start(80, "steps")
    assert interruption.begin() and board.asked == 1 and step.is_to_stop
    assert not interruption.begin() and board.asked == 1


@pytest.mark.parametrize(
    ("done", "doing", "said"),
    [
        (27, "", "stopping when the step under way is saved"),
        (80, MEASURING, "stopping when the step under way is saved"),
        (80, "", "stopping when the result of the training is written"),
    ],
)
def test_what_is_saved_is_said_at_once(done, doing, said):
    told: list[events.Event] = []
    step = Progress("reference")
    step.start(80, "steps", done=done)
    step.doing(doing)
    with events.heard_by(told.append):
        _Interruption(Board(), step, 80, ROOM).begin()

    (notice,) = told
    assert notice["text"].startswith(said)


def too_large(folder) -> InterruptibleTrainer:
    """A training that waits for room for ever: the cluster has two CPUs."""
    return InterruptibleTrainer(
        print,
        scaling_config=ray.train.ScalingConfig(num_workers=3, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(name="waits", storage_path=str(folder)),
    )


def states_of_groups(others) -> list[str]:
    groups = placement_group_table().items()
    return [group["state"] for name, group in groups if name not in others]


@pytest.mark.ray
def test_one_ctrl_c_ends_a_training_that_waits_for_room(tmp_path, ray_cluster):
    """The controller would not hear that it is to end."""
    trainer = too_large(tmp_path)
    room = LostRoom(THREE, trainer.give_up)
    others = placement_group_table().keys()

    def interrupt(stop: threading.Event) -> None:
        while "PENDING" not in states_of_groups(others):
            if stop.wait(0.1):
                return
        room.look()
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    board, progress = Board(), Progress("reference")
    with (
        pytest.raises(KeyboardInterrupt),
        interruptible(trainer, board, progress, 80, room),
        running_thread(interrupt),
    ):
        trainer.fit()

    assert board.asked == 0 and set(states_of_groups(others)) <= {"REMOVED"}
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(trainer._controller.get_state.remote())


@pytest.mark.ray
def test_a_training_whose_controller_dies_asks_for_no_room_any_more(tmp_path, ray_cluster):
    trainer, others = too_large(tmp_path), placement_group_table().keys()

    def kill(stop: threading.Event) -> None:
        while "PENDING" not in states_of_groups(others):
            if stop.wait(0.1):
                return
        ray.kill(trainer._controller)

    with pytest.raises(ray.exceptions.RayActorError), running_thread(kill):
        trainer.fit()

    assert states_of_groups(others) == ["REMOVED"]


@pytest.mark.ray
@pytest.mark.cluster
def test_ctrl_c_loses_no_step(tmp_path, finished, config, ray_cluster, monkeypatch):
    """The training waits at a step until it is to stop; it would save nothing by itself."""
    run = load(config)
    section = run.reference.model_copy(update={"resume_every": 1_000})
    prepared = Parts(Location.of(finished) / "prepared")
    out = StageDir(Location.of(tmp_path) / "out", "reference", {"reference.model": "small"})
    out.begin()
    told: list[events.Event] = []

    def interrupt(event: events.Event) -> None:
        told.append(event)
        if event["event"] == "metrics" and event["step"] == HELD_AT:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    train = partial(reference.run, section, prepared, out, seed=run.seed)
    with monkeypatch.context() as patch:
        patch.setattr(ray_train, "fit", partial(fit, ray_train.fit, kind=HeldUntilStopped))
        with (
            events.heard_by(interrupt),
            pytest.raises(KeyboardInterrupt),
            Progress("reference") as progress,
        ):
            train(progress=progress)
    notices = [event["text"] for event in told if event["event"] == "notice"]
    assert notices[0].startswith("stopping when the step under way is saved ")
    assert notices[1:] == [f"saved step {HELD_AT} of 80"]

    told.clear()
    with events.heard_by(told.append), Progress("reference") as progress:
        train(progress=progress)

    steps = [event["step"] for event in told if event["event"] == "metrics"]
    assert steps == list(range(HELD_AT + 1, 81))
    notices = [event["text"] for event in told if event["event"] == "notice"]
    assert notices == [f"reference: going on after step {HELD_AT} of 80"]
    expected = (finished / "reference" / LAST).read_bytes()
    assert (tmp_path / "out" / LAST).read_bytes() == expected
