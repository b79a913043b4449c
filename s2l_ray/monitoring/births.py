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
    if place is None or not known.startswith(f"{place} "):
        return False
    now = birth(process)
    return now != known and (now is not None or not _is_hidden(process))


def _is_hidden(process: int) -> bool:
    """Tell whether there is a process of another user, whose folder /proc may not show."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _place() -> str | None:
    """Return the boot of this machine, and the space of numbers of processes that is seen here."""
    try:
        boot = (_PROC / "sys" / "kernel" / "random" / "boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self' / 'ns' / 'pid')}"
    except OSError:
        return None
