"""Types of the columns of original rows: their values in Python and in JSON, and one type for all.

Rows of parquet, arrow and the hub keep the types of their files. The types of JSON rows are
inferred from their values, for subsets that are written as parquet.
"""

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from functools import cache
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ray.errors import one_line

FAULT = b"s2l fault"
"""Key in the metadata of a field that no parquet column can hold; its value is the cause."""


def python_rows(rows: pa.RecordBatch | pa.Table) -> Iterator[dict[str, Any] | None]:
    """Yield the values of every row, and None for a row whose text is not UTF-8.

    A value that Python has no object for, such as a date after the year 9999, comes as text.
    """
    try:
        values = _values(rows)
    except UnicodeDecodeError:
        if rows.num_rows == 1:
            yield None
            return
        for position in range(rows.num_rows):
            yield from python_rows(rows.slice(position, 1))
    else:
        yield from values


def _values(rows: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    try:
        return list(rows.to_pylist())
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError):
        columns = [_python_values(column) for column in rows.columns]
        names = rows.schema.names
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _python_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError):
        return [_python_value(value) for value in column]


def _python_value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError):
        if isinstance(value, pa.StructScalar):
            return {name: _python_value(inner) for name, inner in value.items()}
        if isinstance(value, pa.ListScalar):
            return [_python_value(inner) for inner in value.values]
        return value.cast(pa.string()).as_py()


def json_value(value: Any) -> Any:
    """Return a value that JSON has no form for as one that it has, as `json.dumps(default=...)`.

    Dates, times and durations become ISO 8601 text, decimals and UUIDs text with all their digits,
    and bytes base64 text.

    Raises:
        TypeError: the value is of another type.
    """
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return f"PT{value / timedelta(seconds=1):.9f}".rstrip("0").rstrip(".") + "S"
    if isinstance(value, Decimal | UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def becomes_text(kind: pa.DataType) -> str | None:
    """Return the text that the values of a type become in JSON, or None if they keep their type."""
    types = pa.types
    if types.is_nested(kind):
        children = [becomes_text(kind.field(index).type) for index in range(kind.num_fields)]
        return next(filter(None, children), None)
    if types.is_dictionary(kind):
        return becomes_text(kind.value_type)
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return "base64"
    if types.is_temporal(kind):
        return "ISO 8601"
    return "decimal" if types.is_decimal(kind) else None


def inferred(name: str, values: Sequence[Any]) -> pa.Field:
    """Return the field that holds these values; if there is none, one of type null with a FAULT."""
    try:
        field = pa.field(name, pa.array(values).type)
        decoded(encoded(pa.schema([field])))
    except OverflowError:
        return _faulty(name, "integers beyond 64 bits")
    except OSError:
        return _faulty(name, "values nested more deeply than Arrow can describe")
    except (pa.ArrowException, TypeError, ValueError) as error:
        return _faulty(name, one_line(error))
    return field


def unified(schemas: Iterable[pa.Schema]) -> tuple[pa.Schema, dict[str, str]]:
    """Return a schema that all rows fit, and the cause for each field that no column can hold.

    Faulty fields are left out of the schema. A field that a schema lacks is null in its rows.
    """
    fields: dict[str, pa.Field] = {}
    faults: dict[str, str] = {}
    metadata: dict[bytes, bytes] = {}
    for schema in schemas:
        metadata = metadata or dict(schema.metadata or {})
        for field in schema:
            if FAULT in (field.metadata or {}):
                faults.setdefault(field.name, field.metadata[FAULT].decode())
                continue
            known = fields.get(field.name, field)
            try:
                fields[field.name] = _common(known, field)
            except pa.ArrowException as error:
                cause = one_line(error).removeprefix("Unable to merge: ")
                faults.setdefault(field.name, cause)
    for name, field in fields.items():
        if not is_writable(field.type):
            faults.setdefault(name, _unwritable(field.type))
    kept = [field for name, field in fields.items() if name not in faults]
    return pa.schema(kept, metadata=metadata or None), faults


def _common(one: pa.Field, other: pa.Field) -> pa.Field:
    """Return a field that the values of both fit."""
    kinds = {field.type for field in (one, other)}
    if {pa.types.is_dictionary(kind) for kind in kinds} == {True, False}:
        one, other = _decoded(one), _decoded(other)
    if {_is_text(kind) or becomes_text(kind) for kind in kinds} == {True, "base64"}:
        raise pa.ArrowTypeError(f"text and bytes: {one.type} and {other.type}")
    schemas = [pa.schema([field.with_nullable(True)]) for field in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _decoded(field: pa.Field) -> pa.Field:
    is_dictionary = pa.types.is_dictionary(field.type)
    return field.with_type(field.type.value_type) if is_dictionary else field


@cache
def _unwritable(kind: pa.DataType) -> str:
    """Return why parquet cannot hold a column of this type; empty if it can."""
    try:
        pq.ParquetWriter(io.BytesIO(), pa.schema([pa.field("", kind)])).close()
    except pa.ArrowNotImplementedError as error:
        if "no child field" in str(error):
            return "objects that are empty in every row"
        return one_line(error)
    return ""


def is_writable(kind: pa.DataType) -> bool:
    """Tell whether parquet can hold a column of this type."""
    return not _unwritable(kind)


def converted(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return a column with the type that `unified` found for it."""
    if column.type == kind:
        return column
    try:
        return column.cast(kind)
    except (pa.ArrowNotImplementedError, pa.ArrowTypeError):
        # Structs with other fields, and dictionaries of other widths.
        return pa.chunked_array([pa.array(column.to_pylist(), kind)])


def encoded(schema: pa.Schema) -> str:
    """Return a schema as text, for `decoded`."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def decoded(text: str | bytes) -> pa.Schema:
    """Return the schema that `encoded` was given."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def _faulty(name: str, cause: str) -> pa.Field:
    return pa.field(name, pa.null(), metadata={FAULT: cause})
