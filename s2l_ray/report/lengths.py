"""Lengths of examples in the pool and in the subset; of a large pool, those of a sample.

Shapes: N rows of a batch, L lengths in tokens, B bins.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from s2l_ray.artifacts.finished import Finished
from s2l_ray.artifacts.tables import Parts
from s2l_ray.data.declaration import PREPARE
from s2l_ray.report import ranked_head
from s2l_ray.selection.declaration import SELECTION
from s2l_ray.storage.location import Location

NUM_BINS = 40
MAX_FILES = 512
"""Files that are read, spread evenly over the pool."""
MAX_SELECTED = 200_000
"""Selected examples, spread evenly over the ranks, that are looked for in these files."""
ROWS_PER_LOOKUP = 1 << 19
"""Rows that are compared with the selected ids at once: a table of these ids is built each time."""


@dataclass(frozen=True, eq=False)
class Lengths:
    """Numbers of examples by their tokens, prompt and response together."""

    is_sample: bool = field(default=False, kw_only=True)

    pool_L: np.ndarray
    """int64 (L,): examples of the pool with 0, 1, 2, ... tokens."""
    selected_L: np.ndarray | None = None
    """int64 (L,): the same of selected examples, or of a sample of them; None without a subset."""


def lengths(finished: Mapping[str, Finished]) -> Lengths | None:
    """Return the lengths of the prepared rows; None if no row is prepared."""
    if PREPARE.name not in finished:
        return None
    selection = finished.get(SELECTION.name)
    chosen = ranked_head.spread_ids(selection, MAX_SELECTED) if selection else None
    pool_L, selected_L = np.zeros(0, np.int64), np.zeros(0, np.int64)
    files = Parts(finished[PREPARE.name].folder).files()
    step = max(1, -(-len(files) // MAX_FILES))
    for batch in _batches(files[::step]):
        pool_L = _added(pool_L, batch["num_tokens"].to_numpy())
        if chosen is not None:
            is_chosen = pc.is_in(batch["example_id"], chosen)
            selected_L = _added(selected_L, batch["num_tokens"].filter(is_chosen).to_numpy())
    if not pool_L.any():
        return None
    return Lengths(pool_L, selected_L if selected_L.any() else None, is_sample=step > 1)


def median(count_L: np.ndarray) -> int:
    """Return the length of the middle example; the shorter one of two."""
    return int(np.searchsorted(np.cumsum(count_L), count_L.sum() / 2))


def histogram(found: Lengths) -> list[dict[str, Any]]:
    """Return lines with the ends of each bin, and the shares of pool and subset in it."""
    longest = int(np.flatnonzero(found.pool_L).max())
    width = max(1, -(-(longest + 1) // NUM_BINS))
    lines = []
    for name, count_L in (("pool", found.pool_L), ("subset", found.selected_L)):
        if count_L is None:
            continue
        count_L = count_L[: longest + 1]
        count_B = np.add.reduceat(count_L, np.arange(0, len(count_L), width))
        for index, number in enumerate(count_B.tolist()):
            lines.append(
                {
                    "part": name,
                    "from": index * width,
                    "to": (index + 1) * width,
                    "examples": number,
                    "share": round(number / int(count_L.sum()), 6),
                }
            )
    return lines


def _batches(files: Sequence[Location]) -> Iterator[pa.Table]:
    """Yield tables of some parts that know the lengths of their rows."""
    waiting: list[pa.Table] = []
    for file in files:
        table = file.read_table(["example_id"], optional=["num_tokens"])
        if "num_tokens" in table.column_names:
            waiting.append(table)
        if sum(part.num_rows for part in waiting) >= ROWS_PER_LOOKUP:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _added(count_L: np.ndarray, length_N: np.ndarray) -> np.ndarray:
    more_L = np.bincount(length_N, minlength=len(count_L))
    more_L[: len(count_L)] += count_L
    return more_L
