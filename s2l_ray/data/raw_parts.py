"""Raw parts: consecutive rows of one input file, read and checked but not yet tokenised.

A raw part is two files in the folder `staged`: NAME with a line for every row, and rows-NAME with
the original fields of the rows that can be used. Rows are numbered from the first one of the slice
of the file that they were read from: how many stand before it is known when all slices are read.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from s2l_ray.artifacts.tables import rows_table, typed_rows_table
from s2l_ray.config.data import FieldNames
from s2l_ray.data.examples import Example, RowError, content_digest, read_example
from s2l_ray.data.parsers import SourceRow
from s2l_ray.data.pool_checks import FieldCount
from s2l_ray.data.slices import Slice, SliceReader
from s2l_ray.storage.input_files import InputFile
from s2l_ray.storage.location import Location

CHECKED_ROWS = pa.schema(
    [
        ("row", pa.int64()),
        ("digest", pa.binary(16)),
        ("reason", pa.string()),
        ("excerpt", pa.string()),
    ]
)
"""Columns of a raw part; a row has either a digest, or the reason why it cannot be used."""
DIGEST_BYTES, USER_ID = 16, b"user id"
"""Parameters of BLAKE2b for the digest of the user's id."""
EXCERPT_CHARACTERS = 200
MOST_BYTES_IN_ONE_CHUNK = 1 << 30


@dataclass(frozen=True)
class RawPart:
    """Consecutive rows of one input file."""

    file: int
    """The number of the input file."""
    name: str
    """The name of the part's file in the folder of raw parts."""
    num_rows: int
    row_offset: int = 0
    """What to add to its numbers of rows: the number of rows before its slice of the file."""


class FileCutter:
    """A worker that reads slices of input files and cuts them into raw parts."""

    def __init__(self, staged: Location, fields: FieldNames, rows_per_part: int) -> None:
        self.staged, self.fields, self.rows_per_part = staged, fields.of_pool, rows_per_part

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        name = f"{unit['number']:06d}-{unit['slice']:06d}"
        # Older versions wrote less into other files, of other rows: what they left is redone.
        done = self.staged / f"slice-{name}.json"
        if not done.is_file():
            file = InputFile(unit["uri"], unit["size"], unit["modified"])
            reader = SliceReader(Slice(file, unit["slice"], unit["slices"]))
            parts, count = [], FieldCount()
            for index, chunk in enumerate(_chunks(reader.rows(), self.rows_per_part)):
                count.add((row.fields for row in chunk if row.fields is not None), self.fields)
                parts.append(self._write(f"slice-{name}-{index:06d}.parquet", chunk))
            found = {"number": unit["number"], "slice": unit["slice"], "rows": reader.num_rows}
            done.write_json({**found, "parts": parts, "fields": count.as_json()})
        result: dict[str, Any] = done.read_json()
        return result

    def _write(self, name: str, chunk: Sequence[SourceRow]) -> tuple[str, int]:
        checked = [self._check(row) for row in chunk]
        good = [row for row, (_, reason, _) in zip(chunk, checked, strict=True) if not reason]
        table = pa.table(
            [
                [row.row for row in chunk],
                [digest for digest, _, _ in checked],
                [reason for _, reason, _ in checked],
                [excerpt for _, _, excerpt in checked],
            ],
            schema=CHECKED_ROWS,
        )
        (self.staged / name).write_table(table)
        (self.staged / f"rows-{name}").write_table(_originals(good))
        return name, len(chunk)

    def _check(self, row: SourceRow) -> tuple[bytes | None, str | None, str | None]:
        if row.fields is None:
            return None, row.reason, row.excerpt[:EXCERPT_CHARACTERS]
        try:
            example = read_example(row.fields, self.fields)
        except RowError as error:
            return None, error.reason, excerpt_of(error, row.fields)
        return _digest(example), None, None


def read_numbered(file: Location, row_offset: int, columns: list[str] | None = None) -> pa.Table:
    """Return the table of a raw part, its rows numbered from the beginning of the input file."""
    table = file.read_table(columns)
    place = table.schema.get_field_index("row")
    return table.set_column(place, table.field(place), pc.add(table["row"], row_offset))


def digest_of_id(example_id: str) -> bytes:
    """Return 16 bytes that depend on the user's id, and never equal the digest of a content."""
    return hashlib.blake2b(example_id.encode(), digest_size=DIGEST_BYTES, person=USER_ID).digest()


def excerpt_of(error: RowError, fields: Mapping[str, Any]) -> str:
    """Return the error and the beginning of the row, for the list of rejected rows."""
    text = json.dumps(fields, ensure_ascii=False, default=str)
    return f"{error.detail}: {text}"[:EXCERPT_CHARACTERS]


def _originals(rows: Sequence[SourceRow]) -> pa.Table:
    """Return usable rows as a `rows-*` table, whose ids and file are not known yet."""
    ids, numbers = [""] * len(rows), [row.row for row in rows]
    typed = [row.typed for row in rows if row.typed is not None]
    if not typed:
        return rows_table([row.fields or {} for row in rows], ids, "", numbers)
    assert len(typed) == len(rows), "the rows of a file are typed, or none is"
    table = pa.Table.from_batches(typed)
    # One chunk for each row makes writing slow; text of a chunk has offsets of 32 bits.
    table = table.combine_chunks() if table.nbytes < MOST_BYTES_IN_ONE_CHUNK else table
    return typed_rows_table(table, ids, "", numbers)


def _digest(example: Example) -> bytes:
    """Return 16 bytes that identify a row: by the user's id if it has one, else by its content."""
    if example.id is None:
        return bytes.fromhex(content_digest(example))
    return digest_of_id(example.id)


def _chunks(rows: Iterator[SourceRow], size: int) -> Iterator[list[SourceRow]]:
    chunk: list[SourceRow] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
