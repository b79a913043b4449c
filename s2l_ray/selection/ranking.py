"""The ranking of a pool by a section `selection`, and how much of it the budget takes.

Shape letters: N examples, K of them that a condition leaves, R in order of rank.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from s2l_ray.config import budgets
from s2l_ray.config.sections import SelectionConfig
from s2l_ray.errors import DataError
from s2l_ray.selection import columns, embedding_matrix, rankings, scores, settings
from s2l_ray.selection.examples import Examples
from s2l_ray.selection.methods import method_named
from s2l_ray.selection.quotas import StratumQuotas, stratum_quotas
from s2l_ray.selection.where import Remaining, remaining

BYTES_PER_ROW = 65
"""What a ranking by clusters holds of an example while it sorts."""


@dataclass(frozen=True)
class RankedPool:
    """A ranking, and the subset that is its beginning.

    Attributes:
        order_K: int64 (K,), order_K[r] is the row of the pool that has rank r. Without a condition
            K is N; with one, it is the number of examples for which it holds.
        num_selected: the subset is the rows with ranks below this.
        num_tokens: tokens of the subset, if the budget is in tokens.
        remaining: what the condition leaves; None without one.
        notes: remarks for the user.
    """

    order_K: np.ndarray
    num_selected: int
    num_tokens: int | None = None
    remaining: Remaining | None = None
    notes: tuple[str, ...] = ()

    @property
    def subset_R(self) -> np.ndarray:
        """The rows of the subset, in order of rank."""
        return self.order_K[: self.num_selected]


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
        DataError, ConfigError: the pool cannot give the budget, a stratum is not in the pool, a
            condition or a score does not fit, or numbers are missing.
    """
    num_examples, left = len(examples.key_N), None
    if config.where is not None:
        left = remaining(config.where, examples, strata, sources)
        if not isinstance(config.budget, str):
            left.check(budgets.budget_rows(config.budget, num_examples))
    row_K = left.row_K if left is not None else slice(None)
    number_by_name: dict[str, np.ndarray] = {}
    notes: tuple[str, ...] = ()
    needed = numbers_needed(config)
    if settings.SCORE in needed:
        needed_N = np.zeros(num_examples, bool)
        needed_N[row_K] = True
        given = scores.read(config, examples, strata, sources, needed_N)
        number_by_name[settings.SCORE], notes = given.value_N[row_K], given.notes
    kept = examples.at(left.row_K) if left is not None else examples
    number_by_name |= columns.read(needed - {settings.SCORE}, kept.key_N, sources)
    inside = settings.inside_number(config)
    kept = replace(
        kept, numbers=number_by_name, inside_N=number_by_name[inside] if inside else None
    )
    size_S = np.bincount(kept.stratum_N, minlength=len(strata))
    quotas = None
    if not method_named(config.method).ignores_strata:
        quotas = stratum_quotas(config, strata, size_S, new_strata)
    order_K = _order(config, kept, sources, seed, quotas)
    of_pool_K = left.row_K[order_K] if left is not None else order_K
    ranked = RankedPool(of_pool_K, 0, remaining=left, notes=notes)
    if isinstance(config.budget, str):
        return _within_tokens(
            ranked, config.budget, number_by_name[columns.TOKENS][order_K], quotas
        )
    num_selected = budgets.budget_rows(config.budget, num_examples)
    if quotas is not None:
        quotas.check(num_selected)
    return replace(ranked, num_selected=num_selected)


def _order(
    config: SelectionConfig,
    examples: Examples,
    sources: columns.Sources,
    seed: int,
    quotas: StratumQuotas | None,
) -> np.ndarray:
    """Return the examples in order of rank; unlearned ones last in their stratum if that is asked.

    The learned examples are ranked as if there were no others, and then the unlearned ones.
    """
    if config.unlearned == "keep":
        return _by_method(config, examples, sources, seed, quotas)
    is_learned_N = examples.numbers[_SLOPE] < 0
    if len(is_learned_N) and not is_learned_N.any():
        raise DataError(
            f"selection.unlearned: the loss of none of {len(is_learned_N):,} examples falls over "
            "the checkpoints, so none was learned. Leave it out, or train the reference longer, "
            "with several checkpoints."
        )
    groups = [np.flatnonzero(is_learned_N), np.flatnonzero(~is_learned_N)]
    order_N = np.concatenate(
        [
            row_K[_by_method(config, examples.at(row_K), sources, seed, None)]
            for row_K in groups
            if len(row_K)
        ]
        or [np.arange(0)]
    )
    if not method_named(config.method).spreads(config.stratify):
        return order_N
    return rankings.over_strata(examples, order_N, quotas.quotas if quotas else None)


def _by_method(
    config: SelectionConfig,
    examples: Examples,
    sources: columns.Sources,
    seed: int,
    quotas: StratumQuotas | None,
) -> np.ndarray:
    """Return the examples in the order of the method; the vectors that it compares are read."""
    method = method_named(config.method)
    with embedding_matrix.read(method.vectors, examples.key_N, sources) as vector_by_name:
        known = replace(
            examples,
            vectors=vector_by_name,
            settings={key: getattr(config, key) for key in method.settings},
        )
        return method.ranking(
            known, seed, stratify=config.stratify, quotas=quotas.quotas if quotas else None
        )


_SLOPE = "loss_slope"


def numbers_needed(config: SelectionConfig) -> set[str]:
    """Return the names of the numbers that the method, its settings and the budget read."""
    inside = settings.inside_number(config)
    names = {*method_named(config.method).numbers, *([inside] if inside else [])}
    names |= {_SLOPE} if config.unlearned == "last" else set()
    return names | ({columns.TOKENS} if isinstance(config.budget, str) else set())


def counts_tokens(config: SelectionConfig) -> bool:
    """Return True if the selection, or one of its baselines, needs the numbers of tokens.

    Names in a condition or a score may be those of fields, so they do not count here.
    """
    sections = [config, *(settings.with_method(config, name) for name in config.baselines)]
    counted = {columns.TOKENS, columns.RESPONSE_TOKENS}
    return columns.TOKENS in config.columns or any(numbers_needed(s) & counted for s in sections)


def _within_tokens(
    ranked: RankedPool, budget: str, num_tokens_K: np.ndarray, quotas: StratumQuotas | None
) -> RankedPool:
    """Take the longest beginning of the ranking that has no more tokens than `budget`."""
    wanted, total = budgets.num_tokens(budget) or 0, int(num_tokens_K.sum(dtype=np.int64))
    if ranked.remaining is not None and wanted > total:
        raise DataError(
            f"budget of {wanted:,} tokens: {ranked.remaining.text}, and they have {total:,} "
            "tokens. Lower the budget, or ask for less in the condition."
        )
    if quotas is not None:
        given = int(num_tokens_K[: quotas.most].sum(dtype=np.int64))
        if given < wanted <= total:
            raise quotas.too_many(f"{wanted:,} tokens", given)
    num_selected = budgets.rows_within(budget, num_tokens_K)
    if quotas is not None:
        quotas.check(num_selected)
    num_tokens = int(num_tokens_K[:num_selected].sum(dtype=np.int64))
    return replace(ranked, num_selected=num_selected, num_tokens=num_tokens)
