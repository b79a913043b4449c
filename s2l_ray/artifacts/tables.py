"""Parquet parts of stages: their names, the folders that hold them, and their columns."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from s2l_ray.errors import first
from s2l_ray.storage.location import Location


def part_name(part: int, prefix: str = "part") -> str:
    return f"{prefix}-{part:06d}.parquet"


def rows_name(part: int) -> str:
    return f"rows-{part:06d}.parquet"


@dataclass(frozen=True)
class Parts:
    """The numbered parquet files of a finished stage, and of others that follow it."""

    folder: Location
    prefix: str = "part"
    more: tuple[Location, ...] = ()

    def files(self) -> list[Location]:
        """In numeric order, one folder after the other."""
        return [
            folder / name
            for folder in (self.folder, *self.more)
            for name in folder.names()
            if name.startswith(f"{self.prefix}-") and name.endswith(".parquet")
        ]

    @property
    def places(self) -> str:
        """The folders, as errors name them."""
        more = f" and {len(self.more):,} more (first: {first(self.more)})" if self.more else ""
        return f"{self.folder}{more}"

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """One part after the other."""
        for file in self.files():
            yield file.read_table(list(columns) if columns else None)


def trajectory_table(
    example_ids: pa.ChunkedArray, strata: pa.ChunkedArray, loss_NT: np.ndarray
) -> pa.Table:
    """A part of trajectories in its documented form."""
    flat = pa.array(np.ascontiguousarray(loss_NT, np.float32).ravel())
    losses = pa.FixedSizeListArray.from_arrays(flat, loss_NT.shape[1])
    return pa.table({"example_id": example_ids, "stratum": strata, "loss_nats": losses})


def embedding_table(example_ids: pa.ChunkedArray, embedding_NH: np.ndarray) -> pa.Table:
    """A part of embeddings in its documented form."""
    flat = pa.array(np.ascontiguousarray(embedding_NH, np.float16).ravel())
    embeddings = pa.FixedSizeListArray.from_arrays(flat, embedding_NH.shape[1])
    return pa.table({"example_id": example_ids, "embedding": embeddings})


def norm_table(example_ids: pa.ChunkedArray, norm_N: np.ndarray) -> pa.Table:
    """A part of error norms in its documented form."""
    return pa.table({"example_id": example_ids, "error_norm": pa.array(norm_N, pa.float32())})


def original_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a `rows-*` table as they came: own field names, absent fields absent.

    Inverse of `rows_table`.
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
    """Original rows as columns, with example_id, file and row (0-based in the file) beside them.

    A field is a column of its own type where all its values have one scalar type, and JSON text
    (marked in the column's metadata) elsewhere, so that `original_rows` returns exactly what came.
    A field that shares a name with one of ours, or could be taken for such a one, is kept as
    `original:<name>`.
    """
    columns: dict[str, pa.Array] = {
        "example_id": pa.array(example_ids, pa.string()),
        "file": pa.array([file] * len(rows), pa.string()),
        "row": pa.array(row_numbers, pa.int64()),
    }
    schema = [pa.field(name, column.type) for name, column in columns.items()]
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        hidden = name in _OWN or name.startswith(_ORIGINAL)
        column_name = f"{_ORIGINAL}{name}" if hidden else name
        column, metadata = _column([row.get(name, _ABSENT) for row in rows])
        columns[column_name] = column
        schema.append(pa.field(column_name, column.type, metadata=metadata))
    return pa.table(list(columns.values()), schema=pa.schema(schema))


_OWN = ("example_id", "file", "row")
_ORIGINAL = "original:"
_ABSENT = object()
_SCALARS = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


def _column(values: Sequence[Any]) -> tuple[pa.Array, dict[str, str] | None]:
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
    return -(2**63) <= value < 2**63
