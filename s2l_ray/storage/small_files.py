"""Small JSON files of a run, such as manifests: few requests for each, on an object store.

A file that is missing is one request, where looking for a folder of its name as well would be two.
While a run is held, by its lock, no other process writes its manifests, so each is read once.
"""

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from s2l_ray.errors import StorageError
from s2l_ray.storage.location import Location


@dataclass
class _Known:
    """What was read below a folder.

    Attributes:
        text_by_uri: JSON text, or None for a file that is not there.
        changes: how many changes by this process have ended.
    """

    folder: Location
    text_by_uri: dict[str, str | None] = field(default_factory=dict)
    changes: int = 0

    def holds(self, file: Location) -> bool:
        return file.uri.startswith(f"{self.folder.uri}/")

    def keep(self, file: Location, value: Any | None, changes: int) -> None:
        """Keep the value of a file, unless another thread has ended a change since `changes`.

        What was read or written beside it may not be what the file holds in the end.
        """
        with _lock:
            if self.changes == changes:
                self.text_by_uri[file.uri] = None if value is None else json.dumps(value)

    def forget(self, location: Location) -> None:
        """Forget a file, and all files below it, which have changed."""
        with _lock:
            self.changes += 1
            for uri in list(self.text_by_uri):
                if f"{uri}/".startswith(f"{location.uri}/"):
                    del self.text_by_uri[uri]


_known: list[_Known] = []
_lock = threading.Lock()
"""Held while what is known changes."""


@contextlib.contextmanager
def read_once(folder: Location) -> Iterator[None]:
    """Read each file below `folder` once inside the block, but for what this process changes.

    Only `read`, `write` and `remove` of this module are concerned. The caller makes sure that no
    other process writes these files meanwhile, or that what it sees may be some seconds old.
    """
    _known.append(own := _Known(folder))
    try:
        yield
    finally:
        _known[:] = [other for other in _known if other is not own]


def read(file: Location) -> Any | None:
    """Return the value in a JSON file; None if there is no such file.

    Raises:
        StorageError: the file cannot be read, or is not JSON.
    """
    known = next((each for each in _known if each.holds(file)), None)
    if known is None:
        return read_anew(file)
    changes = known.changes
    with contextlib.suppress(KeyError):  # another thread may forget it at any time
        text = known.text_by_uri[file.uri]
        return None if text is None else json.loads(text)
    value = read_anew(file)
    known.keep(file, value, changes)
    return value


def write(file: Location, value: Any) -> None:
    """Write `value` as JSON, whole or not at all."""
    before = [(known, known.changes) for known in _known if known.holds(file)]
    try:
        file.write_json(value)
    finally:
        forget(file)
    for known, changes in before:
        known.keep(file, value, changes + 1)  # this change is the one


def remove(location: Location) -> None:
    """Remove a file or folder, if it exists."""
    location.remove()
    forget(location)


def remove_of(folder: Location, *names: str) -> None:
    """Remove what `folder` has of these names: it is listed once, not searched for each of them."""
    for name in {*names} & {*folder.names()}:
        remove(folder / name)


def forget(location: Location) -> None:
    """Read a file, and all files below it, again: this process has changed them in another way."""
    for known in list(_known):
        known.forget(location)


def read_anew(file: Location) -> Any | None:
    """Return the value in a JSON file as it is now; None if there is no such file."""
    try:
        return file.read_json()
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return None
        raise
