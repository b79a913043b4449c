"""Slices of large files, which several workers read at the same time.

A slice of JSON lines holds the lines that begin in a range of bytes; a slice of Parquet, a range of
row groups. Where the rows of a file begin cannot be told from its middle if it is compressed, csv,
an Arrow file, or an array of JSON: its first slice holds all of them.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

from s2l_ray.data.parsers import SourceRow, line_rows
from s2l_ray.data.sources import holds_lines, parquet_rows, read_rows, skip_mark
from s2l_ray.storage.input_files import (
    CHUNK_BYTES,
    REQUEST_BYTES,
    InputFile,
    format_of,
    naming,
    open_input,
)

SLICE_BYTES = 1 << 27
"""Bytes of a file that one worker reads; fixed, so that any number of workers makes the same."""


@dataclass(frozen=True)
class Slice:
    """The `number`-th of the `count` slices of a file."""

    file: InputFile
    number: int = 0
    count: int = 1


def slices(file: InputFile, slice_bytes: int = SLICE_BYTES) -> list[Slice]:
    """Return the slices of a file in order; one if it is small, or if its format has no others."""
    kind, compression = format_of(file.uri)
    can_split = not compression and kind in ("jsonl", "ndjson", "json", "parquet")
    count = max(1, -(-file.size // slice_bytes)) if can_split else 1
    return [Slice(file, number, count) for number in range(count)]


class SliceReader:
    """Reads the rows of one slice.

    Attributes:
        num_rows: how many rows were read, and blank lines: what the next slice's numbers begin at.
    """

    def __init__(self, of: Slice) -> None:
        self.slice, self.num_rows = of, 0

    def rows(self) -> Iterator[SourceRow]:
        """Yield every row in order, numbered from the first one of the slice.

        Raises:
            DataError: as `read_rows`.
        """
        file, number, count = self.slice.file, self.slice.number, self.slice.count
        kind, _ = format_of(file.uri)
        if count == 1:
            yield from self._counted(read_rows(file, REQUEST_BYTES))
        elif kind == "parquet":
            with naming(file):
                yield from self._counted(parquet_rows(file, number, count))
        else:
            yield from self._json_rows(kind)

    def _counted(self, rows: Iterator[SourceRow]) -> Iterator[SourceRow]:
        for row in rows:
            self.num_rows = row.row + 1
            yield row

    def _json_rows(self, kind: str) -> Iterator[SourceRow]:
        file, number, count = self.slice.file, self.slice.number, self.slice.count
        start, end = (file.size * n // count for n in (number, number + 1))
        with naming(file), open_input(file.uri, None) as head:
            skip_mark(file.uri, head)
            if not holds_lines(file.uri, kind, head):
                yield from read_rows(file, REQUEST_BYTES) if number == 0 else ()
                return
            first = head.tell()
        with naming(file), open_input(file.uri, None, REQUEST_BYTES) as stream:
            lines = _Lines(stream, _line_from(stream, start) if number else first, end)
            origin = f"{file.uri}, counted from byte {lines.position:,}"
            yield from line_rows(origin if number else file.uri, cast(BinaryIO, lines))
            self.num_rows = lines.num_lines


def _line_from(stream: io.BufferedReader, start: int) -> int:
    """Return where the first line begins that begins at `start` or later."""
    # A line that ends with the byte before `start` is followed by one that begins there.
    stream.seek(start - 1)
    while (piece := stream.readline(CHUNK_BYTES)) and not piece.endswith(b"\n"):
        pass
    return stream.tell()


class _Lines:
    """The lines of a stream that begin at the bytes `position` to `end`."""

    def __init__(self, stream: io.BufferedReader, position: int, end: int) -> None:
        self.stream, self.position, self.end, self.num_lines = stream, position, end, 0
        stream.seek(position)

    def readline(self, limit: int) -> bytes:
        if self.position >= self.end:
            return b""
        line = self.stream.readline(limit)
        self.position += len(line)
        self.num_lines += bool(line)
        return line
