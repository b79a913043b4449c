"""Trackers get the metrics of a run, and cannot harm it."""

import importlib.util
import sys
import threading
import types

import pytest

from s2l_ray import events
from s2l_ray.config.tracking import TrackingConfig
from s2l_ray.errors import ConfigError
from s2l_ray.monitoring import trackers
from s2l_ray.storage.location import Location


def tell_three_steps() -> None:
    for step in (1, 2, 3):
        metrics = {"loss_nats": 3.0 / step, "learning_rate": 0.5, "device": "cpu"}
        events.tell("metrics", stage="target (random-6-42)", step=step, **metrics)


def test_the_loss_of_a_held_out_set_has_a_name_of_its_own():
    record = {"time": "now", "event": "metrics", "stage": "target", "step": 50}

    values, step = trackers.values_of({**record, "held_out_loss_nats/gsm8k": 1.5})

    assert (values, step) == ({"target/held_out_loss_nats/gsm8k": 1.5}, 50)


def test_tensorboard_files_hold_every_step(tmp_path):
    loader = pytest.importorskip("tensorboardX.proto.event_pb2")
    with trackers.fed(TrackingConfig(to=["tensorboard"]), Location.of(tmp_path)):
        tell_three_steps()

    (file,) = (tmp_path / "logs" / "tensorboard").iterdir()
    found = [event for event in records(file.read_bytes(), loader.Event) if event.summary.value]
    losses = {
        event.step: event.summary.value[0].simple_value
        for event in found
        if event.summary.value[0].tag.endswith("loss_nats")
    }
    assert losses == {1: 3.0, 2: 1.5, 3: 1.0}


def records(content: bytes, kind: type) -> list:
    """The records of TensorFlow's format: length, its checksum, content, its checksum."""
    found = []
    while content:
        size = int.from_bytes(content[:8], "little")
        found.append(kind.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    return found


def test_mlflow_files_hold_every_step(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # its data base is in no small package
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    config = TrackingConfig(to=["mlflow"], project="mine")
    with trackers.fed(config, Location.of(tmp_path / "a-run")):
        tell_three_steps()

    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("mine")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "a-run" and run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "target  random-6-42 /loss_nats")
    assert [(point.step, point.value) for point in history] == [(1, 3.0), (2, 1.5), (3, 1.0)]


@pytest.mark.parametrize("fails", ["open", "log", "end"])
def test_a_tracker_that_fails_is_left_out_and_said(tmp_path, monkeypatch, fails):
    logged: list[int] = []

    def broken(what):
        if what == fails:
            raise OSError("no network")

    def opened(project, name, run):
        broken("open")

        def log(values, step):
            broken("log")
            logged.append(step)

        return log, lambda: broken("end")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", trackers.Tracker("json", opened))
    told: list[events.Event] = []
    with (
        events.heard_by(told.append),
        trackers.fed(TrackingConfig(to=["wandb"]), Location.of(tmp_path)),
    ):
        tell_three_steps()

    (notice,) = [event["text"] for event in told if event["event"] == "notice"]
    assert notice == "wandb takes no metrics, and the run goes on: no network"
    assert logged == ([1, 2, 3] if fails == "end" else [])


def test_a_tracker_that_is_too_slow_keeps_no_run_from_ending(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "SECONDS_TO_END", -1.0)
    feeder = trackers._Feeder(TrackingConfig(to=["wandb"]), Location.of(tmp_path))
    told: list[events.Event] = []
    stop = threading.Event()
    stop.set()
    with events.heard_by(told.append), events.heard_by(feeder.hear):
        tell_three_steps()
        feeder.feed(stop)

    notices = [event["text"] for event in told if event["event"] == "notice"]
    assert notices == ["tracking: 3 records of metrics were not sent in time; logs/ has them"]


def test_a_record_becomes_numbers_under_the_name_of_its_stage():
    record = {"time": "now", "stage": "reference", "step": 7, "loss_nats": 2, "device": "cpu"}

    assert trackers.values_of(record) == ({"reference/loss_nats": 2.0}, 7)


def test_trackers_that_are_not_installed_are_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(ConfigError, match=r'pip install "s2l-ray\[mlflow,wandb\]"'):
        trackers.check(TrackingConfig(to=["mlflow", "wandb"]), Location.of(tmp_path))
    trackers.check(None, Location.of(tmp_path))


def test_tensorboard_is_refused_where_it_cannot_write():
    with pytest.raises(ConfigError, match="tensorboard writes local files"):
        trackers.check(TrackingConfig(to=["tensorboard"]), Location.of("s3://bucket/run"))


@pytest.mark.parametrize("name", sorted(trackers.TRACKERS))
def test_a_tracker_is_imported_only_if_it_is_asked_for(name, tmp_path, monkeypatch):
    package = trackers.TRACKERS[name].package
    monkeypatch.setitem(sys.modules, package, types.ModuleType(package))  # it has nothing in it
    told: list[events.Event] = []
    with events.heard_by(told.append):
        with trackers.fed(None, Location.of(tmp_path)):
            tell_three_steps()
        assert [event["event"] for event in told] == ["metrics"] * 3
        with trackers.fed(TrackingConfig(to=[name]), Location.of(tmp_path)):
            tell_three_steps()
    assert any(f"{name} takes no metrics" in event.get("text", "") for event in told)
