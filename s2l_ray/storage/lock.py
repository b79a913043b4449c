"""One process at a time in a run's folder: `flock` locally, a lease on an object store."""

import contextlib
import fcntl
import os
import threading
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from s2l_ray.background import running_thread
from s2l_ray.errors import StorageError
from s2l_ray.storage.location import Location, explained

LEASE_SECONDS = 60.0
SETTLE_SECONDS = 2.0
"""Between the writing of a lease and the look that says whose it is."""


@contextlib.contextmanager
def exclusive(folder: Location) -> Iterator[None]:
    """Only one process holds `folder` at a time; a dead holder's claim lapses.

    Locally `flock`, which the kernel drops with the process. On an object store a lease of
    LEASE_SECONDS, renewed while the block runs.

    Raises:
        StorageError: another process holds it.
    """
    guard = _flock(folder) if folder.is_local else _lease(folder)
    with guard:
        yield


@contextlib.contextmanager
def _flock(folder: Location) -> Iterator[None]:
    path = Path(folder.uri) / ".lock"
    with explained(folder, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(_held(folder, os.read(handle, 100).decode().strip())) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()}".encode(), 0)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _lease(folder: Location) -> Iterator[None]:
    claim, mine = folder / "lease.json", uuid.uuid4().hex
    if claim.exists() and (left := claim.read_json()["until"] - time.time()) > 0:
        raise StorageError(_held(folder, f"a lease for {left:.0f} s more"))
    _renew(claim, mine)
    # Of two that saw it free at the same moment, the one that wrote last has it.
    time.sleep(SETTLE_SECONDS)
    if claim.read_json()["holder"] != mine:
        raise StorageError(_held(folder, "a lease that was taken at the same moment"))
    try:
        with running_thread(partial(_keep, claim, mine)):
            yield
    finally:
        if claim.read_json()["holder"] == mine:
            claim.remove()


def _renew(claim: Location, mine: str) -> None:
    claim.write_json({"holder": mine, "until": time.time() + LEASE_SECONDS})


def _keep(claim: Location, mine: str, stop: threading.Event) -> None:
    """Renew the lease until it is no longer wanted, or somebody else's."""
    while not stop.wait(LEASE_SECONDS / 6):
        # A store that does not answer once has five more tries before the lease lapses.
        with contextlib.suppress(StorageError):
            if claim.read_json()["holder"] != mine:
                return
            _renew(claim, mine)


def _held(folder: Location, holder: str) -> str:
    return (
        f"{folder} is in use by another run ({holder}). Wait for it, stop it, or give this run "
        f"another run_dir."
    )
