"""Distances of new trajectories from their centroids, against those of the rows fitted to.

Squared distances are counted in logarithmic bins, group by group. A group is what was clustered
together: a stratum, or the pool. A bin is the first 16 bits of a float32, so it is less than 0.8%
wide. Only occupied bins are held, so memory grows with the groups and not with the examples.

Shape letters: N examples, B occupied bins.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from s2l_ray.intervals import wilson_interval

MAX_SHARE_BEYOND = 0.10
"""The largest usual share of new rows beyond the 95th percentile of old rows: twice what chance
gives."""

_BITS = 16
_MASK = (1 << _BITS) - 1
_INFINITE = 0x7F80
"""The bin of examples that are alone in their cluster."""


@dataclass(frozen=True)
class Histogram:
    """Counts of examples by group and by bin of squared distance.

    Attributes:
        bin_B: int64 (B,), ascending: 2^16 times the number of the group, plus that of the bin.
        count_B: int64 (B,), above zero.
    """

    bin_B: np.ndarray
    count_B: np.ndarray

    @classmethod
    def of(cls, group_N: np.ndarray, sqdist_N: np.ndarray) -> "Histogram":
        """Count examples.

        Args:
            group_N: integers from 0.
            sqdist_N: squared distances of at least 0, read as float32.
        """
        bits_N = np.ascontiguousarray(sqdist_N, np.float32).view(np.uint32) >> _BITS
        return cls(*np.unique((group_N.astype(np.int64) << _BITS) + bits_N, return_counts=True))

    def merge(self, other: "Histogram") -> "Histogram":
        """Return the counts over the examples of both."""
        bin_B, index_B = np.unique(np.concatenate([self.bin_B, other.bin_B]), return_inverse=True)
        count_B = np.zeros(len(bin_B), np.int64)
        np.add.at(count_B, index_B, np.concatenate([self.count_B, other.count_B]))
        return Histogram(bin_B, count_B)

    def within(self, groups: set[int]) -> "Histogram":
        """Return the counts of these groups alone."""
        keep_B = np.isin(self.bin_B >> _BITS, sorted(groups))
        return Histogram(self.bin_B[keep_B], self.count_B[keep_B])

    @property
    def num_rows(self) -> int:
        return int(self.count_B.sum())

    def rows_by_group(self) -> dict[int, int]:
        return {group: int(part.count_B.sum()) for group, part in self._groups()}

    def finite(self) -> "Histogram":
        """Return the counts of examples at a finite distance."""
        keep_B = (self.bin_B & _MASK) != _INFINITE
        return Histogram(self.bin_B[keep_B], self.count_B[keep_B])

    def distance(self, share: float) -> float:
        """Return the quantile `share` of the distance, within 0.4%, if all distances are finite."""
        bin_B, index_B = np.unique(self.bin_B & _MASK, return_inverse=True)
        merged = Histogram(bin_B, np.bincount(index_B, self.count_B).astype(np.int64))
        last = merged._last_bin(share)
        # The middle of the bin; bin 0 holds zero.
        bits = np.uint32(last << _BITS | 1 << _BITS - 1 if last else 0)
        return float(np.sqrt(bits.view(np.float32)))

    def limits(self, share: float) -> dict[int, int]:
        """Return, by group, the bin that holds the quantile `share` of the group."""
        return {group: part._last_bin(share) & _MASK for group, part in self._groups()}

    def num_beyond(self, limits: dict[int, int]) -> int:
        """Count the examples in bins above the limit of their group, or at an infinite distance."""
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
    """Return squared distances from centroids that the example itself had no part in.

    A centroid lies nearer to the examples that it is the mean of than to others like them. In
    clusters of 20, 11% of the others exceed the 95th percentile of the former.

    Args:
        sqdist_N: squared distances to the means of clusters.
        size_N: the number of examples in the cluster of each example, itself included.

    Returns:
        float32 (N,). If m is the mean of n examples, x minus the mean of the others is
        (x - m) n / (n - 1). The distance of an example that is alone in its cluster is infinite.
    """
    others_N = np.maximum(size_N - 1, 1)
    away_N = sqdist_N * (size_N / others_N) ** 2
    return np.where(size_N > 1, away_N, np.inf).astype(np.float32)


@dataclass(frozen=True)
class Comparison:
    """Distances of old and new examples of the same groups; old comes first in every pair.

    Attributes:
        num_rows: numbers of examples.
        median, p95: quantiles of the distance over the examples that are not alone in their
            cluster; None if all new examples are alone.
        beyond_p95, beyond_p99: shares of examples that are alone or farther out than that
            percentile of the old examples of their group. For old examples these are a little less
            than 5% and 1%, because bins are not split, unless more than that are alone.
        is_due: True if the new share beyond the 95th percentile is above MAX_SHARE_BEYOND with
            95% confidence (Wilson's interval).
    """

    num_rows: tuple[int, int]
    median: tuple[float, float] | None
    p95: tuple[float, float] | None
    beyond_p95: tuple[float, float]
    beyond_p99: tuple[float, float]
    is_due: bool


def compare(old: Histogram, new: Histogram) -> Comparison:
    """Compare the distances of old and new examples of the same groups.

    Raises:
        ValueError: a histogram is empty, or a group of new examples has no old ones.
    """
    unknown = new.rows_by_group().keys() - old.rows_by_group().keys()
    if unknown or not (old.num_rows and new.num_rows):
        raise ValueError(
            f"cannot compare {old.num_rows:,} old and {new.num_rows:,} new examples: "
            f"{len(unknown)} groups have no old ones (first: {sorted(unknown)[:3]})"
        )
    shares = {}
    for share in (0.95, 0.99):
        limits = old.limits(share)
        shares[share] = tuple(part.num_beyond(limits) / part.num_rows for part in (old, new))
    num_beyond = round(shares[0.95][1] * new.num_rows)
    finite = (old.finite(), new.finite())
    low = wilson_interval(num_beyond, new.num_rows).low
    return Comparison(
        num_rows=(old.num_rows, new.num_rows),
        median=_quantiles(*finite, 0.5),
        p95=_quantiles(*finite, 0.95),
        beyond_p95=(shares[0.95][0], shares[0.95][1]),
        beyond_p99=(shares[0.99][0], shares[0.99][1]),
        is_due=low is not None and low > MAX_SHARE_BEYOND,
    )


def _quantiles(old: Histogram, new: Histogram, share: float) -> tuple[float, float] | None:
    return (old.distance(share), new.distance(share)) if new.num_rows else None
