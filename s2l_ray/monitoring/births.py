"""Births of processes: they tell, where a process ran, whether it is still there.

Numbers of processes are given again, and each container has its own. So a birth names the boot of
the machine, the container, and the time at which the process began.
"""

import os
from pathlib import Path

_PROC = Path("/proc")
_STATE, _START = 0, 19
"""Places of values in /proc/NUMBER/stat, behind the name, which may hold anything."""


def birth(process: int) -> str | None:
    """Return the birth of a process; None if it is not there, or the system does not say.

    A process that has ended, and that its parent has not looked at yet, is not there.
    """
    try:
        text = (_PROC / str(process) / "stat").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    values = text.rpartition(")")[2].split()
    place = _place()
    return None if place is None or values[_STATE] in "ZX" else f"{place} {values[_START]}"


def is_gone(process: int, known: str) -> bool:
    """Tell whether a process with this birth is no more; False where that cannot be seen."""
    place = _place()
    return place is not None and known.startswith(f"{place} ") and birth(process) != known


def _place() -> str | None:
    """Return the boot of this machine, and the space of numbers of processes that is seen here."""
    try:
        boot = (_PROC / "sys" / "kernel" / "random" / "boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self' / 'ns' / 'pid')}"
    except OSError:
        return None
