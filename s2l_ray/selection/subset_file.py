"""The file of a subset: the selected rows with their own fields and example_id, .jsonl or .parquet.

A parquet file has the types of the input files. In a .jsonl file, values that JSON has no form for
are text (see `column_types.json_value`).
"""

import json
from collections.abc import Iterator
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from s2l_ray.artifacts import column_types
from s2l_ray.artifacts.pool_types import check_columns, pool_types
from s2l_ray.artifacts.tables import (
    EXAMPLE_ID,
    Parts,
    beside_ours,
    column_name,
    is_json,
    original_rows,
    original_table,
)
from s2l_ray.selection.added_columns import AddedColumns


class Writer(Protocol):
    """Writes rows of `rows-*` tables to a stream."""

    def write(self, rows: pa.Table) -> None:
        """Write the original fields of these rows, their example_id and the added columns."""

    def close(self) -> None:
        """Write what ends the file."""


def writer(stream: Any, name: str, rows: Parts, added: AddedColumns | None = None) -> Writer:
    """Return the writer of a file with this name.

    Args:
        added: columns that are added to the rows.
        rows: all rows of the pool, whose types decide those of a parquet file.

    Raises:
        DataError: the file is to be parquet, and no parquet column can hold the values of a field.
    """
    return _Jsonl(stream, added) if name.endswith(".jsonl") else _Parquet(stream, rows, added)


def subset_rows(rows: pa.Table, added: AddedColumns | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a `rows-*` table with their fields unchanged and their example_id.

    If a row has another value in a field `example_id`, that becomes `original:example_id`.

    Args:
        added: columns that are added to the rows.
    """
    extra = added.of(rows).to_pylist() if added else [{}] * rows.num_rows
    ids = rows[EXAMPLE_ID].to_pylist()
    for example_id, row, columns in zip(ids, original_rows(rows), extra, strict=True):
        same = row.get(EXAMPLE_ID) == example_id
        named = {beside_ours(name): value for name, value in row.items()}
        if same:
            del named[beside_ours(EXAMPLE_ID)]
        yield {**named, EXAMPLE_ID: example_id, **columns}


class _Jsonl:
    def __init__(self, stream: Any, added: AddedColumns | None) -> None:
        self._stream, self._added = stream, added

    def write(self, rows: pa.Table) -> None:
        for row in subset_rows(rows, self._added):
            text = json.dumps(row, ensure_ascii=False, default=column_types.json_value)
            self._stream.write(text.encode() + b"\n")

    def close(self) -> None:
        pass


class _Parquet:
    def __init__(self, stream: Any, rows: Parts, added: AddedColumns | None) -> None:
        self._added = added
        self._types, faults = pool_types(rows)
        check_columns(faults)
        self._hides_theirs = EXAMPLE_ID in self._types.names and _all_same(rows)
        names = [beside_ours(name) for name in self._types.names]
        schema = pa.schema(
            [field.with_name(name) for field, name in zip(self._types, names, strict=True)],
            self._types.metadata,
        )
        if self._hides_theirs:
            schema = schema.remove(names.index(beside_ours(EXAMPLE_ID)))
        self._schema = schema.append(pa.field(EXAMPLE_ID, pa.string()))
        for field in added.schema if added else ():
            self._schema = self._schema.append(field)
        self._writer = pq.ParquetWriter(stream, self._schema, compression="zstd")

    def write(self, rows: pa.Table) -> None:
        table = original_table(rows, self._types)
        columns = [
            column
            for name, column in zip(table.column_names, table.columns, strict=True)
            if not (self._hides_theirs and name == EXAMPLE_ID)
        ]
        ids = rows[EXAMPLE_ID].cast(pa.string())
        extra = self._added.of(rows).columns if self._added else []
        self._writer.write_table(pa.table([*columns, ids, *extra], schema=self._schema))

    def close(self) -> None:
        self._writer.close()


def _all_same(rows: Parts) -> bool:
    """Tell whether the field `example_id` of every row is its example_id."""
    for file in rows.files():
        theirs = column_name(EXAMPLE_ID)
        if theirs not in file.read_schema().names:
            return False
        table = file.read_table([EXAMPLE_ID, theirs])
        if not pa.types.is_string(table[theirs].type) or is_json(table.field(theirs)):
            return False
        same = pc.equal(table[theirs], table[EXAMPLE_ID]).fill_null(False)
        if not pc.all(same).as_py():
            return False
    return True
