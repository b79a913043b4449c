"""The rows of a raw part that are left out because the configuration asks for it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from s2l_ray.data.row_errors import RowError
from s2l_ray.storage.location import Location

_COLUMNS = pa.schema([("position", pa.int64()), ("reason", pa.string()), ("detail", pa.string())])


@dataclass(frozen=True)
class DroppedRow:
    """A row that can be used and is left out.

    Attributes:
        position: its number in the raw part.
        reason: one of `row_errors.ASKED_FOR`.
        detail: which other row is the cause.
    """

    position: int
    reason: str
    detail: str


def stored(rows: Sequence[DroppedRow], unit: dict[str, Any], folder: Location) -> dict[str, Any]:
    """Write the rows to a file in `folder`, if there are any; return the unit with its name."""
    if not rows:
        return unit
    file = folder / f"dropped-{unit['part']:06d}.parquet"
    file.write_table(pa.Table.from_pylist([asdict(row) for row in rows], _COLUMNS))
    return unit | {"dropped": file.uri}


def load_dropped(unit: Mapping[str, Any]) -> dict[int, RowError]:
    """Return position -> error of the rows of a unit that are to be left out."""
    if "dropped" not in unit:
        return {}
    lines = Location.of(unit["dropped"]).read_table().to_pylist()
    return {line["position"]: RowError(line["reason"], line["detail"]) for line in lines}
