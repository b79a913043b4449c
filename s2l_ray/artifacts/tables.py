"""Parquet parts of stages: their names, the folders that hold them, and their columns."""

import itertools
import json
import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from s2l_ray.artifacts import column_types
from s2l_ray.artifacts.manifest import MANIFEST, read_manifest
from s2l_ray.errors import StorageError, first
from s2l_ray.storage import row_groups
from s2l_ray.storage.input_files import InputFile
from s2l_ray.storage.location import Location
from s2l_ray.storage.read_ahead import read_ahead
from s2l_ray.storage.row_groups import RowGroups

EXAMPLE_ID = "example_id"
WITHOUT_PROMPT = "loss_without_prompt_nats"
"""The column of trajectories with the loss of a response that is read without its prompt."""

PART = "part"
"""The prefix of the names of parts, unless they hold something beside the result of a stage."""
PLACES = "_places.json"
"""The file, in place of parts, that says where trajectories lie. The underscore is for readers of
Parquet, as that of the manifest."""


def part_name(part: int, prefix: str = PART) -> str:
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
    prefix: str = PART
    more: tuple[Location, ...] = ()

    def files(self) -> list[Location]:
        """Return the files in numeric order, one folder after the other.

        Trajectories that are read where they lie are runs of row groups of their files.

        Raises:
            StorageError: a finished folder has lost some of its files.
        """
        found: list[Location] = []
        for folder in (self.folder, *self.more):
            names = folder.names()
            # A number of seven digits would come before the next one of six.
            parts = sorted(filter(self._is_part, names), key=lambda name: (len(name), name))
            if MANIFEST in names:
                self._check_all_there(folder, parts)
            found += [folder / name for name in parts]
            found += self._places(folder, names)
        return found

    def stored(self) -> list[InputFile]:
        """Return the files that `files` are, or lie in, each once with its size and date."""
        found: dict[InputFile, None] = {}
        for folder in (self.folder, *self.more):
            listed = folder.files() if folder.exists() else []
            for name, size, modified in listed:
                if self._is_part(name):
                    found[InputFile(str(folder / name), size, modified)] = None
            places = self._places(folder, [name for name, _, _ in listed])
            found |= {InputFile(p.uri, p.size, str(p.modified)): None for p in places}
        return list(found)

    def _check_all_there(self, folder: Location, names: Sequence[str]) -> None:
        manifest = read_manifest(folder)
        written = manifest.parts.get(self.prefix, 0) if manifest else 0
        if manifest is None or len(names) >= written:
            return
        missing = sorted({part_name(part, self.prefix) for part in range(written)} - {*names})
        raise StorageError(
            f"{folder} has {len(names):,} of the {written:,} files {self.prefix}-*.parquet that "
            f"its stage wrote; missing: {first(missing)}. They were deleted since, or not copied: "
            f"bring them back, or run the stage again (s2l run ... --from {manifest.stage})."
        )

    def _places(self, folder: Location, names: Collection[str]) -> list[RowGroups]:
        """Return the parts that lie elsewhere. Only losses do, not what else scoring leaves."""
        if self.prefix != PART or PLACES not in names:
            return []
        return row_groups.of_json((folder / PLACES).read_json())

    def _is_part(self, name: str) -> bool:
        return name.startswith(f"{self.prefix}-") and name.endswith(".parquet")

    @property
    def folder_names(self) -> str:
        """Return the folders as text for messages."""
        more = f" and {len(self.more):,} more (first: {first(self.more)})" if self.more else ""
        return f"{self.folder}{more}"

    def tables(
        self, columns: Sequence[str] | None = None, *, optional: Collection[str] = ()
    ) -> Iterator[pa.Table]:
        """Yield the table of each part in the order of `files`, with all or some of its columns.

        Those of `optional` are read as well where a file has them. On an object store, the next
        parts are read while one is used.
        """
        wanted, files = list(columns) if columns else None, self.files()

        def read(file: Location) -> pa.Table:
            return file.read_table(wanted, optional=optional)

        is_local = all(file.is_local for file in files)
        yield from map(read, files) if is_local else read_ahead(read, files)


def trajectory_table(
    example_ids: pa.ChunkedArray,
    strata: pa.ChunkedArray,
    loss_NT: np.ndarray,
    without_prompt_N: np.ndarray | None = None,
) -> pa.Table:
    """Return one part of trajectories: example_id, stratum and loss_nats (T floats in 32 bits).

    With `without_prompt_N` it has the column WITHOUT_PROMPT, too (a float in 32 bits).
    """
    flat = pa.array(np.ascontiguousarray(loss_NT, np.float32).ravel())
    losses = pa.FixedSizeListArray.from_arrays(flat, loss_NT.shape[1])
    table = pa.table({"example_id": example_ids, "stratum": strata, "loss_nats": losses})
    if without_prompt_N is None:
        return table
    return table.append_column(WITHOUT_PROMPT, pa.array(without_prompt_N, pa.float32()))


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

    This is the inverse of `rows_table`. The rows of a typed table have all its columns, and nulls.
    """
    kinds = {field.name: _kind(field) for field in table.schema if field.name not in _OWN}
    orders = table[_ORDER].to_pylist() if _ORDER in kinds else itertools.repeat(None)
    theirs = table.select([name for name in kinds if name != _ORDER])
    for values, order in zip(column_types.python_rows(theirs), orders, strict=False):
        assert values is not None, "only rows whose text is UTF-8 are stored"
        row = {
            _their_name(name): json.loads(value) if kinds[name] == _JSON else value
            for name, value in values.items()
            if value is not None or kinds[name] == _TYPED
        }
        yield {name: row[name] for name in order} if order is not None else row


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
    beginning with `original:`, becomes the column `original:<name>`. If a row has its fields in
    another order than the columns, the column `original:` has the names in that order.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns, fields = [], []
    for name in names:
        column, metadata = _column(name, [row.get(name, _ABSENT) for row in rows])
        columns.append(column)
        fields.append(pa.field(column_name(name), column.type, metadata=metadata))
    place = {name: index for index, name in enumerate(names)}
    orders = [
        None if all(map(operator.lt, places, places[1:])) else list(row)
        for row in rows
        for places in [[place[name] for name in row]]
    ]
    if any(order is not None for order in orders):
        columns.append(pa.array(orders, pa.list_(pa.string())))
        fields.append(pa.field(_ORDER, pa.list_(pa.string())))
    return _numbered(columns, pa.schema(fields), example_ids, file, row_numbers)


def typed_rows_table(
    rows: pa.Table, example_ids: Sequence[str], file: str, row_numbers: Sequence[int]
) -> pa.Table:
    """Return rows whose columns have types, with these types, as `rows_table` does.

    Columns of a type that parquet does not hold become JSON text.
    """
    columns, fields = [], []
    for field, column in zip(rows.schema, rows.columns, strict=True):
        name = column_name(field.name)
        if column_types.is_writable(field.type):
            columns.append(column)
            metadata = {**(field.metadata or {}), b"s2l": _TYPED}
            fields.append(pa.field(name, field.type, metadata=metadata))
        else:
            text, metadata = _json_column(field.name, column.to_pylist())
            columns.append(text)
            fields.append(pa.field(name, text.type, metadata=metadata))
    # The description of features that `datasets` reads again, such as images and names of classes.
    known = {key: value for key, value in (rows.schema.metadata or {}).items() if key in _KEPT}
    return _numbered(columns, pa.schema(fields, known or None), example_ids, file, row_numbers)


def kept_rows(
    table: pa.Table, example_ids: Sequence[str], file: str, row_numbers: Sequence[int]
) -> pa.Table:
    """Return the rows of a `rows-*` table with these numbers, with their ids and their file."""
    kept = table.filter(pc.is_in(table["row"], pa.array(row_numbers, pa.int64())))
    theirs = [name for name in kept.column_names if name not in _OWN]
    rest = kept.select(theirs)
    return _numbered(rest.columns, rest.schema, example_ids, file, row_numbers)


def field_types(table: pa.Table) -> pa.Schema:
    """Return the types of the original fields of a `rows-*` table, for `column_types.unified`."""
    fields = []
    for field in table.schema:
        if field.name in _OWN or field.name == _ORDER:
            continue
        name, metadata = _their_name(field.name), dict(field.metadata or {})
        if _kind(field) != _JSON:
            metadata.pop(b"s2l", None)
            metadata.pop(b"PARQUET:field_id", None)
            fields.append(pa.field(name, field.type, metadata=metadata or None))
        elif b"type" in metadata:
            fields.append(column_types.decoded(metadata[b"type"]).field(0))
        else:  # older runs
            values = [json.loads(text) for text in table[field.name].drop_null().to_pylist()]
            fields.append(column_types.inferred(name, values))
    return pa.schema(fields, table.schema.metadata)


def original_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the original fields of a `rows-*` table as columns of the types in `schema`.

    A field that a row does not have is null.

    Args:
        table: some rows of a part.
        schema: the unified types of all parts.
    """
    column_by_name = {
        _their_name(field.name): (field, table[field.name])
        for field in table.schema
        if field.name not in _OWN and field.name != _ORDER
    }
    columns = []
    for field in schema:
        if field.name not in column_by_name:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        stored, column = column_by_name[field.name]
        if _kind(stored) == _JSON:
            values = [None if text is None else json.loads(text) for text in column.to_pylist()]
            columns.append(pa.array(values, field.type))
        else:
            columns.append(column_types.converted(column, field.type))
    return pa.table(columns, schema=schema)


def column_name(name: str) -> str:
    """Return the name of the column of a field in a `rows-*` table."""
    is_reserved = name in _OWN or name.startswith(_ORIGINAL)
    return f"{_ORIGINAL}{name}" if is_reserved else name


def beside_ours(name: str) -> str:
    """Return the name of a field in the file of a subset, where `example_id` is ours."""
    theirs = name
    while theirs.startswith(_ORIGINAL):
        theirs = theirs.removeprefix(_ORIGINAL)
    return f"{_ORIGINAL}{name}" if theirs == EXAMPLE_ID else name


def row_of_subset(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the original row of one in the file of a subset: `beside_ours` undone.

    A row without `original:example_id` keeps `example_id`, which may be its own field.
    """
    has_own = beside_ours(EXAMPLE_ID) in row
    return {
        name.removeprefix(_ORIGINAL) if beside_ours(name) != name else name: value
        for name, value in row.items()
        if name != EXAMPLE_ID or not has_own
    }


def has_known_types(schema: pa.Schema) -> bool:
    """Tell whether the columns of JSON text state their types, as those of older runs do not."""
    return all(b"type" in field.metadata for field in schema if is_json(field))


def is_json(field: pa.Field) -> bool:
    """Tell whether a column of a `rows-*` table holds JSON text."""
    return _kind(field) == _JSON


def _numbered(
    columns: Sequence[Any],
    schema: pa.Schema,
    example_ids: Sequence[str],
    file: str,
    row_numbers: Sequence[int],
) -> pa.Table:
    """Return a table with the columns example_id, file and row before the others."""
    own = {
        "example_id": pa.array(example_ids, pa.string()),
        "file": pa.array([file] * len(example_ids), pa.string()),
        "row": pa.array(row_numbers, pa.int64()),
    }
    fields = [*(pa.field(name, column.type) for name, column in own.items()), *schema]
    return pa.table([*own.values(), *columns], schema=pa.schema(fields, schema.metadata))


_OWN = (EXAMPLE_ID, "file", "row")
_ORIGINAL = "original:"
_ORDER = _ORIGINAL
"""No field has this column: the one of a field without a name is that name."""
_ABSENT = object()
_SCALARS = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
_JSON, _TYPED = b"json", b"typed"
"""Kinds of columns in the metadata of their fields: JSON text, and types of the input file."""
_KEPT = (b"huggingface",)


def _kind(field: pa.Field) -> bytes | None:
    kind: bytes | None = (field.metadata or {}).get(b"s2l")
    return kind


def _their_name(column_name: str) -> str:
    return column_name.removeprefix(_ORIGINAL)


def _column(name: str, values: Sequence[Any]) -> tuple[pa.Array, dict[bytes, bytes] | None]:
    """Return the column of one field, and its metadata: that it is JSON text, or None."""
    kinds = {type(value) for value in values if value is not _ABSENT}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind in _SCALARS and all(
        _fits(value) for value in values if kind is int and value is not _ABSENT
    ):
        return pa.array([None if v is _ABSENT else v for v in values], _SCALARS[kind]), None
    return _json_column(name, values)


def _json_column(name: str, values: Sequence[Any]) -> tuple[pa.Array, dict[bytes, bytes]]:
    """Return values as JSON text, and the metadata with the type that they would have."""
    dumps = partial(json.dumps, ensure_ascii=False, default=column_types.json_value)
    text = [None if value is _ABSENT else dumps(value) for value in values]
    field = column_types.inferred(name, [None if value is _ABSENT else value for value in values])
    kind = column_types.encoded(pa.schema([field])).encode()
    return pa.array(text, pa.string()), {b"s2l": _JSON, b"type": kind}


def _fits(value: int) -> bool:
    """Tell whether a number fits into 64-bit integers."""
    return -(2**63) <= value < 2**63
