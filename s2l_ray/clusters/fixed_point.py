"""Sums per cluster in integers, so that the sums of shards add up to the same in any order.

Shape letters: T checkpoints, K clusters.
"""

from dataclasses import dataclass

import numpy as np

from s2l_ray.clusters.kernels import SQDIST_UNIT

LARGEST = 2.0**63 * (1 - 2.0**-20)
"""The largest sum allowed. It is compared with sums in floating point, which are near the integer
ones."""
OVERFLOW = "k-means: the sums of a cluster do not fit in 64 bits; are the losses in nats per token?"


@dataclass(frozen=True)
class ClusterSums:
    """The sums over a set of rows that a sweep of k-means needs.

    Sums are fixed-point integers. 100 million rows of 64 nats add up to 2^56.6 in `loss_sum_KT`. At
    64 nats from their centroid at each of 12 checkpoints they add up to 2^62.2 in `sqdist_sum_K`.
    int64 ends at 2^63; a larger sum is an error, never a wrong result.

    Attributes:
        loss_sum_KT: int64 (K, T), sums of losses in `LOSS_UNIT_NATS`.
        count_K: int64 (K,), numbers of rows.
        sqdist_sum_K: int64 (K,), sums of squared distances in `SQDIST_UNIT` nats squared.
    """

    loss_sum_KT: np.ndarray
    count_K: np.ndarray
    sqdist_sum_K: np.ndarray

    def merge(self, other: "ClusterSums") -> "ClusterSums":
        """Return the sums over the rows of both.

        Raises:
            ValueError: a sum does not fit in int64.
        """
        return ClusterSums(
            _added(self.loss_sum_KT, other.loss_sum_KT),
            _added(self.count_K, other.count_K),
            _added(self.sqdist_sum_K, other.sqdist_sum_K),
        )

    __add__ = merge

    @property
    def inertia(self) -> float:
        """The sum of squared distances to the centroids, nats squared."""
        return sum(self.sqdist_sum_K.tolist()) * SQDIST_UNIT


def _added(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    total = a + b
    # A sum that wrapped around has a sign that neither of its terms has.
    if np.any(((a ^ total) & (b ^ total)) < 0):
        raise ValueError(OVERFLOW)
    return total
