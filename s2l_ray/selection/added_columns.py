"""Columns of a ranking that are added to the rows of a subset.

Shape letters: N examples of the pool, R in order of rank.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from s2l_ray.artifacts.keys import column_keys
from s2l_ray.artifacts.tables import EXAMPLE_ID, Parts
from s2l_ray.errors import ConfigError, first

TYPES = {
    "rank": pa.int64(),
    "cluster": pa.int32(),
    "stratum": pa.string(),
    "tokens": pa.int32(),
}
"""Name of a column -> its type."""


@dataclass(frozen=True)
class AddedColumns:
    """The values of some columns for the examples of a subset.

    Attributes:
        sorted_keys: uint64 (R,), hashes of the ids, ascending.
        values: an array of the type in TYPES for each name, in the order of the keys.
    """

    sorted_keys: np.ndarray
    values: Mapping[str, pa.Array]

    @property
    def schema(self) -> pa.Schema:
        """The columns with their types."""
        return pa.schema([(name, TYPES[name]) for name in self.values])

    def of(self, rows: pa.Table) -> pa.Table:
        """Return the columns of `rows`, which have an example_id and are in the subset."""
        keys = column_keys(rows[EXAMPLE_ID])
        index = pa.array(np.searchsorted(self.sorted_keys, keys))
        return pa.table({name: values.take(index) for name, values in self.values.items()})


def added_columns(key_R: np.ndarray, values: Mapping[str, pa.Array]) -> AddedColumns:
    """Return columns whose values are given in the order of `key_R`."""
    order = np.argsort(key_R)
    index = pa.array(order)
    return AddedColumns(key_R[order], {name: array.take(index) for name, array in values.items()})


def check_free(names: Collection[str], rows: Parts) -> None:
    """Raise ConfigError if a row of the pool has a field with one of these names."""
    if names:
        fields = {name for file in rows.files() for name in file.read_schema().names}
        check_not_among(names, fields)


def check_not_among(names: Collection[str], fields: Collection[str]) -> None:
    """Raise ConfigError if one of `names` is among the fields of the rows."""
    taken = [name for name in names if name in fields]
    if taken:
        raise ConfigError(
            f"selection.columns: {len(taken)} of {len(names)} columns have the name of a field of "
            f"the rows ({first(taken)}). Leave them out, or rename the field in the data."
        )


def checked(names: Sequence[str]) -> list[str]:
    """Return names of columns.

    Raises:
        ConfigError: one of them is unknown, or there twice.
    """
    for name in names:
        if name not in TYPES:
            raise ConfigError(f"column {name!r} is unknown; known: {', '.join(TYPES)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"a column is named twice: {', '.join(names)}")
    return list(names)
