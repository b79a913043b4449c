"""The tables of rows that are compared: finished parts, and raw parts that are not tokenised yet.

Shape letters: H rows asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from s2l_ray.artifacts.tables import Parts
from s2l_ray.data.raw_parts import read_numbered
from s2l_ray.storage.location import Location

NAMES = pa.schema([("file", pa.string()), ("row", pa.int64()), ("example_id", pa.string())])
"""Columns that name a row. A raw part has no ids yet."""


@dataclass(frozen=True)
class ComparedTable:
    """A table of original rows.

    Attributes:
        rows: the file with the rows.
        is_new: whether prompts are looked for in it; False for rows of a pool that is extended.
        raw: the unit of work that tokenises it; None for a finished part.
        checked: the file with a line for every row of a raw part, or None.
    """

    rows: Location
    is_new: bool = True
    raw: Mapping[str, Any] | None = None
    checked: Location | None = None

    def unit(self, number: int) -> dict[str, Any]:
        """Return the unit of work of `RowComparer` for this table, the `number`-th."""
        raw = self.raw or {}
        return {
            "number": number,
            "rows": self.rows.uri,
            "is_new": self.is_new,
            "checked": self.checked.uri if self.checked else None,
            "repeats": raw.get("repeats", []),
            "known": raw.get("known"),
        }

    def names(self, position_H: np.ndarray) -> pa.Table:
        """Return file, row and example_id (null in a raw part) of the rows at these positions."""
        if self.checked is None or self.raw is None:
            return self.rows.read_table(NAMES.names).take(position_H)
        rows = read_numbered(self.checked, self.raw["row_offset"], ["row"])
        row = rows["row"].take(position_H)
        file = pa.array([self.raw["uri"]] * len(row), pa.string())
        return pa.table([file, row, pa.nulls(len(row), pa.string())], schema=NAMES)


def finished_tables(rows: Parts, *, is_new: bool = True) -> list[ComparedTable]:
    """Return the tables of finished parts.

    Args:
        rows: their files of original rows.
        is_new: as in ComparedTable.
    """
    return [ComparedTable(file, is_new) for file in rows.files()]


def raw_tables(units: Sequence[Mapping[str, Any]], staged: Location) -> list[ComparedTable]:
    """Return the table of each unit that is to be tokenised."""
    return [
        ComparedTable(staged / f"rows-{unit['name']}", True, unit, staged / unit["name"])
        for unit in units
    ]
