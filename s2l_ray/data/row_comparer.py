"""The worker that compares a table of rows with evaluation sets, and makes signatures of its rows.

A table is either a finished part (`rows-*`) or a raw part, whose rows have no ids yet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from s2l_ray.artifacts.tables import original_rows
from s2l_ray.config.data import FieldNames
from s2l_ray.data import duplicates, near_duplicates
from s2l_ray.data.contamination import Match, PromptIndex
from s2l_ray.data.examples import Example, read_example
from s2l_ray.data.words import words
from s2l_ray.storage.location import Location

PROMPTS_FILE = "prompts.parquet"
"""The prompts of the evaluation sets, in the folder of the comparison; absent to look for none."""
MATCHES = pa.schema(
    [
        ("position", pa.int64()),
        ("prompt", pa.int64()),
        ("kind", pa.string()),
        ("share", pa.float64()),
        ("matched", pa.string()),
    ]
)
"""Columns of the matches of one table, as `contamination.Match` has them."""


@dataclass(frozen=True)
class Comparison:
    """What rows are compared for.

    Attributes:
        folder: holds the prompts, and gets the results.
        fields: names of the fields of a row.
        with_prompts: whether to look for prompts of evaluation sets.
        with_signatures: whether to make signatures, to find near-duplicates.
        drops_matches: whether rows that hold a prompt are dropped, so that no row repeats them.
    """

    folder: Location
    fields: FieldNames
    with_prompts: bool
    with_signatures: bool
    drops_matches: bool = False


class RowComparer:
    """Writes the matches and the signatures of one table of rows after the other."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison, self.folder = comparison, comparison.folder
        self.index = None
        if comparison.with_prompts:
            self.index = PromptIndex((self.folder / PROMPTS_FILE).read_table())

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        # By the name of its rows as well: what an older version left of other parts is redone.
        name = Location.of(unit["rows"]).name
        done = self.folder / f"done-{unit['number']:06d}-{name}.json"
        if not done.is_file():
            done.write_json(self._compare(unit))
        result: dict[str, Any] = done.read_json()
        return result

    def _compare(self, unit: Mapping[str, Any]) -> dict[str, Any]:
        rows = original_rows(Location.of(unit["rows"]).read_table())
        examples = [read_example(row, self.comparison.fields) for row in rows]
        positions: Sequence[int] = range(len(examples))
        if unit["checked"]:
            positions, examples = _usable(unit, examples)
        number, matches, signed = unit["number"], list[Match](), 0
        if self.index is not None and unit["is_new"]:
            matches = self.index.matches(examples)
            (self.folder / matches_name(number)).write_table(_table(matches, positions))
        if self.comparison.with_signatures:
            dropped = {item.position for item in matches} if self.comparison.drops_matches else {}
            kept = [i for i in range(len(examples)) if i not in dropped]
            signature_R = near_duplicates.signatures(
                [positions[i] for i in kept],
                [[w for m in examples[i].messages for w in words(m.content)] for i in kept],
            )
            (self.folder / signatures_name(number)).write_npy(signature_R)
            signed = len(signature_R)
        return {"number": number, "matches": len(matches), "signed": signed}


def matches_name(number: int) -> str:
    """Return the name of the file with the matches of table number `number`."""
    return f"matches-{number:06d}.parquet"


def signatures_name(number: int) -> str:
    """Return the name of the file with the signatures of table number `number`."""
    return f"signatures-{number:06d}.npy"


def _usable(
    unit: Mapping[str, Any], examples: Sequence[Example]
) -> tuple[Sequence[int], list[Example]]:
    """Return the positions in a raw part and the examples of the rows that may be kept.

    They leave out rows that the pool has, and those whose id repeats another one.
    """
    reasons = Location.of(unit["checked"]).read_table(["reason"])["reason"]
    in_pool_P = np.zeros(len(reasons), bool)
    if unit["known"] is not None:
        in_pool_P = duplicates.unpacked(unit["known"], len(reasons))
    repeated = {position for position, _ in unit["repeats"]}
    good = np.flatnonzero(np.asarray(reasons.is_null())).tolist()
    kept = [
        (position, example)
        for position, example in zip(good, examples, strict=True)
        if not in_pool_P[position] and not (position in repeated and example.id is not None)
    ]
    return [position for position, _ in kept], [example for _, example in kept]


def _table(matches: Sequence[Match], positions: Sequence[int]) -> pa.Table:
    lines = [asdict(item) | {"position": positions[item.position]} for item in matches]
    return pa.Table.from_pylist(lines, MATCHES)
