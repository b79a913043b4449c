"""The number of clusters, chosen by trials: the last number on a ladder at which more clusters pay.

Centroids are fitted to half of a sample. They are judged by the distances of the rows of the other
half. As long as the rows form groups, more centroids bring these rows much nearer. Beyond that,
they split rows that look alike, and the gain falls to that of splitting noise in T dimensions.

Shape letters: S sample rows, T checkpoints, R rungs of the ladder.

Sources: the criteria of Krzanowski and Lai (1988), doi:10.2307/2531893, and of Sugar and James
(2003), doi:10.1198/016214503000000666, also compare with the gain that cells of T-dimensional noise
give. Tibshirani and Walther (2005), doi:10.1198/106186005X59243, also judge by rows that nothing
was fitted to, by pairs of rows instead of distances.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from s2l_ray.clusters import kmeans

LEAST_GAIN = 0.25
"""A rung of the ladder pays if it lowers the spread by this share per doubling of the clusters, or
by more if there are few checkpoints (`least_gain`)."""
MIN_ROWS = 8
"""Rows for each centroid that are fitted to at the top of the ladder. In a stratum that is its own
sample, a cluster then has twice as many rows."""
ROWS_TRIED = 12_800
"""The most rows of a sample that the trials use, both halves together."""
FARTHEST = 0.005
"""The share of the rows, the farthest, that is left out of a spread. A few rows that are like no
other can make up most of the spread of many clusters; no number of clusters brings them nearer."""
ROWS_WITH_A_FARTHEST = 10
"""With fewer rows, none is left out."""


@dataclass(frozen=True)
class Trials:
    """The numbers of clusters that were tried, and the spread that each left.

    Attributes:
        num_clusters: R ascending numbers, the first one 1.
        spread: R numbers: the mean squared distance from the centroids of rows that nothing was
            fitted to, without the share `FARTHEST` of them, divided by that for one cluster. All
            are 1 if all rows are equal.
        least_gain: the gain from which on a rung pays.
    """

    num_clusters: Sequence[int]
    spread: Sequence[float]
    least_gain: float

    def gains(self) -> list[float]:
        """Return by how much each rung but the first lowers the spread per doubling: R - 1 numbers.

        The gain is 1 - (spread / spread before)^(1 / log2(clusters / clusters before)). Of the
        gains over the rung before and over the one before that, the smaller counts: one unlucky
        fit makes the next one look good.
        """
        rungs = list(zip(self.num_clusters, self.spread, strict=True))
        return [
            min(_gain(*before, *rungs[rung]) for before in rungs[max(rung - 2, 0) : rung])
            for rung in range(1, len(rungs))
        ]

    @property
    def chosen(self) -> int:
        """The largest number of clusters whose rung pays; 1 if no rung does."""
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


def sentence(tried: Mapping[str, Trials]) -> str:
    """Return a sentence on how many clusters were chosen and why, for one or several strata."""
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


def _reason(tried: Trials, rule: str) -> str:
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
    """Return the gain per doubling from which on a rung pays: max(LEAST_GAIN, 1 - 2^(-4 / T)).

    A cell of half the volume in D dimensions is 2^(-1 / D) as wide, and its mean square the square
    of that: a gain of 1 - 2^(-2 / D). Noise in T dimensions gains this for D = T if there are many
    cells. With few cells it gains more, as they begin to tell its tails and corners apart. So the
    formula takes D = T / 2.
    """
    return max(LEAST_GAIN, 1 - 2.0 ** (-4 / num_checkpoints))


def ladder(num_rows: int, most: int) -> list[int]:
    """Return the numbers to try: powers of the root of 2, rounded.

    They go up to `most` and to `num_rows` / MIN_ROWS.
    """
    top = min(most, max(num_rows // MIN_ROWS, 1))
    steps = range(2 * top.bit_length() + 1)
    return sorted({number for step in steps if (number := round(2 ** (step / 2))) <= top})


def try_ladder(sample_ST: np.ndarray, weight_S: np.ndarray, *, most: int, seed: int) -> Trials:
    """Try every rung of the ladder on rows of a sample.

    Args:
        sample_ST: float32 (S, T), rows in an order that does not depend on their values.
        weight_S: int64 (S,), how many rows each stands for.
        most: the most clusters to try.
        seed: decides the starts.
    """
    step = -(-len(sample_ST) // ROWS_TRIED)
    fitted, judged = slice(0, None, 2 * step), slice(step, None, 2 * step)
    numbers: list[int] = []
    inertia: list[float] = []
    for wanted in ladder(len(sample_ST[fitted]), most):
        centroid_KT = kmeans.initial_centroids(sample_ST[fitted], wanted, seed, weight_S[fitted])
        # There are no more distinct rows than this, so the ladder ends here.
        if numbers and len(centroid_KT) == numbers[-1]:
            break
        numbers.append(len(centroid_KT))
        _, sqdist_S = kmeans.nearest(sample_ST[judged], centroid_KT)
        inertia.append(_without_farthest(sqdist_S, weight_S[judged]))
    whole = inertia[0]
    spread = [value / whole if whole else 1.0 for value in inertia]
    return Trials(numbers, spread, least_gain(sample_ST.shape[1]))


def _without_farthest(sqdist_S: np.ndarray, weight_S: np.ndarray) -> float:
    """Return the weighted sum without the largest distances.

    The rows that are left out weigh at most the share FARTHEST of all. If each row weighs more than
    that, the farthest row is left out, unless there are fewer rows than ROWS_WITH_A_FARTHEST.
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
