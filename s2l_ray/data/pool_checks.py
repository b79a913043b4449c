"""Checks of a whole pool: named fields that no row has, useless files, strata that are none.

Each of these passes row by row: the rows are usable, or few among many.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from s2l_ray.config.data import FieldNames
from s2l_ray.errors import DataError, first

OPTIONAL = ("context", "stratum", "id", "tools")
"""Keys of data.fields whose fields a row may lack; without the others it is rejected."""
NAMES_KEPT = 50
"""Names of other fields that are remembered, for messages."""
LEAST_ROWS_IN_STRATUM = 2
"""Rows of a stratum, on average. With fewer, the field tells rows apart, not groups of them."""
FEW_ROWS = 20
"""Pools up to this size may have any strata."""


@dataclass
class FieldCount:
    """How many rows have each named optional field, and the names of other fields.

    Attributes:
        rows: rows with any fields.
        named: name -> rows in which its value is not null.
        others: names of the first other fields.
    """

    rows: int = 0
    named: Counter[str] = field(default_factory=Counter)
    others: dict[str, None] = field(default_factory=dict)

    def add(self, rows: Iterable[Mapping[str, Any]], fields: FieldNames) -> None:
        """Count some rows."""
        wanted = set(named_fields(fields).values())
        for row in rows:
            self.rows += 1
            self.named.update(name for name in wanted if row.get(name) is not None)
            if len(self.others) < NAMES_KEPT:
                self.others.update(dict.fromkeys(name for name in row if name not in wanted))

    def as_json(self) -> dict[str, Any]:
        return {"rows": self.rows, "named": dict(self.named), "others": list(self.others)}

    def merge(self, other: Mapping[str, Any]) -> None:
        """Add a count that `as_json` returned."""
        self.rows += other["rows"]
        self.named.update(other["named"])
        if len(self.others) < NAMES_KEPT:
            self.others.update(dict.fromkeys(other["others"]))


def named_fields(fields: FieldNames) -> dict[str, str]:
    """Return key -> name of the optional fields that the configuration names itself."""
    keys = [key for key in OPTIONAL if key in fields.model_fields_set]
    if fields.messages is not None:
        keys = [key for key in keys if key != "context"]
    return {key: name for key in keys if (name := getattr(fields, key)) is not None}


def check_named_fields(count: FieldCount, fields: FieldNames, where: str, among: str = "") -> None:
    """Raise DataError if no row has an optional field that the configuration names.

    Args:
        where: the configuration key of the rows.
        among: " of the first N rows", if these are not all rows.
    """
    missing = {k: name for k, name in named_fields(fields).items() if not count.named[name]}
    if not missing or not count.rows:
        return
    known = [*count.named, *count.others]
    lines = []
    for key, name in missing.items():
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the rows have {first(known, 8)}"
        lines.append(f"  data.fields.{key}: {name!r} ({hint})")
    raise DataError(
        f"{where}: {len(missing)} field(s) that data.fields names are in none of the "
        f"{count.rows:,} rows{among}:\n" + "\n".join(lines) + "\n"
        "Name fields that the rows have; null says that there is none."
    )


@dataclass(frozen=True)
class FileResult:
    """What became of the rows of one file."""

    uri: str
    rows: int
    kept: int
    reasons: Mapping[str, int]


def check_files(files: Sequence[FileResult], where: str) -> None:
    """Raise DataError if there are files none of whose rows is usable, however few they are."""
    useless = [file for file in files if file.rows and not file.kept]
    if not useless:
        return
    lines = [f"  {file.uri}: {file.rows:,} rows ({_reasons(file.reasons)})" for file in useless[:3]]
    more = f"\n  and {len(useless) - 3:,} more" if len(useless) > 3 else ""
    raise DataError(
        f"{where}: {len(useless):,} of {len(files):,} files have no usable row:\n"
        + "\n".join(lines)
        + f"{more}\nLeave these files out, or correct them or data.fields."
    )


def _reasons(reasons: Mapping[str, int]) -> str:
    by_count = sorted(reasons.items(), key=lambda item: -item[1])
    return first([f"{count:,} {reason}" for reason, count in by_count])


def check_strata(num_strata: int, num_rows: int, name: str | None, where: str) -> None:
    """Raise DataError if a field divides the pool into nearly as many strata as it has rows."""
    if num_rows <= FEW_ROWS or num_strata * LEAST_ROWS_IN_STRATUM <= num_rows:
        return
    raise DataError(
        f"{where}: data.fields.stratum: {name!r} has {num_strata:,} different values in "
        f"{num_rows:,} rows, so nearly every row would be a stratum of its own. Name a field that "
        "says where rows come from or what their task is, or null for one stratum."
    )
