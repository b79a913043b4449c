"""K-means with mini-batches that grow until they are the whole pool, several strata at once.

Every batch contains the one before it, so that workers can use again what they know of a row. The
last batch is all rows. So the result is a fixed point of Lloyd's algorithm, or as near to one as
the tolerance asks for. Whoever holds rows only adds up sums; nothing here communicates.

Shape letters: T checkpoints, K clusters of one stratum.

Source: nested mini-batches, Newling and Fleuret (2016), arXiv:1602.02934.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from s2l_ray import hashing
from s2l_ray.clusters import kmeans, sampling

GROWTH = 4
"""The size of a batch as a multiple of the size of the batch before it."""

Centroids = dict[str, np.ndarray]
"""Stratum -> centroid_KT, float32."""
Sums = Mapping[str, kmeans.ClusterSums]
Summed = Callable[[Centroids, Mapping[str, float]], Sums]
"""Returns sums by stratum, over the given share of its rows: those with the lowest hashes."""


@dataclass(frozen=True)
class KMeansResult:
    """Centroids, and how they were reached.

    Attributes:
        centroids: of every stratum. No cluster was empty at the last sweep, unless empty clusters
            stay (`Limits.keep_empty`).
        sweeps: passes over all rows of a stratum; that of the stratum with most.
        converged: False if the limit of sweeps stopped a stratum.
    """

    centroids: Centroids
    sweeps: int
    converged: bool


@dataclass(frozen=True)
class Limits:
    """Limits at which the sweeps over a batch end.

    Attributes:
        max_sweeps: the most sweeps over each batch; the last batch is all rows of a stratum.
        tolerance: a sweep is the last one on its batch if the move of the centroids, labels being
            as they were, lowers the inertia by no more than this share of it. 0 goes on until no
            centroid moves.
        keep_empty: True if a cluster without rows stays where it was, so that clusters keep their
            numbers; False if it is dropped.
    """

    max_sweeps: int = 20
    tolerance: float = 3.0e-4
    keep_empty: bool = False


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class _Stratum:
    """The state of one stratum between sweeps.

    Attributes:
        centroid_KT: float32 (K, T).
        share: the batch as a share of the rows of the stratum.
        sweeps: sweeps over this batch.
        converged: True if the last sweep over all rows met the tolerance.
    """

    centroid_KT: np.ndarray
    share: float
    sweeps: int = 0
    converged: bool = False

    def has_ended(self, limits: Limits) -> bool:
        return self.converged or (self.share == 1 and self.sweeps >= limits.max_sweeps)

    def after_sweep(self, sums: kmeans.ClusterSums, limits: Limits) -> "_Stratum":
        """Return the state after a sweep with these sums."""
        moved_KT = kmeans.centroids(sums, self.centroid_KT)
        at_rest = kmeans.gain(sums, self.centroid_KT, moved_KT) <= limits.tolerance * sums.inertia
        sweeps = self.sweeps + 1
        if self.share < 1:
            # With rounded sums Lloyd's sweeps may never come to rest.
            if at_rest or sweeps >= limits.max_sweeps:
                return _Stratum(moved_KT, min(self.share * GROWTH, 1.0))
            return replace(self, centroid_KT=moved_KT, sweeps=sweeps)
        # Empty clusters are dropped in sweeps over all rows, when their neighbours have settled.
        filled_KT = moved_KT if limits.keep_empty else moved_KT[sums.count_K > 0]
        converged = at_rest and len(filled_KT) == len(moved_KT)
        return replace(self, centroid_KT=filled_KT, sweeps=sweeps, converged=converged)


def fit(
    start: Centroids,
    num_rows: Mapping[str, int],
    summed: Summed,
    *,
    rows_in_start: Mapping[str, int],
    limits: Limits,
    on_full_sweep: Callable[[], None] = lambda: None,
) -> KMeansResult:
    """Fit centroids to all rows, from centroids that fit some of them.

    Args:
        start: centroids by stratum.
        num_rows: rows of each stratum.
        summed: returns the sums of any batch.
        rows_in_start: rows that each start was fitted to; the first batch is GROWTH times as many.
        limits: when the sweeps over a batch end.
        on_full_sweep: called after each sweep over all rows of the stratum that has most of them.
    """
    strata = {
        name: _Stratum(centroid_KT, min(1.0, GROWTH * rows_in_start[name] / num_rows[name]))
        for name, centroid_KT in start.items()
    }
    sweeps = 0
    while moving := {
        name: stratum for name, stratum in strata.items() if not stratum.has_ended(limits)
    }:
        sums = summed(
            {name: stratum.centroid_KT for name, stratum in moving.items()},
            {name: stratum.share for name, stratum in moving.items()},
        )
        strata |= {
            name: stratum.after_sweep(sums[name], limits) for name, stratum in moving.items()
        }
        most = max(stratum.sweeps if stratum.share == 1 else 0 for stratum in strata.values())
        for _ in range(most - sweeps):
            on_full_sweep()
        sweeps = most
    return KMeansResult(
        {name: stratum.centroid_KT for name, stratum in strata.items()},
        sweeps,
        all(stratum.converged for stratum in strata.values()),
    )


def centres(
    summed: Summed, names: Iterable[str], num_checkpoints: int
) -> dict[str, sampling.Centre]:
    """Return the centre of each stratum, computed in two passes over its rows."""
    zero = {name: np.zeros((1, num_checkpoints), np.float32) for name in names}
    whole = dict.fromkeys(zero, 1.0)
    sums = summed(zero, whole)
    mean = {name: kmeans.centroids(sums[name], zero[name]) for name in zero}
    around = summed(mean, whole)
    return {
        name: sampling.Centre(
            mean[name][0].astype(np.float64), around[name].inertia / int(around[name].count_K[0])
        )
        for name in zero
    }


def fit_in_memory(
    loss_NT: np.ndarray,
    num_clusters: int,
    *,
    seed: int,
    rows_per_sample: int,
    limits: Limits = DEFAULT_LIMITS,
    num_threads: int = 1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cluster rows that fit in one process as the stage does it, without Ray.

    Args:
        loss_NT: float array (N, T), nats per token, read as float32.
        num_clusters: clusters wanted; there are fewer if there are fewer distinct rows.
        seed: decides the sample and the start.
        rows_per_sample: rows of the sample that the start is fitted to.
        limits: when the sweeps over a batch end.
        num_threads: changes the time alone, not the result.

    Returns:
        centroid_KT, float32 (K, T); label_N, int32 (N,); sqdist_N, float64 (N,), nats squared.

    Raises:
        ValueError: there are no rows, or a loss as for `kmeans.nearest`.
    """
    if len(loss_NT) == 0:
        raise ValueError(f"cannot make {num_clusters} centroids from 0 rows")
    # Checked before rows are dealt out, so that an error names their numbers.
    kmeans.check(loss_NT, loss_NT[:1])
    with ThreadPoolExecutor(num_threads) as threads:
        shards = _Shards.dealt(loss_NT, seed, threads, num_threads)
        centre = centres(shards.summed, [""], loss_NT.shape[1])[""]
        sample_ST, weight_S = shards.sample(rows_per_sample, centre)
        result = fit(
            {"": kmeans.initial_centroids(sample_ST, num_clusters, seed, weight_S)},
            {"": len(loss_NT)},
            shards.summed,
            rows_in_start={"": rows_per_sample},
            limits=limits,
        )
        return result.centroids[""], *shards.nearest(result.centroids[""])


@dataclass(frozen=True)
class _Shards:
    """The rows of one process, in the order of their hashes, dealt out to its threads in turn.

    So every thread has its share of the rows of a batch.

    Attributes:
        threads: the threads.
        row_N: for each shard, the numbers of its rows.
        key_N: for each shard, the keys of its rows: uint64, ascending.
        tracked: for each shard, its trajectories.
    """

    threads: ThreadPoolExecutor
    row_N: list[np.ndarray]
    key_N: list[np.ndarray]
    tracked: list[kmeans.TrackedRows]

    @classmethod
    def dealt(
        cls, loss_NT: np.ndarray, seed: int, threads: ThreadPoolExecutor, num_shards: int
    ) -> "_Shards":
        key_N = hashing.mixed(np.arange(len(loss_NT), dtype=np.uint64), seed)
        order_N = np.argsort(key_N)
        row_N = [order_N[first::num_shards] for first in range(num_shards)]
        tracked = threads.map(lambda row_N: kmeans.TrackedRows(loss_NT.take(row_N, axis=0)), row_N)
        return cls(threads, row_N, [key_N[rows] for rows in row_N], list(tracked))

    def summed(self, centroids: Centroids, shares: Mapping[str, float]) -> Sums:
        num_shards = len(self.tracked)
        size = math.ceil(shares[""] * sum(map(len, self.row_N)))
        sizes = [len(range(first, size, num_shards)) for first in range(num_shards)]
        sums = self.threads.map(lambda f, size: f.sums(centroids[""], size), self.tracked, sizes)
        return {"": reduce(kmeans.ClusterSums.merge, sums)}

    def sample(self, size: int, centre: sampling.Centre) -> tuple[np.ndarray, np.ndarray]:
        drawn = self.threads.map(
            lambda f, key_N: sampling.draw(f.loss_NT, key_N, size, centre),
            self.tracked,
            self.key_N,
        )
        return sampling.weighted(sampling.join(list(drawn), size), size)

    def nearest(self, centroid_KT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        num_rows = sum(map(len, self.row_N))
        label_N, sqdist_N = np.empty(num_rows, np.int32), np.empty(num_rows)
        of_shards = self.threads.map(lambda f: f.nearest(centroid_KT), self.tracked)
        for row_N, (label, sqdist) in zip(self.row_N, of_shards, strict=True):
            label_N[row_N], sqdist_N[row_N] = label, sqdist
        return label_N, sqdist_N
