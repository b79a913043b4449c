"""The work in progress: what it waits for, how much of it is done, how fast, and the time left.

A step makes one `Progress` and reports to it. Displays, logs and Ray's metrics look at `current()`
whenever they want to; nothing is shown from here.
"""

import time
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from s2l_ray.errors import one_line
from s2l_ray.events import tell

LABEL_WIDTH = 40
"""Columns for the name of a step, including the space to its right."""


def label_column(label: str) -> str:
    """Return the name of a step with space to its right, also where it is long."""
    return f"{label}  ".ljust(LABEL_WIDTH)


@dataclass(frozen=True)
class State:
    """A step at one moment.

    Attributes:
        stage: the name of the step.
        seconds: since it began.
        doing: what it does or waits for; "" while units are being done.
        done: finished units; None while none can be done yet.
        total: all units; 0 if it is unknown.
        unit: their name.
        tokens_per_second: since the units were begun; None where none are counted.
        seconds_left: an estimate; None if there is none.
        note: further numbers, as text.
        workers: how many workers have started, and how many are to start; None if it is unknown.
    """

    stage: str
    seconds: float
    doing: str = ""
    done: int | None = None
    total: int = 0
    unit: str = "rows"
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    note: str = ""
    workers: tuple[int, int] | None = None

    def text(self) -> str:
        """Return a line for people, without the name of the step."""
        fields = []
        if self.done is not None:
            of = f" of {self.total:,}" if self.total else ""
            fields.append(f"{self.done:,}{of} {self.unit}")
        fields += [self.doing] if self.doing else []
        if self.tokens_per_second is not None:
            fields.append(f"{self.tokens_per_second:,.0f} tokens/s")
        if self.seconds_left is not None:
            fields.append(f"{duration(self.seconds_left)} left")
        else:
            fields.append(f"{duration(self.seconds)} so far")
        return "   ".join([*fields, self.note] if self.note else fields)

    def line(self) -> str:
        """Return a line for people."""
        return f"  {label_column(self.stage)}{self.text()}"

    def as_json(self) -> dict[str, Any]:
        """Return what is known, as values of JSON."""
        meaningless = ("total", "unit") if self.done is None else ()
        known = {
            key: value
            for key, value in asdict(self).items()
            if value not in (None, "") and key not in meaningless
        }
        rounded = ("seconds", "seconds_left", "tokens_per_second")
        return {key: round(v, 1) if key in rounded else v for key, v in known.items()}


class Progress:
    """The progress of one step. Inside its `with` block it is what the process is doing."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.reached: int | None = None
        """Units that are done; None while no work is in progress, as before `start`."""
        self.workers: tuple[int, int] | None = None
        """Workers that have started, and that are to start, as whoever counts them says."""
        self.is_to_stop = False
        """True once the process is to end when this step is finished."""
        self.total, self.unit, self._doing, self._note = 0, "rows", "", ""
        self._tokens = self._skipped = 0
        self._begun = self._started = time.monotonic()

    def __enter__(self) -> "Progress":
        self._begun = self._started = time.monotonic()
        _open.append(self)
        tell("begin", stage=self.stage)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _open.remove(self)
        seconds = round(time.monotonic() - self._begun, 1)
        if error is None:
            tell("end", stage=self.stage, seconds=seconds)
        elif isinstance(error, Exception):
            tell("failed", stage=self.stage, seconds=seconds, error=one_line(error)[:500])
        else:
            tell("interrupted", stage=self.stage, seconds=seconds)

    def start(self, total: int, unit: str = "rows", *, done: int = 0) -> None:
        """Begin to count to `total`; the speed leaves out `done`, which was finished before."""
        self.total, self.unit = total, unit
        self.reached = self._skipped = done
        self._tokens, self._doing, self._note = 0, "", ""
        self._started = time.monotonic()

    def update(self, done: int, tokens: int = 0, note: str = "") -> None:
        """Add `done` finished units and their `tokens` tokens; `note` ends the line."""
        self.reached = (self.reached or 0) + done
        self._tokens += tokens
        self._note = note
        if done:
            self._doing = ""

    def doing(self, what: str) -> None:
        """Say what is done or waited for, until the next unit is finished."""
        self._doing = what

    def pause(self) -> None:
        """Mark that no work is in progress until the next `start`."""
        self.reached = None

    def state(self) -> State:
        """Return how far it is now."""
        now = time.monotonic()
        seconds = now - self._started
        fresh = (self.reached or 0) - self._skipped
        counts = self.reached is not None
        speed = self._tokens / seconds if counts and self._tokens and seconds >= 1 else None
        left = None
        # The first of a few large units is no measure: its time includes the start of the workers.
        if counts and self.total and fresh > 1:
            left = seconds * (self.total - (self.reached or 0)) / fresh
        doing = self._doing
        if self.workers is not None and self.workers[0] < self.workers[1] and not fresh:
            doing = f"starting workers ({self.workers[0]} of {self.workers[1]})"
        return State(
            self.stage,
            now - self._begun,
            doing,
            self.reached,
            self.total,
            self.unit,
            speed,
            left,
            self._note,
            self.workers,
        )


_open: list[Progress] = []


def current() -> Progress | None:
    """Return the step that this process is doing, the innermost of several; None for none."""
    last = _open[-1:]
    return last[0] if last else None


def doing(what: str) -> None:
    """Say what the current step does or waits for, if there is one."""
    progress = current()
    if progress is not None:
        progress.doing(what)


def duration(seconds: float) -> str:
    """Write seconds as hours, minutes and seconds: 3661 as '1:01:01', 75 as '1:15'."""
    whole = max(round(seconds), 0)
    hours, rest = divmod(whole, 3600)
    minutes, seconds_left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds_left:02}" if hours else f"{minutes}:{seconds_left:02}"
