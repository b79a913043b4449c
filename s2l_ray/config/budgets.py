"""Budgets: a number of examples, a fraction of the pool, or tokens.

A subset is always a prefix of a ranking. So the subset of a smaller budget is part of the subset of
a larger one from the same ranking, whatever the budgets are counted in.

Shape letters: N examples, R in order of rank.
"""

import json
import math
import re
from decimal import Decimal

import numpy as np

from s2l_ray.errors import ConfigError, DataError

Budget = int | float | str
"""A number of examples, a fraction of the pool, or a text such as "20M tokens"."""

_TOKENS = re.compile(r"\s*(\d[\d_]*(?:\.\d+)?)\s*([kmb]?)\s*tokens?\s*", re.IGNORECASE)
_UNITS = {"B": 10**9, "M": 10**6, "K": 10**3, "": 1}


def num_tokens(budget: Budget) -> int | None:
    """Return the number of tokens in `budget`; None if it counts examples.

    Raises:
        ValueError: a text that is no whole number of tokens above zero.
    """
    if not isinstance(budget, str):
        return None
    found = _TOKENS.fullmatch(budget)
    if found is None:
        raise ValueError(
            f"{budget!r} is no budget: give a number of examples (50000), a fraction of the pool "
            f"(0.11), or tokens (20M tokens)"
        )
    exact = Decimal(found[1].replace("_", "")) * _UNITS[found[2].upper()]
    if exact != int(exact) or exact < 1:
        raise ValueError(f"a budget in tokens is a whole number of them above zero, not {budget!r}")
    return int(exact)


def checked(budget: Budget) -> Budget:
    """`budget` in the one spelling of its value: 20_000_000 tokens are "20M tokens".

    Raises:
        ValueError: no pool can satisfy it.
    """
    if isinstance(budget, str):
        return f"{_short(num_tokens(budget) or 0)} tokens"
    if isinstance(budget, bool) or not budget > 0:
        raise ValueError(f"a budget must be above zero, not {budget}")
    if isinstance(budget, float) and budget > 1:
        raise ValueError(
            f"a budget is a number of examples (50000), tokens (20M tokens), or a fraction of the "
            f"pool up to 1.0, not {budget}"
        )
    return budget


def slug(budget: Budget) -> str:
    """`budget` as a part of a file's name: 50000, 0.11, 20M-tokens."""
    return budget.replace(" ", "-") if isinstance(budget, str) else json.dumps(budget)


def _short(tokens: int) -> str:
    """With the largest unit of which it is a whole number, or a whole number of tenths."""
    for unit, size in _UNITS.items():
        if tokens >= size and tokens % max(size // 10, 1) == 0:
            whole, tenths = divmod(tokens // max(size // 10, 1), 10) if unit else (tokens, 0)
            return f"{whole}{f'.{tenths}' if tenths else ''}{unit}"
    raise AssertionError(tokens)


def budget_rows(budget: int | float, num_rows: int) -> int:
    """The number of examples that `budget` stands for in a pool of `num_rows`.

    Args:
        budget: an integer is a number of examples; a float is a fraction of the pool, rounded
            down to whole examples, and at least one.
        num_rows: examples in the pool.

    Raises:
        ConfigError: the budget is not above zero, or a fraction above one.
        DataError: the budget is more than the pool, or the pool is empty.
    """
    if isinstance(budget, bool) or not budget > 0 or (isinstance(budget, float) and budget > 1):
        raise ConfigError(
            f"budget {budget} (pool: {num_rows:,} examples): give a number of examples "
            f"from 1 to {num_rows:,}, or a fraction above 0 and up to 1.0"
        )
    if isinstance(budget, float):
        # 0.29 * 100 is 28.999999999999996; whoever writes 0.29 means 29.
        num_wanted = max(1, math.floor(budget * num_rows + 1e-6))
    else:
        num_wanted = int(budget)
    if num_wanted > num_rows:
        raise DataError(
            f"budget {budget:,} is more than the pool of {num_rows:,} examples: "
            f"lower the budget or add data"
        )
    return num_wanted


def rows_within(budget: str, num_tokens_R: np.ndarray) -> int:
    """Return the length of the longest prefix of a ranking with no more tokens than `budget`.

    Args:
        budget: in tokens.
        num_tokens_R: integer (R,), tokens of the examples in order of rank, each at least one.

    Returns:
        between 1 and R. The prefix falls short of the budget by less than the tokens of the next
        example. No later, shorter one replaces that example, because subsets would no longer nest.

    Raises:
        DataError: all examples together have fewer tokens than `budget`, or the first has more.
    """
    wanted = num_tokens(budget)
    assert wanted is not None
    sum_R = np.cumsum(num_tokens_R, dtype=np.int64)
    total = int(sum_R[-1]) if len(sum_R) else 0
    if wanted > total:
        raise too_many_tokens(wanted, total, f"of {len(sum_R):,} examples")
    num_taken = int(np.searchsorted(sum_R, wanted, side="right"))
    if not num_taken:
        raise DataError(
            f"budget of {wanted:,} tokens: the first example of the ranking alone has "
            f"{int(sum_R[0]):,}. Raise the budget."
        )
    return num_taken


def too_many_tokens(wanted: int, total: int, of: str) -> DataError:
    return DataError(
        f"budget of {wanted:,} tokens is more than the pool {of} has ({total:,} tokens): "
        f"lower the budget or add data"
    )
