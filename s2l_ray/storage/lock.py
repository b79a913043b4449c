"""The lock of a run's folder: `flock` on a local disk, a lease on an object store."""

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
from s2l_ray.storage import small_files
from s2l_ray.storage.failures import explained
from s2l_ray.storage.location import Location

LEASE_SECONDS = 60.0
"""Seconds until a lease ends that its holder no longer renews."""
SETTLE_SECONDS = 2.0
"""Seconds between writing a lease and checking who holds it."""


@contextlib.contextmanager
def exclusive(folder: Location) -> Iterator[None]:
    """Hold `folder` for this process alone while the block runs.

    A local folder is held by `flock`, which the kernel releases when the process ends. A folder on
    an object store is held by a lease of LEASE_SECONDS, which is renewed while the block runs.

    Raises:
        StorageError: another process holds the folder.
    """
    guard = _flock(folder) if folder.is_local else _lease(folder)
    with guard:
        yield


@contextlib.contextmanager
def _flock(folder: Location) -> Iterator[None]:
    """Hold a local folder by a lock on the file `.lock` in it."""
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
    """Hold a folder on an object store by the file `lease.json` in it."""
    claim, mine = folder / "lease.json", uuid.uuid4().hex
    held = small_files.read_anew(claim)
    if held is not None and (left := held["until"] - time.time()) > 0:
        raise StorageError(_held(folder, f"a lease for {left:.0f} s more"))
    _renew(claim, mine)
    # If two processes saw it free at the same moment, the one that wrote last holds it.
    time.sleep(SETTLE_SECONDS)
    if claim.read_json()["holder"] != mine:
        raise StorageError(_held(folder, "a lease that was taken at the same moment"))
    try:
        with running_thread(partial(_keep, claim, mine)):
            yield
    except BaseException:
        # A store that has failed may refuse this, too; what ended the work is told.
        with contextlib.suppress(StorageError):
            _give_back(claim, mine)
        raise
    _give_back(claim, mine)


def _give_back(claim: Location, mine: str) -> None:
    if claim.read_json()["holder"] == mine:
        claim.remove()


def _renew(claim: Location, mine: str) -> None:
    """Write a lease for the holder `mine` that ends LEASE_SECONDS from now."""
    claim.write_json({"holder": mine, "until": time.time() + LEASE_SECONDS})


def _keep(claim: Location, mine: str, stop: threading.Event) -> None:
    """Renew the lease until `stop` is set, or another process holds it."""
    while not stop.wait(LEASE_SECONDS / 6):
        # If the store does not answer once, there are five more tries before the lease ends.
        with contextlib.suppress(StorageError):
            if claim.read_json()["holder"] != mine:
                return
            _renew(claim, mine)


def _held(folder: Location, holder: str) -> str:
    """Return the message that another process holds `folder`."""
    return (
        f"{folder} is in use by another run ({holder}). Wait for it, stop it, or give this run "
        f"another run_dir."
    )
