"""Types of the original fields of a whole pool, for a subset that is written as parquet."""

from collections.abc import Mapping

import pyarrow as pa

from s2l_ray.artifacts import column_types
from s2l_ray.artifacts.tables import Parts, field_types, has_known_types
from s2l_ray.errors import DataError
from s2l_ray.storage.location import Location


def pool_types(rows: Parts) -> tuple[pa.Schema, dict[str, str]]:
    """Return the types of the original fields of all rows, as `column_types.unified` does."""
    return column_types.unified(map(_types_of_part, rows.files()))


def _types_of_part(file: Location) -> pa.Schema:
    schema = file.read_schema()
    # Older runs have to be read to know the types of their JSON text.
    return field_types(schema.empty_table() if has_known_types(schema) else file.read_table())


def check_columns(faults: Mapping[str, str]) -> None:
    """Raise DataError if there is a field that no parquet column can hold.

    Args:
        faults: the cause for each such field.
    """
    if faults:
        name, cause = next(iter(faults.items()))
        raise DataError(
            f"selection.format: parquet: {len(faults):,} fields of the pool have values that one "
            f"parquet column cannot hold (first: {name!r}: {cause}). Choose "
            "`selection.format: jsonl`, or mend the data."
        )
