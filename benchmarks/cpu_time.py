"""CPU seconds of a command and of all processes below it, daemons as well."""

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ACCOUNTS = Path("/sys/fs/cgroup/cpuacct")
"""Where Linux keeps accounts of groups of processes (version 1); root may open one."""


def measured(command: Sequence[str]) -> tuple[float, float]:
    """Run a command; return its seconds, and the CPU seconds of all processes that it started.

    Without an account of its own, the CPU seconds are those of the machine: nothing else may run.
    """
    with _account() as (join, cpu_seconds):
        cpu, started = cpu_seconds(), time.perf_counter()
        subprocess.run(
            command,
            check=True,
            preexec_fn=join,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return time.perf_counter() - started, cpu_seconds() - cpu


@contextlib.contextmanager
def _account() -> Iterator[tuple]:
    """Yield a function that moves the process that calls it into an account, and its reader."""
    if not os.access(ACCOUNTS, os.W_OK):
        yield (lambda: None), _of_machine
        return
    folder = Path(tempfile.mkdtemp(dir=ACCOUNTS))
    try:
        yield (
            lambda: (folder / "cgroup.procs").write_text(str(os.getpid())) and None,
            lambda: int((folder / "cpuacct.usage").read_text()) / 1e9,
        )
    finally:
        with contextlib.suppress(OSError):  # a process of it has not ended yet
            folder.rmdir()


def _of_machine() -> float:
    """Return the seconds that all processes of the machine have had so far."""
    user, nice, system, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")
