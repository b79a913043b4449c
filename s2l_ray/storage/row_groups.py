"""Row groups of a Parquet file that stays where its owner put it."""

import platform
import shlex
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from s2l_ray.errors import StorageError
from s2l_ray.storage.location import Location
from s2l_ray.storage.readers import file_info


@dataclass(frozen=True)
class RowGroups(Location):
    """Consecutive row groups of a file, which is refused once it has changed.

    Attributes:
        start, stop: the numbers of the first row group and of the one after the last.
        size: of the file as it was checked, in bytes.
        modified: its modification time then, in nanoseconds since 1970.
    """

    start: int
    stop: int
    size: int
    modified: int

    def read_table(
        self,
        columns: list[str] | None = None,
        *,
        optional: Collection[str] = (),
        groups: Sequence[int] | None = None,
    ) -> pa.Table:
        """Return the table in these row groups, as `Location.read_table` does.

        Raises:
            StorageError: the file has changed, is gone, or cannot be read.
        """
        self.check()
        numbers = groups or range(self.start, self.stop)
        return super().read_table(columns, optional=optional, groups=numbers)

    def check(self) -> None:
        """Refuse the file unless it has the size and date that it was checked with.

        Raises:
            StorageError: it has others, or this node does not see it.
        """
        size, modified = version(self)
        if size < 0:
            raise StorageError(
                f"{self} is not there, as {platform.node()} sees it. Its losses are not in the run "
                "but read where they lie. Restore it; if other nodes see it, mount its folder on "
                "all nodes at the same place, or bring the losses from a URI such as "
                "s3://bucket/..."
            )
        if (size, modified) != (self.size, self.modified):
            raise StorageError(
                f"{self} has changed since its losses were checked: it has {size:,} bytes of "
                f"{_date(modified)}, and had {self.size:,} of {_date(self.modified)}. It is read "
                f"where it lies. {self._same_bytes(size)}Restore it, or bring the new losses with "
                "`--from trajectories`."
            )

    def _same_bytes(self, size: int) -> str:
        """Return what to do about a file that may be the same but for its date."""
        if size != self.size or not self.is_local:
            return ""
        command = f"touch -d {_date(self.modified)} {shlex.quote(self.uri)}"
        return (
            f"If only its date is new, give it back: `{command}` (`cp -p` and `rsync -t` keep it). "
        )


def version(file: Location) -> tuple[int, int]:
    """Return size and modification time of a file; (-1, 0) if it is gone."""
    fs, path = file.filesystem()
    info = file_info(fs, path)
    return (info.size, info.mtime_ns or 0) if info.is_file else (-1, 0)


def _date(nanoseconds: int) -> str:
    """Return a time since 1970 as `touch -d` reads it, to the last digit."""
    return f"{np.datetime64(nanoseconds, 'ns')}Z"


def runs(rows_of_group: Iterable[int], most_rows: int) -> Iterator[tuple[int, int]]:
    """Cut row groups into runs of at most `most_rows` rows; a larger group is one of its own.

    Yields:
        the number of the first group of each run, and of the one after its last.
    """
    start, rows, number = 0, 0, -1
    for number, more in enumerate(rows_of_group):
        if number > start and rows + more > most_rows:
            yield start, number
            start, rows = number, 0
        rows += more
    if number >= 0:
        yield start, number + 1


def as_json(places: Sequence[RowGroups]) -> list[dict[str, Any]]:
    """Return the files in their order, each with its runs of row groups, as JSON values."""
    files: dict[str, dict[str, Any]] = {}
    for place in places:
        known = {"uri": place.uri, "size": place.size, "modified": place.modified, "groups": []}
        files.setdefault(place.uri, known)["groups"].append([place.start, place.stop])
    return list(files.values())


def of_json(files: Sequence[dict[str, Any]]) -> list[RowGroups]:
    """Return what `as_json` was given."""
    return [
        RowGroups(file["uri"], start, stop, file["size"], file["modified"])
        for file in files
        for start, stop in file["groups"]
    ]
