"""K-means on loss trajectories, by sums that are the same whatever worker adds them up.

Workers hold rows and return `ClusterSums`; whoever holds the centroids merges them. Nothing here
communicates. Sums are integers, and the label of a row is a function of that row and the centroids
alone. So centroids are bit-identical under any sharding, order or block size.

Shape letters: N rows, T checkpoints, K clusters, S sample rows, B rows of a block, D distinct rows.
"""

from operator import itemgetter

import numpy as np

from s2l_ray import hashing
from s2l_ray.clusters import kernels
from s2l_ray.clusters.fixed_point import LARGEST, OVERFLOW, ClusterSums
from s2l_ray.clusters.kernels import LOSS_UNIT_NATS, SQDIST_UNIT
from s2l_ray.clusters.kmeans_plus_plus import plus_plus

MAX_LOSS_NATS = 2.0**16
"""Trajectories beyond this are refused; guessing evenly over a vocabulary costs about 11 nats."""

_MAX_STARTS = 10
_STARTS_TIMES_CENTROIDS = 300
"""Fewer centroids get more starts: they end in poor local minima more often, and cost less."""
_SWEEPS_PER_START = 6
_SWEEPS_OF_BEST = 60
_TOLERANCE_OF_BEST = 1e-4

_NEIGHBOURS = 3.0
"""A centroid is a neighbour of a cluster within this many times the root mean square distance of
the cluster's rows from their own centroid."""

_SPLIT = 2.0**-10
"""The distance at which the halves of a split cluster begin, relative to their losses."""


def nearest(loss_NT: np.ndarray, centroid_KT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label every trajectory with its closest centroid.

    Args:
        loss_NT: float array (N, T), mean response loss per checkpoint, nats per token.
        centroid_KT: float array (K, T), same unit.

    Returns:
        label_N, int32 (N,), ties going to the lowest cluster number; and
        sqdist_N, float64 (N,), squared Euclidean distance in nats squared.

    Raises:
        ValueError: the checkpoint axes differ, there is no centroid, or a loss is NaN, infinite
            or above `MAX_LOSS_NATS`.

    Source:
        Assignment step of Lloyd (1982), doi:10.1109/TIT.1982.1056489.
    """
    check(loss_NT, centroid_KT)
    label_N = np.empty(len(loss_NT), dtype=np.int32)
    sqdist_N = np.empty(len(loss_NT), dtype=np.float64)
    kernels.closest(_float32(loss_NT), kernels.padded_to_even(centroid_KT), label_N, sqdist_N)
    return label_N, sqdist_N


def summarise(loss_NT: np.ndarray, centroid_KT: np.ndarray) -> ClusterSums:
    """Return the sums per cluster; every trajectory counts in the cluster of its closest centroid.

    Args and errors are those of `nearest`; ValueError also if a sum does not fit in int64.
    """
    return TrackedRows(loss_NT).sums(centroid_KT)


def check(loss_NT: np.ndarray, centroid_KT: np.ndarray) -> None:
    """Raise ValueError as `nearest` does, with the number of bad rows and the first of them."""
    if loss_NT.ndim != 2 or centroid_KT.ndim != 2 or loss_NT.shape[1] != centroid_KT.shape[1]:
        raise ValueError(
            f"checkpoint axes differ: trajectories {loss_NT.shape}, centroids {centroid_KT.shape}"
        )
    if centroid_KT.size == 0:
        raise ValueError(f"no centroids, or no checkpoints: {centroid_KT.shape}")
    for name, value in (("trajectories", loss_NT), ("centroids", centroid_KT)):
        low, high = value.min(initial=0), value.max(initial=0)
        # NaN fails every comparison.
        if not (low >= -MAX_LOSS_NATS and high <= MAX_LOSS_NATS):
            bad = np.flatnonzero(~np.all(np.abs(value) <= MAX_LOSS_NATS, axis=1))
            raise ValueError(
                f"{len(bad):,} of {len(value):,} {name} hold a value that is NaN, infinite or "
                f"above {MAX_LOSS_NATS:,.0f} nats (first rows: {', '.join(map(str, bad[:3]))})"
            )


class TrackedRows:
    """Trajectories with the labels and bounds of the last sweep, from which the next one is fast.

    The sums are those of `summarise`, bit for bit. Labels and bounds from earlier centroids only
    spare most rows a comparison with all centroids. They take 8 bytes per row in addition to the
    losses.

    Args:
        loss_NT: float array (N, T), nats per token, read as float32.
        weight_N: int64 (N,), how many rows each stands for; None for one.

    Raises:
        ValueError: a loss as for `nearest`, or the losses' sum does not fit in int64.
    """

    def __init__(self, loss_NT: np.ndarray, weight_N: np.ndarray | None = None) -> None:
        self.loss_NT = _float32(loss_NT)
        self._weight_N = np.zeros(0, np.int64) if weight_N is None else weight_N
        check(self.loss_NT, np.zeros((1, loss_NT.shape[1])))
        largest = max(self.loss_NT.max(initial=0), -self.loss_NT.min(initial=0))
        rows = self._weight_N.sum() if len(self._weight_N) else len(self.loss_NT)
        if float(largest) * float(rows) / LOSS_UNIT_NATS > LARGEST:
            _check_sums(self.loss_NT, self._weight_N)
        self._centroid_KT = np.zeros((0, loss_NT.shape[1]), np.float32)
        self._reach_K: np.ndarray = np.zeros(0)
        self._num_rows = 0

    def sums(self, centroid_KT: np.ndarray, num_rows: int | None = None) -> ClusterSums:
        """Return the sums over the first `num_rows` rows, all by default.

        Raises:
            ValueError: centroids as for `nearest`, or a sum does not fit in int64.
        """
        check(self.loss_NT[:1], centroid_KT)
        centroid_KT = np.array(centroid_KT, np.float32, order="C")
        rows = slice(0, len(self.loss_NT) if num_rows is None else num_rows)
        if centroid_KT.shape != self._centroid_KT.shape or rows.stop < self._num_rows:
            self._forget(len(centroid_KT))
        self._num_rows = rows.stop
        # Rounded up: the bounds rely on centroids not having moved farther than this.
        drift_K = np.linalg.norm(centroid_KT.astype(np.float64) - self._centroid_KT, axis=1) * (
            1 + 2.0**-40
        )
        # No centroids until the sums are complete: after an error, labels and bounds are invalid.
        self._centroid_KT = centroid_KT[:0]
        sqdist_sum_K, inexact_K = np.zeros(len(drift_K), np.int64), np.zeros(len(drift_K))
        kernels.update(
            kernels.Rows(
                self.loss_NT[rows], self._weight_N[rows], self._label_N[rows], self._lower_N[rows]
            ),
            kernels.padded_to_even(centroid_KT),
            kernels.Moves(drift_K, self._reach_K),
            kernels.Totals(self._loss_sum_KT, self._count_K, sqdist_sum_K, inexact_K),
        )
        if inexact_K.max(initial=0) / SQDIST_UNIT > LARGEST:
            raise ValueError(OVERFLOW)
        self._centroid_KT = centroid_KT
        mean_sqdist_K = sqdist_sum_K / np.maximum(self._count_K, 1) * SQDIST_UNIT
        self._reach_K = _NEIGHBOURS * np.sqrt(mean_sqdist_K)
        return ClusterSums(self._loss_sum_KT.copy(), self._count_K.copy(), sqdist_sum_K)

    def nearest(self, centroid_KT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what `nearest` returns for all rows."""
        self.sums(centroid_KT)
        return self.labelled(slice(None))

    def labelled(self, rows: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """Return what `nearest` returns for some rows, after `sums` over all of them."""
        assert self._num_rows == len(self.loss_NT), "rows without a label"
        loss_RT, label_R = self.loss_NT[rows], self._label_N[rows].copy()
        sqdist_R = np.empty(len(label_R), np.float64)
        kernels.distances(loss_RT, self._centroid_KT, label_R, sqdist_R)
        return label_R, sqdist_R

    def _forget(self, num_clusters: int) -> None:
        num_rows, num_checkpoints = self.loss_NT.shape
        self._label_N = np.full(num_rows, kernels.UNSEEN, np.int32)
        self._lower_N = np.zeros(num_rows, np.float32)
        self._loss_sum_KT = np.zeros((num_clusters, num_checkpoints), np.int64)
        self._count_K = np.zeros(num_clusters, np.int64)
        self._reach_K = np.zeros(num_clusters)
        self._centroid_KT = np.zeros((num_clusters, num_checkpoints), np.float32)


def centroids(sums: ClusterSums, previous_KT: np.ndarray) -> np.ndarray:
    """Return the mean of every cluster, float32 (K, T); an empty cluster keeps its centroid.

    The means are float32, so that saved centroids are those that labels were computed with.
    Lloyd's sweeps have converged when this returns `previous_KT`.
    """
    count_K1 = sums.count_K[:, None]
    mean_KT = sums.loss_sum_KT / np.maximum(count_K1, 1) * LOSS_UNIT_NATS
    return np.where(count_K1 > 0, mean_KT, previous_KT).astype(np.float32)


def gain(sums: ClusterSums, centroid_KT: np.ndarray, moved_KT: np.ndarray) -> float:
    """Return by how much the inertia falls when centroids move to the means, in nats squared.

    Labels stay. The sum over the rows of a cluster falls by their number times the squared
    distance that its centroid moves.
    """
    move_KT = moved_KT.astype(np.float64) - centroid_KT
    return float((sums.count_K * (move_KT**2).sum(axis=1)).sum())


def initial_centroids(
    sample_ST: np.ndarray, num_clusters: int, seed: int, weight_S: np.ndarray | None = None
) -> np.ndarray:
    """Fit centroids to a sample by greedy k-means++ and Lloyd sweeps, the best of a few starts.

    Args:
        sample_ST: float array (S, T), nats per token, in any order; read as float32.
        num_clusters: the centroids wanted.
        seed: decides the starts.
        weight_S: int64 (S,), how many rows each stands for, the same for equal rows; None for one.

    Returns:
        centroid_KT, float32 (K, T), K = min(num_clusters, number of distinct sample rows).

    Raises:
        ValueError: the sample is empty, num_clusters is below one, or a loss as for `nearest`.

    Source:
        Arthur and Vassilvitskii (2007), k-means++, with the candidates per step of its section 6
        and of scikit-learn.
    """
    order_S = _sorted_order(sample_ST, num_clusters)
    weight_S = np.ones(len(sample_ST), np.int64) if weight_S is None else weight_S[order_S]
    sample_ST = _float32(sample_ST)[order_S]
    num_distinct = 1 + int(np.any(sample_ST[1:] != sample_ST[:-1], axis=1).sum())
    num_centroids = min(num_clusters, num_distinct)
    num_starts = max(1, min(_MAX_STARTS, _STARTS_TIMES_CENTROIDS // num_centroids))
    starts = (plus_plus(sample_ST, weight_S, num_centroids, seed, s) for s in range(num_starts))
    tracked = TrackedRows(sample_ST, weight_S)
    fitted = [_lloyd(tracked, start_KT, _SWEEPS_PER_START, 0.0) for start_KT in starts]
    best_KT, _ = min(fitted, key=itemgetter(1))
    return _lloyd(tracked, best_KT, _SWEEPS_OF_BEST, _TOLERANCE_OF_BEST)[0]


def random_rows(sample_ST: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """Draw distinct rows of a sample; all its rows have equal chances.

    Args, the shape of the result and errors are those of `initial_centroids`.
    """
    sample_ST = _float32(sample_ST)[_sorted_order(sample_ST, num_clusters)]
    key_S = hashing.mixed(np.arange(len(sample_ST), dtype=np.uint64), seed)
    shuffled_ST = sample_ST[np.argsort(key_S, kind="stable")]
    _, first_D = np.unique(shuffled_ST, axis=0, return_index=True)
    return shuffled_ST[np.sort(first_D)[:num_clusters]]


def lloyd_with_splits(
    sample_ST: np.ndarray, centroid_KT: np.ndarray, max_sweeps: int
) -> tuple[np.ndarray, int, bool]:
    """Fit centroids by Lloyd's sweeps that split another cluster for every empty one.

    Args:
        sample_ST: float array (S, T), nats per token, in any order.
        centroid_KT: float32 (K, T), the start.
        max_sweeps: the most sweeps; they end when a sweep moves no centroid.

    Returns:
        centroid_KT, float32 (K, T); the number of sweeps; and True if the last one moved nothing.

    Source:
        k-means of faiss, Johnson, Douze and Jegou (2017), arXiv:1702.08734, which splits a large
        cluster chosen at random. Here it is the cluster with the largest sum of squared distances.
        That needs no random numbers, and a cluster of equal rows, which cannot be split, is never
        chosen.
    """
    tracked = TrackedRows(sample_ST)
    for sweep in range(1, max_sweeps + 1):
        sums = tracked.sums(centroid_KT)
        moved_KT = _split(centroids(sums, centroid_KT), sums)
        if np.array_equal(moved_KT, centroid_KT):
            return centroid_KT, sweep, True
        centroid_KT = moved_KT
    return centroid_KT, max_sweeps, False


def _check_sums(loss_NT: np.ndarray, weight_N: np.ndarray) -> None:
    """Raise ValueError if the absolute losses add up to more than int64 holds."""
    total_T = np.zeros(loss_NT.shape[1])
    for start in range(0, len(loss_NT), 2**16):
        rows = slice(start, start + 2**16)
        weight_B1 = weight_N[rows, None] if len(weight_N) else 1
        total_T += (np.abs(loss_NT[rows]) * weight_B1).sum(axis=0, dtype=np.float64)
    if total_T.max(initial=0) / LOSS_UNIT_NATS > LARGEST:
        raise ValueError(OVERFLOW)


def _lloyd(
    tracked: TrackedRows, centroid_KT: np.ndarray, max_sweeps: int, tolerance: float
) -> tuple[np.ndarray, float]:
    """Return the centroids after Lloyd's sweeps, and the inertia before the last one."""
    inertia = np.inf
    for _ in range(max_sweeps):
        sums = tracked.sums(centroid_KT)
        moved_KT = centroids(sums, centroid_KT)
        inertia = sums.inertia
        last = gain(sums, centroid_KT, moved_KT) <= tolerance * inertia
        centroid_KT = moved_KT
        if last:
            break
    return centroid_KT, inertia


def _split(centroid_KT: np.ndarray, sums: ClusterSums) -> np.ndarray:
    """Move the centroid of every empty cluster next to that of the widest, one after the other.

    The widest cluster is the one with the largest sum of squared distances.
    """
    centroid_KT, left_K = centroid_KT.copy(), sums.sqdist_sum_K.copy()
    apart_T = np.where(np.arange(centroid_KT.shape[1]) % 2, -_SPLIT, _SPLIT).astype(np.float32)
    for empty in np.flatnonzero(sums.count_K == 0):
        widest = left_K.argmax()
        if not left_K[widest]:
            break
        centroid_KT[empty] = centroid_KT[widest] * (1 + apart_T)
        centroid_KT[widest] *= 1 - apart_T
        left_K[[empty, widest]] = left_K[widest] // 2
    return centroid_KT.clip(-MAX_LOSS_NATS, MAX_LOSS_NATS)


def _sorted_order(sample_ST: np.ndarray, num_clusters: int) -> np.ndarray:
    """Return the order of the sample's rows by their values.

    Raises:
        ValueError: the sample is empty, num_clusters is below one, or a loss as for `nearest`.
    """
    sample_ST = _float32(sample_ST)
    if len(sample_ST) == 0 or num_clusters < 1:
        raise ValueError(f"cannot make {num_clusters} centroids from {len(sample_ST)} rows")
    check(sample_ST, sample_ST[:1])
    return np.lexsort(sample_ST.T[::-1])


def _float32(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value, dtype=np.float32)
