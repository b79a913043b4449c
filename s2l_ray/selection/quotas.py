"""Quotas of strata: the weights and bounds of the configuration, for the strata of a pool.

Shape letters: S strata.
"""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from s2l_ray.config import budgets
from s2l_ray.config.sections import SelectionConfig
from s2l_ray.config.selection import bound_of
from s2l_ray.errors import DataError, first
from s2l_ray.selection.water_filling import Quotas


@dataclass(frozen=True)
class StratumQuotas:
    """Strata that are not treated alike, and how many examples they can give.

    Attributes:
        strata: names, by number.
        size_S: int64 (S,), examples of each.
        quotas: their weights and bounds.
    """

    strata: Sequence[str]
    size_S: np.ndarray
    quotas: Quotas

    @property
    def most(self) -> int:
        """The number of examples that the maxima leave."""
        return int(np.minimum(self.size_S, self.quotas.maximum_G).sum())

    def check(self, num_selected: int) -> None:
        """Raise DataError if the bounds do not allow a subset of so many examples."""
        if num_selected > self.most:
            raise self.too_many(f"{num_selected:,} examples", self.most)
        least = int(np.minimum(self.size_S, self.quotas.minimum_G).sum())
        if num_selected < least:
            raise DataError(
                f"budget of {num_selected:,} examples: selection.minimum alone asks for {least:,} "
                f"over {int((self.quotas.minimum_G > 0).sum()):,} strata. Raise the budget or "
                "lower the minimum."
            )

    def too_many(self, wanted: str, given: int) -> DataError:
        """Return the error for a budget above what the maxima leave."""
        cut = np.flatnonzero(self.size_S > self.quotas.maximum_G).tolist()
        names = first([repr(self.strata[s]) for s in cut])
        return DataError(
            f"budget of {wanted}: selection.maximum leaves {given:,}, as {len(cut):,} of "
            f"{len(self.strata):,} strata have more examples than it allows (first: {names}). "
            "Lower the budget or raise the maximum."
        )


def stratum_quotas(
    config: SelectionConfig,
    strata: Sequence[str],
    size_S: np.ndarray,
    new_strata: Collection[str] = (),
) -> StratumQuotas | None:
    """Return the quotas of the strata; None if all strata are treated alike.

    Args:
        strata: the names of the strata, by number.
        size_S: int64 (S,), examples of each.
        new_strata: strata that only extensions of the run have. `config` may name them; they change
            nothing.

    Raises:
        DataError: a name is no stratum of the pool or of an extension, or its minimum is more than
            the pool has of it.
    """
    if config.is_even:
        return None
    for key in ("weights", "minimum", "maximum"):
        if isinstance(named := getattr(config, key), dict):
            _check_known(f"selection.{key}", named, strata, new_strata)
    if isinstance(config.minimum, dict):
        _check_large_enough(config.minimum, dict(zip(strata, size_S.tolist(), strict=True)))
    num_examples = int(size_S.sum())
    # A bound above the size of the pool has no effect, and might overflow an array.
    least = [min(bound_of(config.minimum, name) or 0, num_examples) for name in strata]
    most = [bound_of(config.maximum, name) for name in strata]
    quotas = Quotas(
        weight_G=np.array([config.weights.get(name, 1.0) for name in strata], np.float64),
        minimum_G=np.array(least, np.int64),
        maximum_G=np.array(
            [num_examples if n is None else min(n, num_examples) for n in most], np.int64
        ),
    )
    return StratumQuotas(strata, size_S, quotas)


def check_strata(
    config: SelectionConfig, size_by_name: Mapping[str, int], new_strata: Collection[str] = ()
) -> None:
    """Check names and bounds of strata as soon as the pool is counted.

    Raises:
        DataError: as `stratum_quotas`; or the bounds do not allow a budget in examples.
    """
    size_S = np.array(list(size_by_name.values()), np.int64)
    quotas = stratum_quotas(config, list(size_by_name), size_S, new_strata)
    if quotas is not None and not isinstance(config.budget, str):
        quotas.check(budgets.budget_rows(config.budget, int(size_S.sum())))


def _check_known(
    key: str, named: Mapping[str, object], strata: Sequence[str], new_strata: Collection[str]
) -> None:
    unknown = [name for name in named if name not in strata and name not in new_strata]
    if unknown:
        near = difflib.get_close_matches(unknown[0], strata, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"strata: {first(strata)}"
        raise DataError(
            f"{key}: {len(unknown):,} of {len(named):,} names are no strata of the pool "
            f"(first: {first([repr(name) for name in unknown])}); {hint}"
        )


def _check_large_enough(minimum: Mapping[str, int], size_by_name: Mapping[str, int]) -> None:
    short = [name for name, size in size_by_name.items() if minimum.get(name, 0) > size]
    if short:
        counts = [f"{name!r} has {size_by_name[name]:,} of {minimum[name]:,}" for name in short]
        raise DataError(
            f"selection.minimum: {len(short):,} strata have fewer examples than that (first: "
            f"{first(counts)}). Lower it, or give one number for all: then a smaller one gives all."
        )
