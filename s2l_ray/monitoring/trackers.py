"""Trackers of experiments, which get the metrics of a run: TensorBoard, W&B, MLflow, trackio.

Each is a function that opens one and returns a function for a record of metrics and one that ends
it. A tracker only looks on: it is called from a thread of its own, and one that fails is left out.
"""

import contextlib
import importlib.util
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from s2l_ray import events
from s2l_ray.background import running_thread
from s2l_ray.config.tracking import TrackingConfig
from s2l_ray.errors import ConfigError, one_line
from s2l_ray.monitoring.journal import FOLDER
from s2l_ray.storage.location import Location

SECONDS_PER_LOOK = 0.5
SECONDS_TO_END = 60.0
"""Longest time that a slow tracker gets for what waits when the run has ended."""
Log = Callable[[dict[str, float], int], None]
"""Takes values by name, and the step that they are of."""


@dataclass(frozen=True)
class Tracker:
    """A library that metrics are sent to.

    Attributes:
        package: the module that it is imported as.
        open: opens it for a project, the name of a run, and its folder; returns how to log and how
            to end.
    """

    package: str
    open: Callable[[str, str, Location], tuple[Log, Callable[[], None]]]


def check(config: TrackingConfig | None, run: Location) -> None:
    """Refuse trackers that are not installed, or cannot write where the run is.

    Raises:
        ConfigError: naming them, and what to do.
    """
    wanted = config.to if config is not None else []
    lacking = [name for name in wanted if not importlib.util.find_spec(TRACKERS[name].package)]
    if lacking:
        raise ConfigError(
            f"tracking.to: {', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not "
            f'installed. Run `pip install "s2l-ray[{",".join(lacking)}]"`, or leave it out.'
        )
    if "tensorboard" in wanted and not run.is_local:
        raise ConfigError(
            f"tracking.to: tensorboard writes local files, and the run is in {run}. Take another "
            "tracker, or read logs/metrics-*.jsonl."
        )


@contextlib.contextmanager
def fed(config: TrackingConfig | None, run: Location) -> Iterator[None]:
    """Send all metrics inside the block to the trackers of `config`."""
    if config is None or not config.to:
        yield
        return
    feeder = _Feeder(config, run)
    with events.heard_by(feeder.hear), running_thread(feeder.feed):
        yield


class _Feeder:
    """Passes metrics on, one after the other, to every tracker that has not failed."""

    def __init__(self, config: TrackingConfig, run: Location) -> None:
        self._config, self._run = config, run
        self._records: queue.SimpleQueue[events.Event] = queue.SimpleQueue()

    def hear(self, event: events.Event) -> None:
        if event["event"] == "metrics":
            self._records.put(event)

    def feed(self, stop: threading.Event) -> None:
        """Feed the trackers, which the first record opens, until `stop` is set and none is left."""
        opened: dict[str, Any] = {}
        waiting: list[str] = [*self._config.to]
        deadline = None
        while not (stop.is_set() and self._records.empty()):
            if stop.is_set():
                deadline = deadline or time.monotonic() + SECONDS_TO_END
                if time.monotonic() >= deadline:
                    left = f"{self._records.qsize():,} records of metrics were not sent in time"
                    events.tell("notice", text=f"tracking: {left}; logs/ has them")
                    break
            with contextlib.suppress(queue.Empty):
                record = self._records.get(timeout=SECONDS_PER_LOOK)
                while waiting:
                    self._open(waiting.pop(0), opened)
                values, step = values_of(record)
                for name in list(opened):
                    with self._harmless(name, opened):
                        opened[name][0](values, step)
        for name, (_, end) in opened.items():
            with self._harmless(name):
                end()

    def _open(self, name: str, opened: dict[str, Any]) -> None:
        with self._harmless(name):
            opened[name] = TRACKERS[name].open(self._config.project, self._run.name, self._run)

    @contextlib.contextmanager
    def _harmless(self, name: str, opened: dict[str, Any] | None = None) -> Iterator[None]:
        """Say that a tracker fails inside the block, and leave it out from then on."""
        try:
            yield
        except Exception as error:
            if opened is not None:
                del opened[name]
            text = f"{name} takes no metrics, and the run goes on: {one_line(error)[:300]}"
            events.tell("notice", text=text)


def values_of(record: Mapping[str, Any]) -> tuple[dict[str, float], int]:
    """Return the numbers of a record of metrics under the names `stage/key`, and their step."""
    values = {
        f"{record['stage']}/{key}": float(value)
        for key, value in record.items()
        if key != "step" and isinstance(value, int | float)
    }
    return values, int(record["step"])


def _tensorboard(project: str, name: str, run: Location) -> tuple[Log, Callable[[], None]]:
    """Write event files to RUN/logs/tensorboard."""
    from tensorboardX import SummaryWriter

    writer = SummaryWriter((run / FOLDER / "tensorboard").uri)

    def log(values: dict[str, float], step: int) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)

    return log, writer.close


def _wandb(project: str, name: str, run: Location) -> tuple[Log, Callable[[], None]]:
    """Send to Weights & Biases; its key is in WANDB_API_KEY."""
    import wandb

    opened = wandb.init(project=project, name=name, dir=_local_folder(run))
    # The steps of several stages would not ascend: each has an axis of its own.
    opened.define_metric("*", step_metric="step")
    return lambda values, step: opened.log({**values, "step": step}), opened.finish


def _mlflow(project: str, name: str, run: Location) -> tuple[Log, Callable[[], None]]:
    """Send to the server in MLFLOW_TRACKING_URI, or without one where MLflow does by itself."""
    import mlflow
    from mlflow.entities import Metric

    mlflow.set_experiment(project)
    opened = mlflow.start_run(run_name=name, tags={"s2l.run_dir": str(run)})
    client = mlflow.MlflowClient()

    def log(values: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(_plain(key), value, now, step) for key, value in values.items()]
        client.log_batch(opened.info.run_id, metrics)

    return log, mlflow.end_run


def _trackio(project: str, name: str, run: Location) -> tuple[Log, Callable[[], None]]:
    """Write to trackio's local data base."""
    import trackio

    opened = trackio.init(project=project, name=name)
    return lambda values, step: opened.log(values, step=step), trackio.finish


def _plain(key: str) -> str:
    """Return a name that MLflow accepts."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else " " for letter in key)


def _local_folder(run: Location) -> str | None:
    return (run / FOLDER).uri if run.is_local else None


TRACKERS = {
    "tensorboard": Tracker("tensorboardX", _tensorboard),
    "wandb": Tracker("wandb", _wandb),
    "mlflow": Tracker("mlflow", _mlflow),
    "trackio": Tracker("trackio", _trackio),
}
