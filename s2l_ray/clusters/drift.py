"""Whether new trajectories lie as near to their centroids as those that these were fitted to.

Squared distances are counted in logarithmic bins, group by group (a group is what was clustered
together: a stratum, or the pool). A bin is the first 16 bits of a float32, less than 0.8% wide,
and only occupied ones are held, so memory follows the groups and not the examples.

Shape letters: N examples, B occupied bins.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from s2l_ray.evaluation.intervals import wilson_interval

MAX_SHARE_BEYOND = 0.10
"""Of new rows beyond the 95th percentile of old ones: twice what there would be by chance."""

_BITS = 16
_MASK = (1 << _BITS) - 1
_INFINITE = 0x7F80
"""The bin of examples without another one in their cluster."""


@dataclass(frozen=True)
class Histogram:
    """How many examples of each group are in each bin of squared distance.

    Attributes:
        bin_B: int64 (B,), ascending: the number of the group, times 2^16, plus that of the bin.
        count_B: int64 (B,), above zero.
    """

    bin_B: np.ndarray
    count_B: np.ndarray

    @classmethod
    def of(cls, group_N: np.ndarray, sqdist_N: np.ndarray) -> "Histogram":
        """Groups are integers from 0; squared distances, read as float32, are at least 0."""
        bits_N = np.ascontiguousarray(sqdist_N, np.float32).view(np.uint32) >> _BITS
        return cls(*np.unique((group_N.astype(np.int64) << _BITS) + bits_N, return_counts=True))

    def merge(self, other: "Histogram") -> "Histogram":
        """The counts over the examples of both."""
        bin_B, place_B = np.unique(np.concatenate([self.bin_B, other.bin_B]), return_inverse=True)
        count_B = np.zeros(len(bin_B), np.int64)
        np.add.at(count_B, place_B, np.concatenate([self.count_B, other.count_B]))
        return Histogram(bin_B, count_B)

    def within(self, groups: set[int]) -> "Histogram":
        """The counts of these groups alone."""
        keep_B = np.isin(self.bin_B >> _BITS, sorted(groups))
        return Histogram(self.bin_B[keep_B], self.count_B[keep_B])

    @property
    def num_rows(self) -> int:
        return int(self.count_B.sum())

    def rows_by_group(self) -> dict[int, int]:
        return {group: int(part.count_B.sum()) for group, part in self._groups()}

    def finite(self) -> "Histogram":
        """The counts of examples that are not infinitely far."""
        keep_B = (self.bin_B & _MASK) != _INFINITE
        return Histogram(self.bin_B[keep_B], self.count_B[keep_B])

    def distance(self, share: float) -> float:
        """That which so large a share of all examples do not exceed, within 0.4%; all finite."""
        bin_B, place_B = np.unique(self.bin_B & _MASK, return_inverse=True)
        merged = Histogram(bin_B, np.bincount(place_B, self.count_B).astype(np.int64))
        last = merged._last_bin(share)
        # The middle of the bin; the first one holds zero.
        bits = np.uint32(last << _BITS | 1 << _BITS - 1 if last else 0)
        return float(np.sqrt(bits.view(np.float32)))

    def limits(self, share: float) -> dict[int, int]:
        """By group, the bin that holds its quantile `share`."""
        return {group: part._last_bin(share) & _MASK for group, part in self._groups()}

    def num_beyond(self, limits: dict[int, int]) -> int:
        """Examples in bins above that of their own group, or infinitely far."""
        total = 0
        for group, part in self._groups():
            of_group_B = part.bin_B & _MASK
            total += part.count_B[(of_group_B > limits[group]) | (of_group_B == _INFINITE)].sum()
        return int(total)

    def _last_bin(self, share: float) -> int:
        cumulative_B = np.cumsum(self.count_B)
        return int(self.bin_B[np.searchsorted(cumulative_B, share * cumulative_B[-1])])

    def _groups(self) -> Iterator[tuple[int, "Histogram"]]:
        group_G, start_G = np.unique(self.bin_B >> _BITS, return_index=True)
        ends = [*start_G[1:].tolist(), len(self.bin_B)]
        for group, start, end in zip(group_G.tolist(), start_G.tolist(), ends, strict=True):
            yield group, Histogram(self.bin_B[start:end], self.count_B[start:end])


def without_itself(sqdist_N: np.ndarray, size_N: np.ndarray) -> np.ndarray:
    """How far an example would be from the mean of its cluster, had it not been in the cluster.

    A centroid lies nearer to the examples that it is the mean of than to others like them: in
    clusters of 20, the 95th percentile of the former is exceeded by 11% of the latter.

    Args:
        sqdist_N: squared distances to the means of clusters.
        size_N: examples of each one's cluster, itself included.

    Returns:
        float32 (N,): with m the mean of n examples, x minus the mean of the others is
        (x - m) n / (n - 1). Infinite for one that is alone: no other lies where it does.
    """
    others_N = np.maximum(size_N - 1, 1)
    away_N = sqdist_N * (size_N / others_N) ** 2
    return np.where(size_N > 1, away_N, np.inf).astype(np.float32)


@dataclass(frozen=True)
class Fit:
    """Old and new examples of the same groups, old first in every pair.

    Attributes:
        num_rows: examples.
        median, p95: quantiles of the distance, over those that are not alone in their cluster;
            None where all new ones are.
        beyond_p95, beyond_p99: shares that are alone, or farther out than that percentile of the
            old examples of their own group; of old ones a little less than 5% and 1%, as bins are
            not split, unless more are alone.
        is_due: whether the new share beyond the 95th percentile is above MAX_SHARE_BEYOND with
            95% confidence (Wilson's interval).
    """

    num_rows: tuple[int, int]
    median: tuple[float, float] | None
    p95: tuple[float, float] | None
    beyond_p95: tuple[float, float]
    beyond_p99: tuple[float, float]
    is_due: bool


def fit(old: Histogram, new: Histogram) -> Fit:
    """Compare examples of groups that both have.

    Raises:
        ValueError: one of them is empty, or a group of the new ones has no old ones.
    """
    strangers = new.rows_by_group().keys() - old.rows_by_group().keys()
    if strangers or not (old.num_rows and new.num_rows):
        raise ValueError(
            f"cannot compare {old.num_rows:,} old and {new.num_rows:,} new examples: "
            f"{len(strangers)} groups have no old ones (first: {sorted(strangers)[:3]})"
        )
    shares = {}
    for share in (0.95, 0.99):
        limits = old.limits(share)
        shares[share] = tuple(part.num_beyond(limits) / part.num_rows for part in (old, new))
    num_beyond = round(shares[0.95][1] * new.num_rows)
    finite = (old.finite(), new.finite())
    low = wilson_interval(num_beyond, new.num_rows).low
    return Fit(
        num_rows=(old.num_rows, new.num_rows),
        median=_quantiles(*finite, 0.5),
        p95=_quantiles(*finite, 0.95),
        beyond_p95=(shares[0.95][0], shares[0.95][1]),
        beyond_p99=(shares[0.99][0], shares[0.99][1]),
        is_due=low is not None and low > MAX_SHARE_BEYOND,
    )


def _quantiles(old: Histogram, new: Histogram, share: float) -> tuple[float, float] | None:
    return (old.distance(share), new.distance(share)) if new.num_rows else None
