"""The board of a training: rank 0 writes its steps there, and the driver shows and records them.

It is an actor beside the driver. Over it the driver also asks the workers to stop.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from s2l_ray import events
from s2l_ray.background import running_thread
from s2l_ray.distributed.waiting import LostRoom
from s2l_ray.errors import first
from s2l_ray.progress import Progress

HELD_OUT = "held_out_loss_nats/"
"""The key of the loss of a held-out set is this and its name."""
MEASURING = "measuring the held-out loss"
SECONDS_PER_LOOK = 0.5
SECONDS_PER_BEAT, SECONDS_WITHOUT_BEAT = 1.0, 5.0
"""Time between two beats of rank 0, and time after which it counts as dead or unable to work."""


@dataclass(frozen=True)
class Written:
    """What the board has for the driver.

    Attributes:
        attempt: a number that changes when a new rank 0 begins.
        doing: what rank 0 does before its first step, or between two.
        start: the steps that were done before; None until it makes steps.
        records: what is new since the last look. Of a step: `step`, `loss_nats`, `num_tokens` and
            more. Of a measurement after it: `step`, and HELD_OUT with each set's name.
    """

    attempt: int
    doing: str
    start: int | None
    records: list[dict[str, Any]]


@ray.remote(num_cpus=0)
class _Board:
    """Holds what rank 0 writes until the driver reads it."""

    def __init__(self) -> None:
        self._attempt, self._doing = 0, ""
        self._start: int | None = None
        self._records: list[dict[str, Any]] = []
        self._beat, self._stop = 0.0, False

    def doing(self, what: str) -> None:
        self._doing, self._start, self._records = what, None, []

    def busy(self, what: str) -> None:
        self._doing = what

    def begin(self, start: int) -> None:
        self._attempt += 1
        self._doing, self._start, self._records = "", start, []

    def add(self, record: dict[str, Any]) -> None:
        self._doing = ""
        self._records.append(record)

    def beat(self) -> bool:
        """Note that rank 0 is alive, and return True if it is to stop."""
        self._beat = time.monotonic()
        return self._stop

    def stop(self) -> None:
        self._stop = True

    def read(self) -> Written | None:
        """Return what was written since the last call; None while rank 0 gives no sign of life."""
        if time.monotonic() - self._beat > SECONDS_WITHOUT_BEAT:
            return None
        records, self._records = self._records, []
        return Written(self._attempt, self._doing, self._start, records)


def of_driver() -> Any:
    """Return a new board, on the node of the driver."""
    here = ray.get_runtime_context().get_node_id()
    beside = NodeAffinitySchedulingStrategy(here, soft=False)
    return _Board.options(scheduling_strategy=beside).remote()  # type: ignore[attr-defined]


@contextlib.contextmanager
def shown(board: Any, total_steps: int, progress: Progress, room: LostRoom) -> Iterator[None]:
    """Show and tell what is written on the board, inside the block; then end the board.

    While rank 0 gives no sign of life, `room` is looked at.
    """
    progress.doing("starting workers")
    try:
        with running_thread(partial(_show, board, total_steps, progress, room)):
            yield
    finally:
        ray.kill(board)


def _show(
    board: Any, total_steps: int, progress: Progress, room: LostRoom, stop: threading.Event
) -> None:
    attempt, stopped, notes = 0, False, dict[str, str]()
    while not stopped:  # with a last look after the training has ended
        stopped = stop.wait(SECONDS_PER_LOOK)
        written, lacking = None, ""
        with contextlib.suppress(ray.exceptions.RayError):
            written = ray.get(board.read.remote())
            if written is None:
                lacking = room.look()
            else:
                room.regained()
        if written is None or written.start is None:
            progress.pause()
            waits = "no sign of life from the workers" if attempt else "starting workers"
            progress.doing(written.doing if written is not None else lacking or waits)
            continue
        if written.attempt != attempt or progress.reached is None:
            if attempt and written.attempt != attempt:
                events.tell("restarted", stage=progress.stage, step=written.start)
            elif not attempt and written.start:
                text = f"{progress.stage}: going on after step {written.start:,} of {total_steps:,}"
                events.tell("notice", text=text)
            attempt = written.attempt
            progress.start(total_steps, "steps", done=written.start)
        for record in written.records:
            events.tell("metrics", stage=progress.stage, **record)
            steps = record["step"] - (progress.reached or 0)
            notes |= _notes(record)
            progress.update(steps, record.get("num_tokens", 0), "   ".join(notes.values()))
        if not progress.is_to_stop:
            progress.doing(written.doing)


def _notes(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the losses of a record as the line of the training shows them, by kind."""
    if "loss_nats" in record:
        return {"loss": f"loss {record['loss_nats']:.3f}"}
    losses = [
        f"{key.removeprefix(HELD_OUT)} {value:.3f}"
        for key, value in record.items()
        if key.startswith(HELD_OUT)
    ]
    return {HELD_OUT: f"held-out {first(losses)}"}


class Writer:
    """Writes on the board as rank 0, and learns from it that the training is to stop."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._stop = threading.Event()
        self._last = time.monotonic()
        self.doing("loading libraries")  # before its first sign of life: it may follow a dead one
        threading.Thread(target=self._beat, daemon=True).start()

    @property
    def is_to_stop(self) -> bool:
        return self._stop.is_set()

    def doing(self, what: str) -> None:
        """Write what is done before the first step."""
        self._board.doing.remote(what)

    def begin(self, start: int) -> None:
        """Write that the steps after `start` begin."""
        self._last = time.monotonic()
        self._board.begin.remote(start)

    def add(self, record: dict[str, Any]) -> None:
        """Write a finished step, with its speed."""
        now = time.monotonic()
        speed = record["num_tokens"] / max(now - self._last, 1e-6)
        self._last = now
        self._board.add.remote({**record, "tokens_per_second": round(speed, 1)})

    def busy(self, what: str) -> None:
        """Write what is done before the next step."""
        self._board.busy.remote(what)

    def add_held_out(self, step: int, loss_nats: Mapping[str, float]) -> None:
        """Write the loss of each held-out set after a step, and how long it took to measure."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        losses = {f"{HELD_OUT}{name}": loss for name, loss in loss_nats.items()}
        record = {"step": step, **losses, "held_out_seconds": round(seconds, 2)}
        self._board.add.remote(record)

    def _beat(self) -> None:
        """Tell the board for ever that this process is alive, so that the driver sees its end."""
        with contextlib.suppress(ray.exceptions.RayError):
            while True:
                if ray.get(self._board.beat.remote()):
                    self._stop.set()
                time.sleep(SECONDS_PER_BEAT)
