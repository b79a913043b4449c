"""Centroids from mini-batches that grow until they are the whole pool, several strata at once.

Every batch contains the one before it, so that what workers know of a row stays of use, and the
last one is all rows: what comes out is a fixed point of Lloyd's algorithm, or as near to one as was
asked for. Whoever holds rows only adds up sums; nothing here communicates.

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
"""Each batch has as many times the rows of the one before."""

Centroids = dict[str, np.ndarray]
"""Stratum -> centroid_KT, float32."""
Sums = Mapping[str, kmeans.ClusterSums]
Summed = Callable[[Centroids, Mapping[str, float]], Sums]
"""Sums by stratum, over the rows with the lowest hashes: of each stratum, the share given."""


@dataclass(frozen=True)
class Fit:
    """What came of it.

    Attributes:
        centroids: of every stratum; none that was empty at the last sweep, unless those were kept.
        sweeps: passes over all rows of a stratum, the most that one took.
        converged: no stratum was stopped by the number of sweeps.
    """

    centroids: Centroids
    sweeps: int
    converged: bool


@dataclass(frozen=True)
class _Stratum:
    """One stratum on its way."""

    centroid_KT: np.ndarray
    share: float
    sweeps: int = 0
    """Of this batch."""
    converged: bool = False

    def ended(self, max_sweeps: int) -> bool:
        return self.converged or (self.share == 1 and self.sweeps >= max_sweeps)

    def moved(
        self, sums: kmeans.ClusterSums, tolerance: float, max_sweeps: int, keep_empty: bool
    ) -> "_Stratum":
        """After a sweep whose sums are these."""
        moved_KT = kmeans.centroids(sums, self.centroid_KT)
        at_rest = kmeans.gain(sums, self.centroid_KT, moved_KT) <= tolerance * sums.inertia
        sweeps = self.sweeps + 1
        if self.share < 1:
            # Lloyd's sweeps of rounded sums may never come to rest.
            if at_rest or sweeps >= max_sweeps:
                return _Stratum(moved_KT, min(self.share * GROWTH, 1.0))
            return replace(self, centroid_KT=moved_KT, sweeps=sweeps)
        # A cluster that was left empty goes, once its neighbours have settled.
        filled_KT = moved_KT if keep_empty else moved_KT[sums.count_K > 0]
        converged = at_rest and len(filled_KT) == len(moved_KT)
        return replace(self, centroid_KT=filled_KT, sweeps=sweeps, converged=converged)


def fit(
    start: Centroids,
    num_rows: Mapping[str, int],
    summed: Summed,
    *,
    rows_in_start: Mapping[str, int],
    max_sweeps: int,
    tolerance: float,
    keep_empty: bool = False,
    on_full_sweep: Callable[[], None] = lambda: None,
) -> Fit:
    """Centroids for all rows, from centroids that fit some of them.

    Args:
        start: by stratum.
        num_rows: of each stratum.
        summed: sums of any batch.
        rows_in_start: rows that each start was fitted to; the first batch is GROWTH times that.
        max_sweeps: over each batch, the last one being all rows of a stratum.
        tolerance: a sweep that lowers the inertia by no more than this share of it, labels being
            as they were, is the last one on its batch; 0 goes on until nothing moves.
        keep_empty: clusters keep their number: one without rows stays where it was.
        on_full_sweep: called when the stratum that has most sweeps has another.
    """
    strata = {
        name: _Stratum(centroid_KT, min(1.0, GROWTH * rows_in_start[name] / num_rows[name]))
        for name, centroid_KT in start.items()
    }
    sweeps = 0
    while moving := {
        name: stratum for name, stratum in strata.items() if not stratum.ended(max_sweeps)
    }:
        sums = summed(
            {name: stratum.centroid_KT for name, stratum in moving.items()},
            {name: stratum.share for name, stratum in moving.items()},
        )
        strata |= {
            name: stratum.moved(sums[name], tolerance, max_sweeps, keep_empty)
            for name, stratum in moving.items()
        }
        most = max(stratum.sweeps if stratum.share == 1 else 0 for stratum in strata.values())
        for _ in range(most - sweeps):
            on_full_sweep()
        sweeps = most
    return Fit(
        {name: stratum.centroid_KT for name, stratum in strata.items()},
        sweeps,
        all(stratum.converged for stratum in strata.values()),
    )


def centres(
    summed: Summed, names: Iterable[str], num_checkpoints: int
) -> dict[str, sampling.Centre]:
    """Where each stratum lies, and how wide, in two passes."""
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
    max_sweeps: int = 20,
    tolerance: float = 3.0e-4,
    num_threads: int = 1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """K-means of what fits in one process, as the stage does it, without Ray.

    Args:
        loss_NT: float array (N, T), nats per token, read as float32.
        num_clusters: fewer where there are fewer distinct rows.
        seed: decides the sample and the start.
        rows_per_sample, max_sweeps, tolerance: as in the configuration's `clusters`.
        num_threads: changes nothing but the time.

    Returns:
        centroid_KT, float32 (K, T); label_N, int32 (N,); sqdist_N, float64 (N,), nats squared.

    Raises:
        ValueError: there are no rows, or a loss as for `kmeans.nearest`.
    """
    if len(loss_NT) == 0:
        raise ValueError(f"cannot make {num_clusters} centroids from 0 rows")
    # Before rows are dealt out, so that an error names their numbers.
    kmeans.check(loss_NT, loss_NT[:1])
    with ThreadPoolExecutor(num_threads) as threads:
        shards = _Shards.dealt(loss_NT, seed, threads, num_threads)
        centre = centres(shards.summed, [""], loss_NT.shape[1])[""]
        sample_ST, weight_S = shards.sample(rows_per_sample, centre)
        found = fit(
            {"": kmeans.initial_centroids(sample_ST, num_clusters, seed, weight_S)},
            {"": len(loss_NT)},
            shards.summed,
            rows_in_start={"": rows_per_sample},
            max_sweeps=max_sweeps,
            tolerance=tolerance,
        )
        return found.centroids[""], *shards.nearest(found.centroids[""])


@dataclass(frozen=True)
class _Shards:
    """The rows of one process, in the order of their hashes, dealt out to its threads in turn.

    So the rows of a batch are on all threads.

    Attributes:
        row_N: of each shard, where its rows stand.
        key_N: of each shard, uint64, ascending.
        followed: of each shard, the trajectories.
    """

    threads: ThreadPoolExecutor
    row_N: list[np.ndarray]
    key_N: list[np.ndarray]
    followed: list[kmeans.Followed]

    @classmethod
    def dealt(
        cls, loss_NT: np.ndarray, seed: int, threads: ThreadPoolExecutor, num_shards: int
    ) -> "_Shards":
        key_N = hashing.mixed(np.arange(len(loss_NT), dtype=np.uint64), seed)
        order_N = np.argsort(key_N)
        row_N = [order_N[first::num_shards] for first in range(num_shards)]
        followed = threads.map(lambda row_N: kmeans.Followed(loss_NT.take(row_N, axis=0)), row_N)
        return cls(threads, row_N, [key_N[rows] for rows in row_N], list(followed))

    def summed(self, centroids: Centroids, shares: Mapping[str, float]) -> Sums:
        num_shards = len(self.followed)
        size = math.ceil(shares[""] * sum(map(len, self.row_N)))
        sizes = [len(range(first, size, num_shards)) for first in range(num_shards)]
        sums = self.threads.map(lambda f, size: f.sums(centroids[""], size), self.followed, sizes)
        return {"": reduce(kmeans.ClusterSums.merge, sums)}

    def sample(self, size: int, centre: sampling.Centre) -> tuple[np.ndarray, np.ndarray]:
        drawn = self.threads.map(
            lambda f, key_N: sampling.draw(f.loss_NT, key_N, size, centre),
            self.followed,
            self.key_N,
        )
        return sampling.weighted(sampling.join(list(drawn), size), size)

    def nearest(self, centroid_KT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        num_rows = sum(map(len, self.row_N))
        label_N, sqdist_N = np.empty(num_rows, np.int32), np.empty(num_rows)
        of_shards = self.threads.map(lambda f: f.nearest(centroid_KT), self.followed)
        for row_N, (label, sqdist) in zip(self.row_N, of_shards, strict=True):
            label_N[row_N], sqdist_N[row_N] = label, sqdist
        return label_N, sqdist_N
