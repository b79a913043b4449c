"""Ctrl-C in a training saves what was learned; the same command goes on with the next step."""

import signal
import threading
from functools import partial

import pytest

from s2l_ray import events
from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import Parts
from s2l_ray.config.load import load
from s2l_ray.progress import Progress
from s2l_ray.storage.location import Location
from s2l_ray.training import ray_train, reference
from s2l_ray.training.interruption import _Interruption
from tests.training.held import HELD_AT, HeldUntilStopped, fit

LAST = "step-000080/model.safetensors"


class Board:
    """Counts how often workers were asked to stop, as an actor would be called."""

    def __init__(self):
        self.asked = 0
        self.stop = self

    def remote(self):
        self.asked += 1


def test_before_the_first_step_and_at_the_second_ctrl_c_workers_are_ended():
    board, step = Board(), Progress("reference")
    interruption = _Interruption(board, step, 80)
    assert not interruption.begin() and board.asked == 0

    step.start(80, "steps")
    assert interruption.begin() and board.asked == 1 and step.is_to_stop
    assert not interruption.begin() and board.asked == 1


@pytest.mark.parametrize(
    ("done", "said"),
    [
        (27, "stopping when the step under way is saved"),
        (80, "stopping when the result of the training is written"),
    ],
)
def test_what_is_saved_is_said_at_once(done, said):
    told: list[events.Event] = []
    step = Progress("reference")
    step.start(80, "steps", done=done)
    with events.heard_by(told.append):
        _Interruption(Board(), step, 80).begin()

    (notice,) = told
    assert notice["text"].startswith(said)


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
    expected = (finished / "reference" / LAST).read_bytes()
    assert (tmp_path / "out" / LAST).read_bytes() == expected
