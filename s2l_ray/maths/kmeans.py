"""K-means on loss trajectories, in sums that do not depend on who adds them up.

Workers hold rows and return `ClusterSums`; whoever holds the centroids merges them. Nothing here
communicates. Sums are integers, and a row's label is a function of that row and the centroids
alone, so centroids are bit-identical under any sharding, order or block size.

Shape letters: N rows, T checkpoints, K clusters, S sample rows, B rows of a block,
P (row, cluster) pairs, C candidates for the next centroid, D distinct rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from s2l_ray.maths import hashing

LOSS_UNIT_NATS = 2.0**-24
SQDIST_UNIT = 2.0**-20
MAX_LOSS_NATS = 2.0**16
"""Trajectories beyond this are refused; guessing evenly over a vocabulary costs about 11 nats."""

_LARGEST = 2.0**62
_OVERFLOW = (
    "k-means: the sums of a cluster do not fit in 64 bits; are the losses in nats per token?"
)

_MAX_STARTS = 10
_STARTS_TIMES_CENTROIDS = 300
"""Few centroids get more starts: they are stuck in bad places more often, and cost less."""
_SWEEPS_PER_START = 6
_SWEEPS_OF_BEST = 24

_SPLIT = 2.0**-10
"""How far apart, relative to their losses, the halves of a split cluster begin."""


@dataclass(frozen=True)
class ClusterSums:
    """What a sweep has to know about any set of rows; sums of shards add up to those of the whole.

    Fixed point: 100 million rows of 64 nats add up to 2^56.6 in `loss_sum_KT`, and 64 nats from
    their centroid at each of 12 checkpoints to 2^62.2 in `sqdist_sum_K`; int64 ends at 2^63.
    Beyond that is an error, never a wrong sum.

    Attributes:
        loss_sum_KT: int64 (K, T), sums of losses in `LOSS_UNIT_NATS`.
        count_K: int64 (K,), rows.
        sqdist_sum_K: int64 (K,), sums of squared distances in `SQDIST_UNIT` nats squared.
    """

    loss_sum_KT: np.ndarray
    count_K: np.ndarray
    sqdist_sum_K: np.ndarray

    def merge(self, other: "ClusterSums") -> "ClusterSums":
        """The sums over the rows of both."""
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


def nearest(loss_NT: np.ndarray, centroid_KT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label every trajectory with its closest centroid.

    A matrix product in float32 leaves the centroids that can be closest, and distances to these
    (one, for most rows) are computed in float64 in a fixed order. So a row's result does not
    depend on the other rows, on their number, or on the BLAS.

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
    _check(loss_NT, centroid_KT)
    label_N = np.empty(len(loss_NT), dtype=np.int32)
    sqdist_N = np.empty(len(loss_NT), dtype=np.float64)
    bound = _LowerBound.of(centroid_KT)
    for rows in _blocks(len(loss_NT), max(256, 2**18 // len(centroid_KT))):
        label_N[rows], sqdist_N[rows] = _nearest_in_block(loss_NT[rows], centroid_KT, bound)
    return label_N, sqdist_N


def summarise(loss_NT: np.ndarray, centroid_KT: np.ndarray) -> ClusterSums:
    """Sums per cluster, every trajectory counted in the cluster of its closest centroid.

    Args and errors as for `nearest`, and ValueError when a sum does not fit in int64.
    """
    label_N, sqdist_N = nearest(loss_NT, centroid_KT)
    num_clusters = len(centroid_KT)
    return ClusterSums(
        loss_sum_KT=_sums(loss_NT, label_N, num_clusters, LOSS_UNIT_NATS),
        count_K=np.bincount(label_N, minlength=num_clusters).astype(np.int64),
        sqdist_sum_K=_sums(sqdist_N[:, None], label_N, num_clusters, SQDIST_UNIT)[:, 0],
    )


def centroids(sums: ClusterSums, previous_KT: np.ndarray) -> np.ndarray:
    """The mean of every cluster, float32 (K, T); an empty cluster keeps its previous centroid.

    float32, so that the centroids one saves are those that labels were made with. Lloyd's sweeps
    have converged when this returns `previous_KT`.
    """
    count_K1 = sums.count_K[:, None]
    mean_KT = sums.loss_sum_KT / np.maximum(count_K1, 1) * LOSS_UNIT_NATS
    return np.where(count_K1 > 0, mean_KT, previous_KT).astype(np.float32)


def minibatch_step(
    centroid_KT: np.ndarray, seen_K: np.ndarray, sums: ClusterSums
) -> tuple[np.ndarray, np.ndarray]:
    """Move every centroid to the running mean of all rows it was given, this batch included.

    Args:
        centroid_KT: float array (K, T), what `sums` was made with.
        seen_K: int64 (K,), rows given to each cluster in earlier batches; zeros at the start.
        sums: of the whole batch.

    Returns:
        centroid_KT, float32 (K, T), and seen_K, int64 (K,), this batch included.

    Source:
        Sculley (2010), doi:10.1145/1772690.1772862, one batch at a time as in scikit-learn.
    """
    total_K = seen_K + sums.count_K
    weighted_KT = centroid_KT.astype(np.float64) * seen_K[:, None]
    mean_KT = (weighted_KT + sums.loss_sum_KT * LOSS_UNIT_NATS) / np.maximum(total_K, 1)[:, None]
    moved_KT = np.where(sums.count_K[:, None] > 0, mean_KT, centroid_KT)
    return moved_KT.astype(np.float32), total_K


def initial_centroids(sample_ST: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """Centroids fitted to a sample: greedy k-means++ and Lloyd sweeps, the best of a few starts.

    Args:
        sample_ST: float array (S, T), nats per token, in any order; read as float32.
        num_clusters: the centroids wanted.
        seed: decides the starts.

    Returns:
        centroid_KT, float32 (K, T), K = min(num_clusters, number of distinct sample rows).

    Raises:
        ValueError: the sample is empty, num_clusters is below one, or a loss as for `nearest`.

    Source:
        Arthur and Vassilvitskii (2007), k-means++, with the candidates per step of its section 6
        and of scikit-learn.
    """
    sample_ST = _sorted(sample_ST, num_clusters)
    num_distinct = 1 + int(np.any(sample_ST[1:] != sample_ST[:-1], axis=1).sum())
    num_centroids = min(num_clusters, num_distinct)
    num_starts = max(1, min(_MAX_STARTS, _STARTS_TIMES_CENTROIDS // num_centroids))
    starts = (_plus_plus(sample_ST, num_centroids, seed, s) for s in range(num_starts))
    fitted = [_lloyd(sample_ST, start_KT, _SWEEPS_PER_START) for start_KT in starts]
    best_KT = min(fitted, key=lambda centroid_KT: summarise(sample_ST, centroid_KT).inertia)
    return _lloyd(sample_ST, best_KT, _SWEEPS_OF_BEST)


def random_rows(sample_ST: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """Distinct rows of a sample, drawn with equal chances for all its rows.

    Args, shape of the result and errors as for `initial_centroids`.
    """
    sample_ST = _sorted(sample_ST, num_clusters)
    key_S = hashing.mixed(np.arange(len(sample_ST), dtype=np.uint64), seed)
    shuffled_ST = sample_ST[np.argsort(key_S, kind="stable")]
    _, first_D = np.unique(shuffled_ST, axis=0, return_index=True)
    return shuffled_ST[np.sort(first_D)[:num_clusters]]


def lloyd_with_splits(
    sample_ST: np.ndarray, centroid_KT: np.ndarray, max_sweeps: int
) -> tuple[np.ndarray, int, bool]:
    """Centroids after Lloyd's sweeps in which every empty cluster is given half of another.

    Args:
        sample_ST: float array (S, T), nats per token, in any order.
        centroid_KT: float32 (K, T), the start.
        max_sweeps: fewer are made when a sweep moves no centroid.

    Returns:
        centroid_KT, float32 (K, T); the sweeps made; and whether the last one moved nothing.

    Source:
        k-means of faiss, Johnson, Douze and Jegou (2017), arXiv:1702.08734, which splits a large
        cluster chosen at random. Here it is the one with the largest sum of squared distances: no
        generator has a say in it, and equal rows, which cannot be split, are passed over.
    """
    for sweep in range(1, max_sweeps + 1):
        sums = summarise(sample_ST, centroid_KT)
        moved_KT = _split(centroids(sums, centroid_KT), sums)
        if np.array_equal(moved_KT, centroid_KT):
            return centroid_KT, sweep, True
        centroid_KT = moved_KT
    return centroid_KT, max_sweeps, False


@dataclass(frozen=True)
class _LowerBound:
    """A matrix product that bounds |x - c|^2 - |x|^2 from below, whatever its rounding.

    With x and c measured from `origin_T`, rounding in float32 stays below
    slack * (|x| + |c|)^2 in any order of summation, so that
    |c|^2 - 2 x.c - slack * (|c|^2 + 2 |x| |c|) is low by at most as much again and slack * |x|^2.
    """

    origin_T: np.ndarray
    norm_K: np.ndarray
    weight_UK: np.ndarray
    """float32 (T + 2, K), to be multiplied with rows (x, |x|, 1)."""
    slack: float

    @classmethod
    def of(cls, centroid_KT: np.ndarray) -> "_LowerBound":
        # The median, because one far centroid must not take the origin away from all others.
        origin_T = np.median(centroid_KT.astype(np.float64), axis=0)
        shifted_KT = centroid_KT - origin_T
        norm_K = np.sqrt((shifted_KT**2).sum(axis=1))
        slack = (len(origin_T) + 8) * 2.0**-23
        weight_UK = np.concatenate(
            [-2 * shifted_KT.T, -2 * slack * norm_K[None], (1 - slack) * norm_K[None] ** 2]
        )
        return cls(origin_T, norm_K.astype(np.float32), weight_UK.astype(np.float32), slack)

    def candidates(self, loss_BT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (row_P, label_P), sorted, with every label that can be its row's closest."""
        row_BU = np.ones((len(loss_BT), len(self.weight_UK)), dtype=np.float32)
        x_BT = row_BU[:, :-2]
        x_BT[:] = loss_BT - self.origin_T
        norm_B = row_BU[:, -2] = np.sqrt(np.einsum("bt,bt->b", x_BT, x_BT))
        bound_BK = row_BU @ self.weight_UK
        lowest_B = bound_BK.argmin(axis=1)
        least_B = bound_BK[np.arange(len(loss_BT)), lowest_B]
        # The row's closest centroid is no farther than `lowest`: twice the error of that one's
        # bound, once slack * |x|^2; and squares below the range of float32 count as no distance.
        reach_B = least_B + 3 * self.slack * (norm_B + self.norm_K[lowest_B]) ** 2 + 1e-30
        pair_P = np.flatnonzero(bound_BK <= reach_B[:, None])
        return np.divmod(pair_P, bound_BK.shape[1])


def _nearest_in_block(
    loss_BT: np.ndarray, centroid_KT: np.ndarray, bound: _LowerBound
) -> tuple[np.ndarray, np.ndarray]:
    row_P, label_P = bound.candidates(loss_BT)
    sqdist_P = _sqdist(loss_BT[row_P].T, centroid_KT[label_P].T)
    if len(row_P) == len(loss_BT):
        return label_P, sqdist_P
    starts_row_P = np.diff(row_P, prepend=-1) > 0
    least_B = np.minimum.reduceat(sqdist_P, np.flatnonzero(starts_row_P))
    closest = np.flatnonzero(sqdist_P == least_B[row_P])
    # Of a row's equals the first pair, which has the lowest label.
    first = closest[np.diff(row_P[closest], prepend=-1) > 0]
    return label_P[first], least_B


def _sqdist(a_TP: np.ndarray, b_TP: np.ndarray) -> np.ndarray:
    """Squared distances in float64, summed one checkpoint after the other."""
    total_P = np.zeros(a_TP.shape[1])
    for a_P, b_P in zip(a_TP, b_TP, strict=True):
        difference_P = np.subtract(a_P, b_P, dtype=np.float64)
        total_P += difference_P * difference_P
    return total_P


def _sums(value_NC: np.ndarray, label_N: np.ndarray, num_clusters: int, unit: float) -> np.ndarray:
    """Sums of `value_NC` per label, int64 (K, C), each value rounded to whole units."""
    total_KC = np.zeros((num_clusters, value_NC.shape[1]), dtype=np.int64)
    # The narrowest dtype: up to 16 bits numpy sorts by radix.
    narrow_N = label_N.astype(np.min_scalar_type(num_clusters))
    for rows in _blocks(len(value_NC), 4096):
        order_B = np.argsort(narrow_N[rows], kind="stable")
        units_BC = np.rint(value_NC[rows].astype(np.float64) / unit)
        if np.abs(units_BC).sum() > _LARGEST:
            raise ValueError(_OVERFLOW)
        label_B = label_N[rows][order_B]
        first_G = np.flatnonzero(np.diff(label_B, prepend=-1))
        sum_GC = np.add.reduceat(units_BC.astype(np.int64)[order_B], first_G, axis=0)
        total_KC[label_B[first_G]] = _added(total_KC[label_B[first_G]], sum_GC)
    return total_KC


def _added(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    total = a + b
    # A sum that wrapped around has the sign that neither of its terms has.
    if np.any(((a ^ total) & (b ^ total)) < 0):
        raise ValueError(_OVERFLOW)
    return total


def _plus_plus(sample_ST: np.ndarray, num_centroids: int, seed: int, start: int) -> np.ndarray:
    """Distinct rows of the sample, each drawn in proportion to its squared distance from the rest.

    Of a few candidates at every step, the one that leaves the least total distance is taken.
    """
    sample_TS = np.ascontiguousarray(sample_ST.T, dtype=np.float64)
    num_candidates = 2 + int(np.log(num_centroids))
    uniform_KC = _uniforms(num_centroids * num_candidates, seed, start).reshape(num_centroids, -1)
    chosen = [int(uniform_KC[0, 0] * len(sample_ST))]
    sqdist_S = _sqdist(sample_TS, sample_TS[:, chosen])
    for uniform_C in uniform_KC[1:]:
        cumulative_S = np.cumsum(sqdist_S)
        # Below the total, so that the row found is one that is away from all centroids.
        drawn_C = np.minimum(uniform_C * cumulative_S[-1], np.nextafter(cumulative_S[-1], 0))
        candidate_C = np.searchsorted(cumulative_S, drawn_C, side="right")
        left_CS = [np.minimum(sqdist_S, _sqdist(sample_TS, sample_TS[:, [c]])) for c in candidate_C]
        best = int(np.argmin([left_S.sum() for left_S in left_CS]))
        chosen.append(int(candidate_C[best]))
        sqdist_S = left_CS[best]
    return sample_ST[chosen]


def _uniforms(count: int, *salts: int) -> np.ndarray:
    """Numbers in [0, 1) that are the same under every version of numpy."""
    bits = hashing.mixed(np.arange(count, dtype=np.uint64), *salts)
    return (bits >> np.uint64(11)) * 2.0**-53


def _lloyd(sample_ST: np.ndarray, centroid_KT: np.ndarray, max_sweeps: int) -> np.ndarray:
    for _ in range(max_sweeps):
        moved_KT = centroids(summarise(sample_ST, centroid_KT), centroid_KT)
        if np.array_equal(moved_KT, centroid_KT):
            break
        centroid_KT = moved_KT
    return centroid_KT


def _split(centroid_KT: np.ndarray, sums: ClusterSums) -> np.ndarray:
    """Move the centroid of every empty cluster next to that of the widest, one after the other."""
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


def _sorted(sample_ST: np.ndarray, num_clusters: int) -> np.ndarray:
    """The sample as float32, its rows in the order of their values.

    Raises:
        ValueError: it is empty, num_clusters is below one, or a loss as for `nearest`.
    """
    sample_ST = np.asarray(sample_ST, dtype=np.float32)
    if len(sample_ST) == 0 or num_clusters < 1:
        raise ValueError(f"cannot make {num_clusters} centroids from {len(sample_ST)} rows")
    _check(sample_ST, sample_ST[:1])
    return sample_ST[np.lexsort(sample_ST.T[::-1])]


def _blocks(num_rows: int, rows_per_block: int) -> Iterator[slice]:
    for start in range(0, num_rows, rows_per_block):
        yield slice(start, start + rows_per_block)


def _check(loss_NT: np.ndarray, centroid_KT: np.ndarray) -> None:
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
