"""Parquet parts of stages: their names, the folders that hold them, and their columns."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from s2l_ray.errors import first
from s2l_ray.storage.location import Location


def part_name(part: int, prefix: str = "part") -> str:
    """Return the file name of part number `part`."""
    return f"{prefix}-{part:06d}.parquet"


def rows_name(part: int) -> str:
    """Return the file name of the original rows of part number `part`."""
    return part_name(part, "rows")


@dataclass(frozen=True)
class Parts:
    """The numbered parquet files of a finished stage.

    Attributes:
        folder: the folder of the stage.
        prefix: of the names of the files.
        more: folders of extensions, whose files follow.
    """

    folder: Location
    prefix: str = "part"
    more: tuple[Location, ...] = ()

    def files(self) -> list[Location]:
        """Return the files in numeric order, one folder after the other."""
        return [
            folder / name
            for folder in (self.folder, *self.more)
            for name in folder.names()
            if name.startswith(f"{self.prefix}-") and name.endswith(".parquet")
        ]

    @property
    def folder_names(self) -> str:
        """Return the folders as text for messages."""
        more = f" and {len(self.more):,} more (first: {first(self.more)})" if self.more else ""
        return f"{self.folder}{more}"

    def tables(
        self, columns: Sequence[str] | None = None, *, optional: Collection[str] = ()
    ) -> Iterator[pa.Table]:
        """Yield the table of each part in the order of `files`, with all or some of its columns.

        Those of `optional` are read as well where a file has them.
        """
        for file in self.files():
            yield file.read_table(list(columns) if columns else None, optional=optional)


def trajectory_table(
    example_ids: pa.ChunkedArray, strata: pa.ChunkedArray, loss_NT: np.ndarray
) -> pa.Table:
    """Return one part of trajectories: example_id, stratum and loss_nats (T floats in 32 bits)."""
    flat = pa.array(np.ascontiguousarray(loss_NT, np.float32).ravel())
    losses = pa.FixedSizeListArray.from_arrays(flat, loss_NT.shape[1])
    return pa.table({"example_id": example_ids, "stratum": strata, "loss_nats": losses})


def embedding_table(example_ids: pa.ChunkedArray, embedding_NH: np.ndarray) -> pa.Table:
    """Return one part of embeddings: example_id and embedding (H floats in 16 bits)."""
    flat = pa.array(np.ascontiguousarray(embedding_NH, np.float16).ravel())
    embeddings = pa.FixedSizeListArray.from_arrays(flat, embedding_NH.shape[1])
    return pa.table({"example_id": example_ids, "embedding": embeddings})


def norm_table(example_ids: pa.ChunkedArray, norm_N: np.ndarray) -> pa.Table:
    """Return one part of error norms: example_id and error_norm (a float in 32 bits)."""
    return pa.table({"example_id": example_ids, "error_norm": pa.array(norm_N, pa.float32())})


def original_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield the rows of a `rows-*` table as they were read, with the fields that each had.

    This is the inverse of `rows_table`.
    """
    json_columns = {
        field.name for field in table.schema if (field.metadata or {}).get(b"s2l") == b"json"
    }
    theirs = [name for name in table.column_names if name not in _OWN]
    for values in table.select(theirs).to_pylist():
        yield {
            name.removeprefix(_ORIGINAL): json.loads(value) if name in json_columns else value
            for name, value in values.items()
            if value is not None
        }


def rows_table(
    rows: Sequence[Mapping[str, Any]],
    example_ids: Sequence[str],
    file: str,
    row_numbers: Sequence[int],
) -> pa.Table:
    """Return original rows as columns, after the columns example_id, file and row.

    `row` counts from 0 in the file. A field whose values all have one scalar type becomes a column
    of that type. Any other field becomes JSON text, and the metadata of its column says so. So
    `original_rows` returns exactly what was read. A field named like one of these three columns, or
    beginning with `original:`, becomes the column `original:<name>`.
    """
    columns: dict[str, pa.Array] = {
        "example_id": pa.array(example_ids, pa.string()),
        "file": pa.array([file] * len(rows), pa.string()),
        "row": pa.array(row_numbers, pa.int64()),
    }
    schema = [pa.field(name, column.type) for name, column in columns.items()]
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        is_reserved = name in _OWN or name.startswith(_ORIGINAL)
        column_name = f"{_ORIGINAL}{name}" if is_reserved else name
        column, metadata = _column([row.get(name, _ABSENT) for row in rows])
        columns[column_name] = column
        schema.append(pa.field(column_name, column.type, metadata=metadata))
    return pa.table(list(columns.values()), schema=pa.schema(schema))


_OWN = ("example_id", "file", "row")
_ORIGINAL = "original:"
_ABSENT = object()
_SCALARS = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


def _column(values: Sequence[Any]) -> tuple[pa.Array, dict[str, str] | None]:
    """Return the column of one field, and its metadata: that it is JSON text, or None."""
    kinds = {type(value) for value in values if value is not _ABSENT}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind in _SCALARS and all(
        _fits(value) for value in values if kind is int and value is not _ABSENT
    ):
        return pa.array([None if v is _ABSENT else v for v in values], _SCALARS[kind]), None
    text = [
        None if value is _ABSENT else json.dumps(value, ensure_ascii=False, default=str)
        for value in values
    ]
    return pa.array(text, pa.string()), {"s2l": "json"}


def _fits(value: int) -> bool:
    """Tell whether a number fits into 64-bit integers."""
    return -(2**63) <= value < 2**63
