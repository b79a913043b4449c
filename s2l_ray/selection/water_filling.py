"""Water-filling over groups, as one order of which any budget takes a prefix.

Shape letters: N examples, G groups (clusters, strata or cells), P positions in a group.
"""

from dataclasses import dataclass

import numpy as np

_ROWS_PER_BLOCK = 1 << 18


@dataclass(frozen=True)
class Quotas:
    """The share of each group in a budget, by group number.

    Attributes:
        weight_G: float64 (G,), above zero; groups share a budget in proportion to it.
        minimum_G: int64 (G,), so many examples of a group come before all examples of any group
            that are above its minimum.
        maximum_G: int64 (G,), at least the minimum; examples beyond it come last.
    """

    weight_G: np.ndarray
    minimum_G: np.ndarray
    maximum_G: np.ndarray

    def __post_init__(self) -> None:
        if not np.all((self.weight_G > 0) & np.isfinite(self.weight_G)):
            raise ValueError("weights must be finite and above zero")
        if np.any(self.minimum_G < 0) or np.any(self.maximum_G < self.minimum_G):
            raise ValueError("a minimum must not be negative or above its maximum")


def water_filled(group_N: np.ndarray, order_N: np.ndarray) -> np.ndarray:
    """Reorder `order_N` so that its prefixes take evenly from groups, as Algorithm 1 of S2L does.

    Inside a group the order stays. Algorithm 1 gives all groups the same quota, smallest group
    first, and the remainder of the division goes to the groups that it visits last. So the example
    at position p of its group comes before all at position p + 1. Among examples at the same
    position, that of the group visited last comes first.
    """
    group_N = numbered(group_N)
    size_G = _sizes(group_N)
    grouped_N = order_N[np.argsort(group_N[order_N], kind="stable")]
    first_rank_P = _first_ranks(size_G)
    ranked_N, start = np.empty_like(order_N), 0
    for size, turn in zip(size_G.tolist(), _turns(size_G).tolist(), strict=True):
        # The groups that reach a position are those with the first turns: larger ones come first.
        ranked_N[first_rank_P[:size] + turn] = grouped_N[start : start + size]
        start += size
    return ranked_N


def weighted(group_N: np.ndarray, order_N: np.ndarray, quotas: Quotas) -> np.ndarray:
    """Reorder `order_N` so that its prefixes take from groups according to `quotas`.

    Inside a group the order stays. The example at position p = 0, 1, ... of a group of weight w
    comes at time (p + 1/2) / w; at equal times the turns of the groups are those of `water_filled`.
    All positions below a minimum come before all others, and all positions from a maximum on after
    all others.

    So between the minima and the maxima a prefix is weighted water-filling, rounded. There is a
    level h such that the prefix has w h examples of every group, rounded to the nearest integer;
    or the group's minimum if that is more; or its maximum or its size if that is less. The levels
    (n + 1/2) / w of two groups differ by at most one example of the group that is ahead.

    Rounding moves the level. Compare it with the water level at which unrounded shares add up to
    the prefix: the number of a group is off by at most 1/2 + w/W G/2. Here W is the sum of the
    weights and G the number of the groups that neither their size nor their minimum limits. That is
    at most one for a group of no more than average weight. With equal weights and no bounds the
    result is exactly that of `water_filled`.

    Args:
        group_N: integer (N,), group numbers that `quotas` covers.

    Source:
        Rounding by the divisors p + 1/2 is Webster's (Sainte-Lague's) method of apportionment,
        which never takes back what a smaller budget gave: Balinski and Young (1982), Fair
        Representation.
    """
    size_G = np.bincount(group_N, minlength=len(quotas.weight_G))
    position_N = _positions(group_N, size_G, order_N)
    phase_N = np.ones(len(position_N), np.int8)
    phase_N[position_N < quotas.minimum_G[group_N]] = 0
    phase_N[position_N >= quotas.maximum_G[group_N]] = 2
    time_N = (position_N + 0.5) / quotas.weight_G[group_N]
    return np.lexsort((_turns(size_G)[group_N], time_N, phase_N))


def numbered(group_N: np.ndarray) -> np.ndarray:
    """Return the same groups in the same order, numbered 0, 1, ... without gaps.

    The dtype is the narrowest one: pools are large, and numpy sorts up to 16 bits by radix.
    """
    if group_N.max(initial=0) > 4 * len(group_N):
        present_G, number_N = np.unique(group_N, return_inverse=True)
        return number_N.astype(np.min_scalar_type(len(present_G)))
    # No sort is needed: a table of all numbers is at most a few times as long as the pool. Block
    # by block, as numpy copies indices into 8 bytes each.
    is_there_G = np.zeros(_largest(group_N) + 1, bool)
    blocks = [slice(s, s + _ROWS_PER_BLOCK) for s in range(0, len(group_N), _ROWS_PER_BLOCK)]
    for rows in blocks:
        is_there_G[group_N[rows]] = True
    number_G = np.cumsum(is_there_G) - 1
    number_G = number_G.astype(np.min_scalar_type(len(number_G)))
    number_N = np.empty(len(group_N), number_G.dtype)
    for rows in blocks:
        number_N[rows] = number_G[group_N[rows]]
    return number_N


def _sizes(group_N: np.ndarray) -> np.ndarray:
    """Return the number of examples of each group, without a copy of `group_N` in 8 bytes each."""
    size_G = np.zeros(_largest(group_N) + 1, np.int64)
    for start in range(0, len(group_N), _ROWS_PER_BLOCK):
        size_G += np.bincount(group_N[start : start + _ROWS_PER_BLOCK], minlength=len(size_G))
    return size_G


def _largest(group_N: np.ndarray) -> int:
    return int(group_N.max()) if len(group_N) else -1


def _first_ranks(size_G: np.ndarray) -> np.ndarray:
    """Return for each position how many examples have a lower one: int64 (P,)."""
    num_reaching_P = len(size_G) - np.cumsum(np.bincount(size_G))[:-1]
    return np.concatenate([[0], np.cumsum(num_reaching_P)[:-1]]) if len(size_G) else num_reaching_P


def _turns(size_G: np.ndarray) -> np.ndarray:
    """Return the turn of each group at one position, 0 for the one that Algorithm 1 visits last."""
    visit_order_G = np.argsort(size_G, kind="stable")
    turn_G = np.empty_like(visit_order_G)
    turn_G[visit_order_G[::-1]] = np.arange(len(size_G))
    return turn_G


def _positions(group_N: np.ndarray, size_G: np.ndarray, order_N: np.ndarray) -> np.ndarray:
    """Return for each example how many examples of its group come before it in `order_N`."""
    grouped_N = order_N[np.argsort(group_N[order_N], kind="stable")]
    position_in_group_N = np.arange(len(order_N))
    position_in_group_N -= np.repeat(np.cumsum(size_G) - size_G, size_G)
    position_N = np.empty_like(order_N)
    position_N[grouped_N] = position_in_group_N
    return position_N
