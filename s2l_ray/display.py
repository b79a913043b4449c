"""Displays of a run, for people and for collectors of logs: lines, and the work in between.

A display is called with each line. While it is open, it also shows the step in progress: on a
terminal in a line that is updated in place, elsewhere as a line wherever nothing was said for
SECONDS_OF_SILENCE, so that nobody has to ask whether the program is still alive.
"""

import contextlib
import functools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import IO, TYPE_CHECKING, ParamSpec, TypeVar, cast

from s2l_ray import events, progress
from s2l_ray.background import running_thread

if TYPE_CHECKING:
    from rich.console import ConsoleRenderable

SECONDS_OF_SILENCE = 9.0
"""With what a busy process adds, less than ten."""
SECONDS_PER_LOOK = 0.5
FORMATS = ("text", "json")
Say = Callable[[str], None]
P = ParamSpec("P")
T = TypeVar("T")


class Display:
    """Says lines, one after the other, from whatever thread; a subclass shows the rest."""

    def __init__(self, say: Say = print) -> None:
        self._say = say
        # The handler of Ctrl-C may speak while its own thread does.
        self._lock = threading.RLock()
        self._last = time.monotonic()

    def __call__(self, line: str) -> None:
        """Say a line, and tell it to the logs."""
        self._write(line)
        events.tell("line", text=line)

    def _write(self, line: str) -> None:
        with self._lock:
            self._say(line)
            self._last = time.monotonic()

    @contextlib.contextmanager
    def open(self) -> Iterator["Display"]:
        """Show the work in progress, and what was noticed, inside the block."""
        with events.heard_by(self._hear), running_thread(self._watch):
            yield self

    def _hear(self, event: events.Event) -> None:
        if event["event"] == "notice":
            self(str(event["text"]))

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(SECONDS_PER_LOOK):
            self.look()

    def look(self) -> None:
        """Show the work in progress if nothing was said for too long."""
        now = progress.current()
        if now is not None and time.monotonic() - self._last >= SECONDS_OF_SILENCE:
            self._show(now.state())

    def _show(self, state: progress.State) -> None:
        self(state.line())


class JsonLines(Display):
    """Prints an object of JSON in each line: an event, or a line that is said.

    Metrics, of which there are some at every step, are in the logs of the run alone.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        super().__init__(lambda line: print(line, file=stream, flush=True))

    def __call__(self, line: str) -> None:
        events.tell("line", text=line)

    def _hear(self, event: events.Event) -> None:
        if event["event"] != "metrics":
            self._write(json.dumps(event))

    def _show(self, state: progress.State) -> None:
        events.tell("progress", **state.as_json())


class Terminal(Display):
    """Updates a line at the bottom of a terminal several times a second."""

    @contextlib.contextmanager
    def open(self) -> Iterator["Display"]:
        """Show the work in progress inside the block."""
        from rich.console import Console
        from rich.live import Live

        # A handle of its own, because Ray's start has its standard error held back.
        with os.fdopen(os.dup(sys.stderr.fileno()), "w") as terminal:
            live = Live(
                get_renderable=_live_line,
                console=Console(file=terminal, force_terminal=True, highlight=False),
                refresh_per_second=4,
                transient=True,
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=False,
            )
            with live, events.heard_by(self._hear):
                yield self


def _live_line() -> "ConsoleRenderable":
    """Return what rich shows now: a spinner with the state of the step in progress."""
    from rich.table import Table
    from rich.text import Text

    now = progress.current()
    if now is None:
        return Text("")
    state = now.state()
    line = Table.grid(padding=(0, 1))
    for _ in range(3):
        line.add_column(no_wrap=True, overflow="ellipsis")
    frame = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"[int(time.monotonic() * 8) % 10]
    line.add_row(Text(frame, style="cyan"), Text(state.stage, style="bold"), Text(state.text()))
    return line


def for_commands(log_format: str = "text") -> Display:
    """Return the display of a command, for its standard output and error as they are."""
    return JsonLines() if log_format == "json" else _of_text(_print_at_once)


@contextlib.contextmanager
def at_work(command: str) -> Iterator[None]:
    """Show on standard error that `command` is at work, whose standard output is its result."""
    with _of_text(_print_error_at_once).open(), progress.Progress(command):
        yield


def _of_text(say: Say) -> Display:
    return Terminal(say) if sys.stderr.isatty() else Display(say)


def with_display(function: Callable[P, T]) -> Callable[P, T]:
    """Let `function` also show its work in progress, by its argument `say`.

    If `say` is a display, it is open and does so itself.
    """

    @functools.wraps(function)
    def shown(*arguments: P.args, **named: P.kwargs) -> T:
        say = cast(Say, named.get("say", print))
        opened = nullcontext(say) if isinstance(say, Display) else Display(say).open()
        with opened as display:
            return function(*arguments, **{**named, "say": display})  # type: ignore[arg-type]

    return shown


def _print_at_once(line: str) -> None:
    print(line, flush=True)


def _print_error_at_once(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
