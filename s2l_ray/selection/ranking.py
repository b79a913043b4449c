"""The ranking of a pool by a section `selection`, and how much of it the budget takes.

Shape letters: N examples, R in order of rank.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from s2l_ray.config import budgets
from s2l_ray.config.sections import SelectionConfig
from s2l_ray.selection import columns, embedding_matrix, settings
from s2l_ray.selection.methods import Examples, method_named
from s2l_ray.selection.quotas import StratumQuotas, stratum_quotas


@dataclass(frozen=True)
class RankedPool:
    """A ranking, and the subset that is its beginning.

    Attributes:
        order_N: int64 (N,), order_N[r] is the row that has rank r.
        num_selected: the subset is the rows with ranks below this.
        num_tokens: tokens of the subset, if the budget is in tokens.
    """

    order_N: np.ndarray
    num_selected: int
    num_tokens: int | None = None

    @property
    def subset_R(self) -> np.ndarray:
        """The rows of the subset, in order of rank."""
        return self.order_N[: self.num_selected]


def rank_pool(
    config: SelectionConfig,
    examples: Examples,
    strata: Sequence[str],
    sources: columns.Sources,
    *,
    seed: int,
    new_strata: Collection[str] = (),
) -> RankedPool:
    """Rank the pool and take the budget; read from `sources` only what these need.

    Args:
        examples: keys, clusters and strata of the pool.
        strata: the names of the strata, by number.
        new_strata: strata that only extensions of the run have; `config` may name them.

    Raises:
        DataError, ConfigError: the pool cannot give the budget, a stratum is not in the pool, or
            numbers are missing.
    """
    method = method_named(config.method)
    size_S = np.bincount(examples.stratum_N, minlength=len(strata))
    quotas = None
    if not method.ignores_strata:
        quotas = stratum_quotas(config, strata, size_S, new_strata)
    by_name = columns.read(numbers_needed(config), examples.key_N, sources)
    inside = settings.inside_number(config)
    with embedding_matrix.read(method.vectors, examples.key_N, sources) as vector_by_name:
        known = replace(
            examples,
            numbers=by_name,
            inside_N=by_name[inside] if inside else None,
            vectors=vector_by_name,
        )
        order_N = method.ranking(
            known, seed, stratify=config.stratify, quotas=quotas.quotas if quotas else None
        )
    if isinstance(config.budget, str):
        return _within_tokens(config.budget, order_N, by_name[columns.TOKENS][order_N], quotas)
    num_selected = budgets.budget_rows(config.budget, len(order_N))
    if quotas is not None:
        quotas.check(num_selected)
    return RankedPool(order_N, num_selected)


def numbers_needed(config: SelectionConfig) -> set[str]:
    """Return the names of the numbers that the method, `within` and the budget read."""
    inside = settings.inside_number(config)
    names = {*method_named(config.method).numbers, *([inside] if inside else [])}
    return names | ({columns.TOKENS} if isinstance(config.budget, str) else set())


def counts_tokens(config: SelectionConfig) -> bool:
    """Return True if the selection, or one of its baselines, needs the numbers of tokens."""
    sections = [config, *(settings.with_method(config, name) for name in config.baselines)]
    counted = {columns.TOKENS, columns.RESPONSE_TOKENS}
    return columns.TOKENS in config.columns or any(numbers_needed(s) & counted for s in sections)


def _within_tokens(
    budget: str, order_N: np.ndarray, num_tokens_R: np.ndarray, quotas: StratumQuotas | None
) -> RankedPool:
    """Take the longest beginning of the ranking that has no more tokens than `budget`."""
    if quotas is not None:
        given = int(num_tokens_R[: quotas.most].sum(dtype=np.int64))
        wanted = budgets.num_tokens(budget) or 0
        if given < wanted <= int(num_tokens_R.sum(dtype=np.int64)):
            raise quotas.too_many(f"{wanted:,} tokens", given)
    num_selected = budgets.rows_within(budget, num_tokens_R)
    if quotas is not None:
        quotas.check(num_selected)
    return RankedPool(order_N, num_selected, int(num_tokens_R[:num_selected].sum(dtype=np.int64)))
