"""Water-filling over groups as one order: any budget takes a prefix of it.

Shape letters: N examples, G groups (clusters, strata or cells).
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Quotas:
    """What the groups are to have of a budget, by group number.

    Attributes:
        weight_G: float64 (G,), above zero; groups share a budget in proportion to it.
        minimum_G: int64 (G,), examples that come before all that are above a minimum.
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
    first, and what does not divide goes to those visited last. So the example in place p of its
    group comes before all in place p + 1, and in one place the group visited last comes first.
    """
    group_N = numbered(group_N)
    size_G = np.bincount(group_N)
    # (place, turn) as one integer; no two examples share it.
    turn_N = _places(group_N, size_G, order_N)
    turn_N *= len(size_G)
    turn_N += _turns(size_G)[group_N]
    return np.argsort(turn_N)


def weighted(group_N: np.ndarray, order_N: np.ndarray, quotas: Quotas) -> np.ndarray:
    """Reorder `order_N` so that its prefixes take from groups as `quotas` say.

    Inside a group the order stays, and the example in place p = 0, 1, ... of a group of weight w
    comes at time (p + 1/2) / w, at one time the groups' turns being those of `water_filled`. All
    places below a minimum come before all others, all places from a maximum on after all others.

    Between the minima and the maxima a prefix is therefore weighted water-filling, rounded: there
    is a level h such that it has of every group w h examples rounded to the nearest whole, or the
    group's minimum if that is more, or its maximum or its size if that is less. So two groups'
    levels (n + 1/2) / w differ by no more than one example of the group that is ahead. Rounding
    moves the level: against the water level at which unrounded shares add up to the prefix, a
    group's number is off by at most 1/2 + w/W G/2, with W the weights and G the number of the
    groups of which neither their size nor their minimum decides; that is one for a group of no
    more than average weight. With equal weights and no bounds this is exactly `water_filled`.

    Args:
        group_N: integer (N,), group numbers that `quotas` covers.

    Source:
        Rounding by the divisors p + 1/2 is Webster's (Sainte-Lague's) method of apportionment,
        which never takes back what a smaller budget gave: Balinski and Young (1982), Fair
        Representation.
    """
    size_G = np.bincount(group_N, minlength=len(quotas.weight_G))
    place_N = _places(group_N, size_G, order_N)
    phase_N = np.ones(len(place_N), np.int8)
    phase_N[place_N < quotas.minimum_G[group_N]] = 0
    phase_N[place_N >= quotas.maximum_G[group_N]] = 2
    time_N = (place_N + 0.5) / quotas.weight_G[group_N]
    return np.lexsort((_turns(size_G)[group_N], time_N, phase_N))


def numbered(group_N: np.ndarray) -> np.ndarray:
    """The same groups in the same order, numbered 0, 1, ... without gaps.

    In the narrowest dtype: pools are large, and up to 16 bits numpy sorts by radix.
    """
    if group_N.max(initial=0) > 4 * len(group_N):
        present_G, number_N = np.unique(group_N, return_inverse=True)
        return number_N.astype(np.min_scalar_type(len(present_G)))
    # The same without a sort, where a table of all numbers is about as long as the pool.
    number_G = np.cumsum(np.bincount(group_N) > 0) - 1
    return number_G.astype(np.min_scalar_type(len(number_G)))[group_N]


def _turns(size_G: np.ndarray) -> np.ndarray:
    """Whose turn it is first in one place: the group that Algorithm 1 visits last."""
    visit_order_G = np.argsort(size_G, kind="stable")
    turn_G = np.empty_like(visit_order_G)
    turn_G[visit_order_G[::-1]] = np.arange(len(size_G))
    return turn_G


def _places(group_N: np.ndarray, size_G: np.ndarray, order_N: np.ndarray) -> np.ndarray:
    """How many of its group stand before each example in `order_N`."""
    grouped_N = order_N[np.argsort(group_N[order_N], kind="stable")]
    place_in_group_N = np.arange(len(order_N))
    place_in_group_N -= np.repeat(np.cumsum(size_G) - size_G, size_G)
    place_N = np.empty_like(order_N)
    place_N[grouped_N] = place_in_group_N
    return place_N
