"""The examples that `selection.where` leaves to select from.

Shape letters: N examples of the pool, K of them that are left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from s2l_ray.errors import DataError
from s2l_ray.selection import conditions, named_values
from s2l_ray.selection.columns import Sources
from s2l_ray.selection.examples import Examples

KEY = "selection.where"


@dataclass(frozen=True)
class Remaining:
    """The examples for which a condition holds.

    Attributes:
        row_K: int64 (K,), their rows in the pool, ascending.
        num_examples: all examples of the pool.
        num_null: those for which the condition has no value, as a value in it is missing.
    """

    row_K: np.ndarray
    num_examples: int
    num_null: int

    @property
    def text(self) -> str:
        """How many are left, for people."""
        missing = (
            f"; for {self.num_null:,} others a value is missing (null)" if self.num_null else ""
        )
        return f"{KEY} holds for {len(self.row_K):,} of {self.num_examples:,} examples{missing}"

    def check(self, num_wanted: int) -> None:
        """Raise DataError if a budget asks for more examples than are left."""
        if num_wanted > len(self.row_K):
            raise DataError(
                f"budget of {num_wanted:,} examples: {self.text}. Lower the budget, which counts "
                "fractions of the whole pool, or ask for less in the condition."
            )


def remaining(text: str, examples: Examples, strata: Sequence[str], sources: Sources) -> Remaining:
    """Return the examples for which the condition `text` holds.

    The rows are read part by part.

    Args:
        text: the condition.
        examples: all examples of the pool.
        strata: the names of the strata, by number.
        sources: the files with their values.

    Raises:
        ConfigError: the text is no condition, a name is unknown, or values do not fit.
        DataError: an example has no row, or a number is missing.
    """
    condition = conditions.parsed(text)
    types = named_values.field_types(sources.rows)
    places = {name: named_values.origin(name, types.names, KEY) for name in condition.names}
    for place in places.values():
        named_values.check_typed(place, types, KEY)
    holds_N, num_null = np.zeros(len(examples.key_N), bool), 0
    for row_P, values in named_values.blocks(places, types, examples, strata, sources):
        held = condition.holds(values, len(row_P))
        num_null += held.null_count
        holds_N[row_P] = pc.fill_null(held, False).to_numpy(zero_copy_only=False)
    return Remaining(np.flatnonzero(holds_N), len(holds_N), num_null)
