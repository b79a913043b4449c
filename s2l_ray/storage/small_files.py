"""Small JSON files of a run, such as manifests: few requests for each, on an object store.

A file that is missing is one request, where looking for a folder of its name as well would be two.
While a run is held, by its lock, no other process writes its manifests, so each is read once.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from s2l_ray.errors import StorageError
from s2l_ray.storage.location import Location


@dataclass
class _Known:
    """What was read below a folder: URI -> JSON text, or None for a file that is not there."""

    folder: Location
    text_by_uri: dict[str, str | None] = field(default_factory=dict)

    def holds(self, file: Location) -> bool:
        return file.uri.startswith(f"{self.folder.uri}/")


_known: list[_Known] = []


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
    if known is not None and file.uri in known.text_by_uri:
        text = known.text_by_uri[file.uri]
        return None if text is None else json.loads(text)
    value = read_anew(file)
    if known is not None:
        known.text_by_uri[file.uri] = None if value is None else json.dumps(value)
    return value


def write(file: Location, value: Any) -> None:
    """Write `value` as JSON, whole or not at all."""
    file.write_json(value)
    for known in filter(lambda known: known.holds(file), _known):
        known.text_by_uri[file.uri] = json.dumps(value)


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
    for known in _known:
        for uri in list(known.text_by_uri):
            if f"{uri}/".startswith(f"{location.uri}/"):
                known.text_by_uri.pop(uri, None)  # another thread may have forgotten it


def read_anew(file: Location) -> Any | None:
    """Return the value in a JSON file as it is now; None if there is no such file."""
    try:
        return file.read_json()
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return None
        raise
