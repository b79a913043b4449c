"""How many clusters tell rows apart: a ladder of numbers is tried, and the last that paid is taken.

Centroids are fitted to half of a sample, and judged by how far the rows of the other half are from
them. While there is something to tell apart, more centroids bring these rows nearer by much. Beyond
that they split what looks alike, and the gain falls to that of splitting noise in T dimensions.

Shape letters: S sample rows, T checkpoints, R rungs of the ladder.

Sources: the gain that cells of T-dimensional noise give is what the criteria of Krzanowski and Lai
(1988), doi:10.2307/2531893, and of Sugar and James (2003), doi:10.1198/016214503000000666, compare
with; rows that nothing was fitted to are those of Tibshirani and Walther (2005),
doi:10.1198/106186005X59243, by distance instead of by pairs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from s2l_ray.clusters import kmeans

LEAST_GAIN = 0.25
"""A rung pays when it lowers the spread by so much, per doubling of the clusters, or by more where
there are few checkpoints."""
MIN_ROWS = 8
"""Of those that centroids are fitted to, for each of them, at the top of the ladder: of a stratum
that is its own sample, that is twice as many in a cluster."""
ROWS_TRIED = 12_800
"""Of a sample, both halves together."""
FARTHEST = 0.005
"""Share of the rows that is left out of a spread: those few that are like no other can be most of
what many clusters leave, and no number of clusters brings them nearer."""
ROWS_WITH_A_FARTHEST = 10
"""Of fewer, all count."""


@dataclass(frozen=True)
class Tried:
    """What each number of clusters came to.

    Attributes:
        num_clusters: R ascending numbers, the first one 1.
        spread: R, mean squared distance of rows that nothing was fitted to from their centroids,
            but for the `FARTHEST`, as a share of that with one cluster; 1 throughout where all
            rows are equal.
        least_gain: of a rung that pays.
    """

    num_clusters: Sequence[int]
    spread: Sequence[float]
    least_gain: float

    def gains(self) -> list[float]:
        """By how much each rung but the first lowers the spread, per doubling: (R - 1,).

        1 - (spread / spread before)^(1 / log2(clusters / clusters before)), from the rung before or
        from the one before that, whichever is less: one unlucky fit makes the next one look good.
        """
        rungs = list(zip(self.num_clusters, self.spread, strict=True))
        return [
            min(_gain(*before, *rungs[place]) for before in rungs[max(place - 2, 0) : place])
            for place in range(1, len(rungs))
        ]

    @property
    def chosen(self) -> int:
        """The most clusters that a rung which pays leads to; 1 where none does."""
        paid = [
            clusters
            for clusters, gain in zip(self.num_clusters[1:], self.gains(), strict=True)
            if gain >= self.least_gain
        ]
        return paid[-1] if paid else 1

    def as_json(self) -> dict[str, Any]:
        return {
            "chosen": self.chosen,
            "num_clusters": list(self.num_clusters),
            "spread": list(self.spread),
            "least_gain": self.least_gain,
        }


def sentence(tried: Mapping[str, Tried]) -> str:
    """How many clusters were chosen, and why, of one pool or of several strata."""
    each = list(tried.values())
    rule = (
        f"the last number at which a doubling lowers the spread of rows not fitted to by "
        f"{each[0].least_gain:.0%}"
    )
    if len(each) == 1:
        (name,) = tried
        where = f" in stratum {name!r}" if name else ""
        return f"auto chose {_plural(each[0].chosen)}{where}: {_reason(each[0], rule)}"
    few, *_, many = sorted(one.chosen for one in each)
    numbers = _plural(many) if few == many else f"{few:,} to {_plural(many)}"
    at_top = sum(one.chosen == one.num_clusters[-1] for one in each)
    return (
        f"auto chose {numbers} in each of {len(each):,} strata: {rule}; in {at_top:,} of them also "
        "the largest number tried"
    )


def _reason(tried: Tried, rule: str) -> str:
    gains = dict(zip(tried.num_clusters[1:], tried.gains(), strict=True))
    beyond = [gain for number, gain in gains.items() if number > tried.chosen]
    if not gains:
        return "there are too few rows, or too few that differ, to try more"
    if tried.chosen == 1:
        return f"no doubling lowers the spread of rows not fitted to by {tried.least_gain:.0%}"
    further = f"beyond by {max(beyond):.0%} at most" if beyond else "no larger number was tried"
    return f"{rule} (there by {gains[tried.chosen]:.0%}; {further})"


def _plural(number: int) -> str:
    return f"{number:,} cluster{'' if number == 1 else 's'}"


def least_gain(num_checkpoints: int) -> float:
    """`LEAST_GAIN`, or what twice the cells of noise in T / 2 dimensions gain: 1 - 2^(-4 / T).

    A cell of half the volume in D dimensions is 2^(-1 / D) as wide, and its mean square the square
    of that. Noise in T dimensions gains this for D = T where there are many cells, and more where
    few of them begin to tell its tails and corners apart.
    """
    return max(LEAST_GAIN, 1 - 2.0 ** (-4 / num_checkpoints))


def ladder(num_rows: int, most: int) -> list[int]:
    """The whole numbers next to the powers of the root of 2, up to `most` and to a MIN_ROWS-th."""
    top = min(most, max(num_rows // MIN_ROWS, 1))
    steps = range(2 * top.bit_length() + 1)
    return sorted({number for step in steps if (number := round(2 ** (step / 2))) <= top})


def attempt(sample_ST: np.ndarray, weight_S: np.ndarray, *, most: int, seed: int) -> Tried:
    """Every rung of the ladder, tried on rows of a sample.

    Args:
        sample_ST: float32 (S, T), rows in an order that says nothing of them.
        weight_S: int64 (S,), how many rows each stands for.
        most: clusters at the top.
        seed: decides the starts.
    """
    step = -(-len(sample_ST) // ROWS_TRIED)
    fitted, judged = slice(0, None, 2 * step), slice(step, None, 2 * step)
    numbers: list[int] = []
    inertia: list[float] = []
    for wanted in ladder(len(sample_ST[fitted]), most):
        centroid_KT = kmeans.initial_centroids(sample_ST[fitted], wanted, seed, weight_S[fitted])
        # Fewer distinct rows: the ladder ends with as many clusters as there are of them.
        if numbers and len(centroid_KT) == numbers[-1]:
            break
        numbers.append(len(centroid_KT))
        _, sqdist_S = kmeans.nearest(sample_ST[judged], centroid_KT)
        inertia.append(_without_farthest(sqdist_S, weight_S[judged]))
    whole = inertia[0]
    spread = [value / whole if whole else 1.0 for value in inertia]
    return Tried(numbers, spread, least_gain(sample_ST.shape[1]))


def _without_farthest(sqdist_S: np.ndarray, weight_S: np.ndarray) -> float:
    """The weighted sum of all but the largest: rows of at most a share FARTHEST are left out.

    Of a few rows, which are more than that share each, the farthest one is.
    """
    order_S = np.argsort(sqdist_S, kind="stable")
    sqdist_S, weight_S = sqdist_S[order_S], weight_S[order_S]
    beyond_S = weight_S[::-1].cumsum()[::-1]
    beyond = FARTHEST * weight_S.sum()
    if len(weight_S) >= ROWS_WITH_A_FARTHEST:
        beyond = max(beyond, weight_S[-1])
    return float((sqdist_S * weight_S)[beyond_S > beyond].sum())


def _gain(fewer: int, before: float, clusters: int, spread: float) -> float:
    return 1 - (spread / before if before else 1.0) ** (1 / math.log2(clusters / fewer))
