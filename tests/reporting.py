"""Print a line for each file, slow tests, failures at once, and all stacks of a test that hangs.

A test that is over its limit shows the stacks of this process and of the Python processes under
it, and the command lines of the others, before it fails.
"""

import contextlib
import faulthandler
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import pytest_timeout

STACKS = "TESTS_STACKS"
"""The variable that names the folder into which processes write their stacks."""
HOOK = Path(__file__).parent / "stacks_of_children"
"""Holds a sitecustomize.py: Python processes that have it on their path write their stacks."""
SLOW_SECONDS = 10.0
GRACE_SECONDS = 60.0
"""So long after its limit, a test that no signal ends is ended with its process."""
MAX_STACK_LINES = 60
MAX_REASON_LINES = 12

_terminal_descriptor = pytest.StashKey[int]()


@dataclass
class FileSoFar:
    """What a worker has reported of the tests of one file."""

    name: str
    started: float
    ended: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)


class Lines:
    """`tests/folder/test_x.py    12 passed, 1 skipped    3.4 s`, when a file is done."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self.terminal = terminal
        self.running: dict[str, FileSoFar] = {}
        """By worker; a run without workers has one, the empty name."""
        self.seconds_of_test: dict[str, float] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Print no letter for a test: the line of its file says how many there are of a kind."""
        kind = self.kind(report)
        return (kind, "", kind.upper()) if kind else None

    def kind(self, report: pytest.TestReport) -> str:
        """Return the outcome that this report adds to the counts, if any."""
        if report.failed and report.when != "call":
            return "error"
        return report.outcome if report.when == "call" or report.skipped else ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file, _, name = report.nodeid.partition("::")
        worker = getattr(report, "worker_id", "")
        if worker not in self.running or self.running[worker].name != file:
            self.close(worker)
            self.running[worker] = FileSoFar(file, report.start)
        self.running[worker].ended = report.stop
        self.seconds_of_test[worker] = report.duration + (
            0.0 if report.when == "setup" else self.seconds_of_test[worker]
        )
        if kind := self.kind(report):
            self.running[worker].counts[kind] += 1
        if report.failed:
            self.terminal.write_line(f"  FAILED {report.nodeid} ({report.when})", red=True)
            reason = getattr(getattr(report.longrepr, "reprcrash", None), "message", "")
            self.terminal.write_line("\n".join(reason.splitlines()[:MAX_REASON_LINES]))
        elif report.when == "teardown" and self.seconds_of_test[worker] >= SLOW_SECONDS:
            self.terminal.write_line(f"{self.seconds_of_test[worker]:9.1f} s  {name}")

    def pytest_sessionfinish(self) -> None:
        for worker in list(self.running):
            self.close(worker)

    def close(self, worker: str) -> None:
        """Print the line of the file that this worker has been at."""
        if done := self.running.pop(worker, None):
            counts = ", ".join(f"{number} {outcome}" for outcome, number in done.counts.items())
            seconds = done.ended - done.started
            self.terminal.write_line(f"{seconds:9.1f} s  {done.name}  {counts}")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.getplugin("terminalreporter")
    if terminal is not None and config.option.verbose <= 0:
        config.pluginmanager.register(Lines(terminal), "lines-of-files")
    config.stash[_terminal_descriptor] = os.dup(2)  # before the output of tests is captured
    folder = tempfile.mkdtemp(prefix="s2l-stacks-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ[STACKS] = folder
    paths = [str(HOOK), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings) -> bool:
    """Take the place of the plugin's timer: processes that a test waits for are shown as well.

    They are asked before the test fails, since whoever waits for them ends them then.
    """

    def over(signum, frame) -> None:
        print(f"processes under this one:\n{stacks_of_children()}", file=sys.stderr)
        pytest_timeout.timeout_sigalrm(item, settings)

    def cancel() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.cancel_dump_traceback_later()

    item.cancel_timeout = cancel
    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout)
    # Code in C that lets no handler run is ended, and the whole session with it.
    descriptor = item.config.stash[_terminal_descriptor]
    faulthandler.dump_traceback_later(settings.timeout + GRACE_SECONDS, exit=True, file=descriptor)
    return True


def stacks_of_children() -> str:
    """The command line of every process below this one, and of those in Python, their stacks."""
    folder, found = Path(os.environ[STACKS]), []
    children = psutil.Process().children(recursive=True)
    asked = [child for child in children if (folder / str(child.pid)).exists()]
    for child in asked:
        with contextlib.suppress(psutil.Error):
            child.send_signal(signal.SIGUSR1)
    time.sleep(1 if asked else 0)  # they write while we wait; one that cannot is shown without
    for child in children:
        with contextlib.suppress(psutil.Error):
            found.append(f"{child.pid}: {' '.join(child.cmdline())[:300] or child.name()}")
        if child in asked:
            lines = (folder / str(child.pid)).read_text(errors="replace").splitlines()
            found += [f"    {line}" for line in lines[:MAX_STACK_LINES]]
    return "\n".join(found) or "none"
