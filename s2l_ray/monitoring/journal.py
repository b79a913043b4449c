"""The logs of a run, in its folder `logs/`: events, metrics, printed lines, and a sign of life.

They only describe a run: no result depends on them, a log that cannot be written is said once, and
the run goes on. Locally a log is a file that grows. Objects of a store cannot grow, so there a log
is a sequence of numbered files, of which the last is written again at a bounded rate.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from s2l_ray import events, progress
from s2l_ray.background import running_thread
from s2l_ray.errors import one_line
from s2l_ray.monitoring.births import birth
from s2l_ray.storage.location import Location
from s2l_ray.version import __version__

FOLDER = "logs"
EVENTS, METRICS, LINES = "events.jsonl", "metrics.jsonl", "log.txt"
NOW = "now.json"
"""What the process is doing, written again at every beat: a sign of life."""
SECONDS_PER_BEAT, SECONDS_PER_BEAT_ON_A_STORE = 2.0, 15.0
"""Time between two writes; the second one bounds what a store asks for writing objects."""
SECONDS_PER_PROGRESS = 60.0
"""Time between two events with the progress, from which the time of a killed process is known."""
MAX_BYTES_OF_OBJECT = 256_000
"""After so much a log on a store goes on in the next object."""


@contextlib.contextmanager
def kept(run: Location, secrets: Sequence[str] = ()) -> Iterator[None]:
    """Keep the logs of `run` inside the block. Without any work in it, nothing is written.

    Args:
        run: the folder, which this process holds.
        secrets: texts that are never written.
    """
    journal = _Journal(run / FOLDER, secrets)
    with events.heard_by(journal.hear), running_thread(journal.keep):
        ended = "failed"
        try:
            events.tell("process", **_process())
            yield
            ended = "done"
        except KeyboardInterrupt:
            ended = "interrupted"
            raise
        except BaseException as error:
            events.tell("error", text=one_line(error)[:2000])
            raise
        finally:
            events.tell("ended", how=ended)
            journal.close(ended)


def _process() -> dict[str, Any]:
    return {
        "command": " ".join(sys.argv[1:])[:2000],
        "process": os.getpid(),
        "host": socket.gethostname(),
        "version": __version__,
    }


class _Journal:
    """Collects what happens, and writes it from a thread of its own."""

    def __init__(self, folder: Location, secrets: Sequence[str]) -> None:
        self._folder, self._secrets = folder, secrets
        self._beat = SECONDS_PER_BEAT if folder.is_local else SECONDS_PER_BEAT_ON_A_STORE
        make = _File if folder.is_local else _Objects
        self._logs = {name: make(folder, name) for name in (EVENTS, METRICS, LINES)}
        self._pending: dict[str, list[str]] = defaultdict(list)
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._has_work = self._has_failed = False
        self._ended = ""
        self._next_progress = time.monotonic() + SECONDS_PER_PROGRESS

    def hear(self, event: events.Event) -> None:
        """Take an event for the next write."""
        kind = event["event"]
        if kind == "line":
            name, text = LINES, "\n".join(f"{event['time']} {event['text']}".splitlines())
        elif kind == "metrics":
            known = {key: value for key, value in event.items() if key != "event"}
            name, text = METRICS, json.dumps(known)
        else:
            name, text = EVENTS, json.dumps(event)
        with self._lock:
            self._has_work = self._has_work or kind == "begin"
            self._pending[name].append(text)

    def keep(self, stop: threading.Event) -> None:
        """Write what has happened, at every beat until `stop` is set."""
        while not stop.wait(self._beat):
            if time.monotonic() >= self._next_progress:
                self._next_progress = time.monotonic() + SECONDS_PER_PROGRESS
                if (step := progress.current()) is not None:
                    events.tell("progress", **step.state().as_json())
            self._write()

    def close(self, ended: str) -> None:
        """Write all that is left, and that the process has ended."""
        self._ended = ended  # a beat that waits for this write says so as well
        self._write()

    def _write(self) -> None:
        with self._lock:
            if not self._has_work:
                return
            pending, self._pending = self._pending, defaultdict(list)
        with self._writing, self._harmless():
            for name, lines in pending.items():
                self._logs[name].append(self._without_secrets("\n".join([*lines, ""])))
            self._write_now()

    def _write_now(self) -> None:
        step = progress.current()
        now: dict[str, Any] = {"time": time.time(), "seconds_per_beat": self._beat, **_process()}
        now |= {"progress": step.state().as_json()} if step is not None else {}
        now |= {"birth": birth(os.getpid())}
        now |= {"ended": self._ended} if self._ended else {}
        text = self._without_secrets(json.dumps(now))
        (self._folder / NOW).write_bytes(text.encode())

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            for form in (secret, json.dumps(secret)[1:-1]):  # as it is, and as JSON has it
                text = text.replace(form, "[secret]")
        return text

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """Say the first failure inside the block to the user, and let none of them end the run."""
        try:
            yield
        except Exception as error:
            if not self._has_failed:
                self._has_failed = True
                # A StorageError tells what to do about a run that has ended.
                cause = one_line(error.__cause__ or error)[:300]
                text = f"the logs cannot be written; no result depends on them: {cause}"
                events.tell("notice", text=text)


class _File:
    """A log that is a local file."""

    def __init__(self, folder: Location, name: str) -> None:
        self._path = Path(folder.uri) / name

    def append(self, text: str) -> None:
        """Write `text` behind what is there."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)


class _Objects:
    """A log that is numbered objects of a store, such as `events-000000.jsonl`."""

    def __init__(self, folder: Location, name: str) -> None:
        self._folder = folder
        self._stem, _, self._suffix = name.partition(".")
        self._number: int | None = None
        self._text = ""

    def append(self, text: str) -> None:
        """Write the last object again, with `text` at its end."""
        if self._number is None:
            before = [name for name in self._folder.names() if name.startswith(f"{self._stem}-")]
            self._number = 1 + int(before[-1].split("-")[1].split(".")[0]) if before else 0
        self._text += text
        file = self._folder / f"{self._stem}-{self._number:06d}.{self._suffix}"
        content = self._text.encode(errors="backslashreplace")
        if len(content) > MAX_BYTES_OF_OBJECT:
            # Also where it cannot be written: what is in memory stays bounded.
            self._number, self._text = self._number + 1, ""
        file.write_bytes(content)


def read(run: Location, log: str = EVENTS) -> list[dict[str, Any]]:
    """Return the records of EVENTS or METRICS of `run`, oldest first; none without logs.

    A line that a killed process has not finished is left out.
    """
    stem, _, suffix = log.partition(".")
    names = (run / FOLDER).names()
    files = [n for n in names if n == log or (n.startswith(f"{stem}-") and n.endswith(suffix))]
    records = []
    for name in files:
        for line in (run / FOLDER / name).read_bytes().decode(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
    return records


def read_now(run: Location) -> dict[str, Any] | None:
    """Return the last sign of life of `run`; None if there was none, or none that can be read."""
    file = run / FOLDER / NOW
    with contextlib.suppress(ValueError):
        now = json.loads(file.read_bytes()) if file.is_file() else None
        if isinstance(now, dict) and isinstance(now.get("time"), float | int):
            return now
    return None
