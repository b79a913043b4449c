"""A line of progress for each stage: rows done, speed and time left."""

import sys
import time
from types import TracebackType

LABEL_WIDTH = 40
"""Columns for the name of a step, including the space to its right."""


class Progress:
    """A line on standard error: updated in place on a terminal, printed every 10 s to a log."""

    def __init__(self, stage: str, total: int = 0, unit: str = "rows") -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self.reached: int | None = None
        """Units that are done; None while no work is in progress, as before `start`."""
        self._tokens = 0
        self._started = time.monotonic()
        self._skipped = 0
        self._terminal = sys.stderr.isatty()
        self._next = self._started + (0.2 if self._terminal else 10.0)
        self._shown = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown and self._terminal:
            print(file=sys.stderr)

    def start(self, total: int, unit: str = "rows", *, done: int = 0) -> None:
        """Begin to count to `total`; the speed leaves out `done`, which was finished before."""
        self.total, self.unit = total, unit
        self.reached = self._skipped = done
        self._tokens = 0
        self._started = time.monotonic()

    def update(self, done: int, tokens: int = 0, note: str = "") -> None:
        """Add `done` finished units and their `tokens` tokens; `note` ends the line."""
        self.reached = (self.reached or 0) + done
        self._tokens += tokens
        now = time.monotonic()
        if now >= self._next:
            self._next = now + (0.2 if self._terminal else 10.0)
            self._show(now - self._started, note)

    def pause(self) -> None:
        """Mark that no work is in progress until the next `start`."""
        self.reached = None

    def _show(self, seconds: float, note: str) -> None:
        start, end = ("\r", "\x1b[K") if self._terminal else ("", "\n")
        sys.stderr.write(f"{start}  {self.stage:<{LABEL_WIDTH}}{self._line(seconds, note)}{end}")
        sys.stderr.flush()
        self._shown = True

    def _line(self, seconds: float, note: str) -> str:
        of = f" of {self.total:,}" if self.total else ""
        done = self.reached or 0
        fields = [f"{done:,}{of} {self.unit}"]
        if self._tokens and seconds >= 1:
            fields.append(f"{self._tokens / seconds:,.0f} tokens/s")
        fresh = done - self._skipped
        # The first of a few large units is no measure: its time includes the start of the workers.
        if self.total and fresh > 1:
            left = seconds * (self.total - done) / fresh
            fields.append(f"{duration(left)} left")
        return "   ".join([*fields, note] if note else fields)


def duration(seconds: float) -> str:
    """Write seconds as hours, minutes and seconds: 3661 as '1:01:01', 75 as '1:15'."""
    whole = max(round(seconds), 0)
    hours, rest = divmod(whole, 3600)
    minutes, seconds_left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds_left:02}" if hours else f"{minutes}:{seconds_left:02}"
