"""Which examples a section `selection` takes: a ranking, and how much of it the budget takes.

Shape letters: N examples, S strata.
"""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from s2l_ray.config import budgets
from s2l_ray.config.sections import SelectionConfig
from s2l_ray.config.selection import bound_of
from s2l_ray.errors import DataError, first
from s2l_ray.selection import columns, embedding_matrix
from s2l_ray.selection.methods import METHODS, WITHIN, Examples
from s2l_ray.selection.water_filling import Quotas


@dataclass(frozen=True)
class Choice:
    """A ranking, and the subset that is its beginning.

    Attributes:
        order_N: int64 (N,), order_N[r] is the row that holds rank r.
        num_selected: the subset is the rows of the first so many ranks.
        num_tokens: of the subset, where the budget is in tokens.
    """

    order_N: np.ndarray
    num_selected: int
    num_tokens: int | None = None


def choose(
    config: SelectionConfig,
    examples: Examples,
    strata: Sequence[str],
    sources: columns.Sources,
    *,
    seed: int,
    elsewhere: Collection[str] = (),
) -> Choice:
    """Rank the pool and take the budget; reads from `sources` what these need, and no more.

    Args:
        examples: keys, clusters and strata of the pool.
        strata: the names of the strata, by number.
        elsewhere: strata that may be named although the pool has none of their examples.

    Raises:
        DataError, ConfigError: the pool cannot give the budget, a stratum is not in the pool, or
            numbers are missing.
    """
    method = METHODS[config.method]
    size_S = np.bincount(examples.stratum_N, minlength=len(strata))
    spread = None if method.ignores_strata else spread_of(config, strata, size_S, elsewhere)
    by_name = columns.read(needed(config), examples.key_N, sources)
    inside = _inside(config)
    inside_N = by_name[inside] if inside else None
    quotas = spread.quotas if spread else None
    with embedding_matrix.read(method.compares, examples.key_N, sources) as vector_by_name:
        known = replace(examples, values=by_name, inside_N=inside_N, vectors=vector_by_name)
        order_N = method.ranking(known, seed, stratify=config.stratify, quotas=quotas)
    if isinstance(config.budget, str):
        return _of_tokens(config.budget, order_N, by_name[columns.TOKENS][order_N], spread)
    num_selected = budgets.budget_rows(config.budget, len(order_N))
    if spread is not None:
        spread.check(num_selected)
    return Choice(order_N, num_selected)


def needed(config: SelectionConfig) -> set[str]:
    """The names of the values that the method, its order inside clusters and the budget need."""
    inside = _inside(config)
    names = {*METHODS[config.method].needs, *([inside] if inside else [])}
    return names | ({columns.TOKENS} if isinstance(config.budget, str) else set())


def _inside(config: SelectionConfig) -> str | None:
    """The value that orders the examples of a cluster."""
    return WITHIN[config.within] if config.method == "s2l" else None


def counts_tokens(config: SelectionConfig) -> bool:
    """Whether the selection, or one of its baselines, needs the numbers of tokens."""
    sections = [config, *map(config.with_method, config.baselines)]
    return any(needed(s) & {columns.TOKENS, columns.RESPONSE_TOKENS} for s in sections)


@dataclass(frozen=True)
class Spread:
    """Strata that are not treated alike, and what they can give.

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
        """How many examples the maxima leave."""
        return int(np.minimum(self.size_S, self.quotas.maximum_G).sum())

    def check(self, num_selected: int) -> None:
        """Raise DataError where the bounds do not let a subset have so many examples."""
        if num_selected > self.most:
            raise self.beyond(f"{num_selected:,} examples", self.most)
        least = int(np.minimum(self.size_S, self.quotas.minimum_G).sum())
        if num_selected < least:
            raise DataError(
                f"budget of {num_selected:,} examples: selection.minimum alone asks for {least:,} "
                f"over {int((self.quotas.minimum_G > 0).sum()):,} strata. Raise the budget or "
                "lower the minimum."
            )

    def beyond(self, wanted: str, given: int) -> DataError:
        cut = np.flatnonzero(self.size_S > self.quotas.maximum_G).tolist()
        names = first([repr(self.strata[s]) for s in cut])
        return DataError(
            f"budget of {wanted}: selection.maximum leaves {given:,}, as {len(cut):,} of "
            f"{len(self.strata):,} strata have more examples than it allows (first: {names}). "
            "Lower the budget or raise the maximum."
        )


def spread_of(
    config: SelectionConfig,
    strata: Sequence[str],
    size_S: np.ndarray,
    elsewhere: Collection[str] = (),
) -> Spread | None:
    """What each stratum is to have; None where all are treated alike.

    Raises:
        DataError: a name is no stratum of the pool or elsewhere, or its minimum is more than the
            pool has of it.
    """
    if config.is_even:
        return None
    for key in ("weights", "minimum", "maximum"):
        if isinstance(named := getattr(config, key), dict):
            _check_known(f"selection.{key}", named, strata, elsewhere)
    if isinstance(config.minimum, dict):
        _check_large_enough(config.minimum, dict(zip(strata, size_S.tolist(), strict=True)))
    num_examples = int(size_S.sum())
    # A bound above the pool is none, and might be more than an array can hold.
    least = [min(bound_of(config.minimum, name) or 0, num_examples) for name in strata]
    most = [bound_of(config.maximum, name) for name in strata]
    quotas = Quotas(
        weight_G=np.array([config.weights.get(name, 1.0) for name in strata], np.float64),
        minimum_G=np.array(least, np.int64),
        maximum_G=np.array(
            [num_examples if n is None else min(n, num_examples) for n in most], np.int64
        ),
    )
    return Spread(strata, size_S, quotas)


def check_strata(
    config: SelectionConfig, size_by_name: Mapping[str, int], elsewhere: Collection[str] = ()
) -> None:
    """Refuse names and bounds of strata that will not do, as soon as the pool is counted.

    Raises:
        DataError: as `choose`, for a budget in examples.
    """
    size_S = np.array(list(size_by_name.values()), np.int64)
    spread = spread_of(config, list(size_by_name), size_S, elsewhere)
    if spread is not None and not isinstance(config.budget, str):
        spread.check(budgets.budget_rows(config.budget, int(size_S.sum())))


def _check_known(
    key: str, named: Mapping[str, object], strata: Sequence[str], elsewhere: Collection[str]
) -> None:
    unknown = [name for name in named if name not in strata and name not in elsewhere]
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
        told = [f"{name!r} has {size_by_name[name]:,} of {minimum[name]:,}" for name in short]
        raise DataError(
            f"selection.minimum: {len(short):,} strata have fewer examples than that (first: "
            f"{first(told)}). Lower it, or give one number for all: then a smaller one gives all."
        )


def _of_tokens(
    budget: str, order_N: np.ndarray, num_tokens_R: np.ndarray, spread: Spread | None
) -> Choice:
    if spread is not None:
        given = int(num_tokens_R[: spread.most].sum(dtype=np.int64))
        wanted = budgets.num_tokens(budget) or 0
        if given < wanted <= int(num_tokens_R.sum(dtype=np.int64)):
            raise spread.beyond(f"{wanted:,} tokens", given)
    num_selected = budgets.rows_within(budget, num_tokens_R)
    if spread is not None:
        spread.check(num_selected)
    return Choice(order_N, num_selected, int(num_tokens_R[:num_selected].sum(dtype=np.int64)))
