"""Centroids from mini-batches that grow until they are the whole pool, several strata at once.

Every batch contains the one before it, so that what workers know of a row stays of use, and the
last one is all rows: what comes out is a fixed point of Lloyd's algorithm, or as near to one as was
asked for. Whoever holds rows only adds up sums; nothing here communicates.

Shape letters: T checkpoints, K clusters of one stratum.

Source: nested mini-batches, Newling and Fleuret (2016), arXiv:1602.02934.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from s2l_ray.maths import kmeans

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
        centroids: of every stratum, none of an empty cluster.
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
    converged: bool = False

    def moved(self, sums: kmeans.ClusterSums, tolerance: float) -> "_Stratum":
        """After a sweep whose sums are these."""
        moved_KT = kmeans.centroids(sums, self.centroid_KT)
        at_rest = kmeans.gain(sums, self.centroid_KT, moved_KT) <= tolerance * sums.inertia
        if self.share < 1:
            share = min(self.share * GROWTH, 1.0) if at_rest else self.share
            return replace(self, centroid_KT=moved_KT, share=share)
        # A cluster that was left empty goes, once its neighbours have settled.
        filled_KT = moved_KT[sums.count_K > 0]
        converged = at_rest and len(filled_KT) == len(moved_KT)
        return replace(self, centroid_KT=filled_KT, sweeps=self.sweeps + 1, converged=converged)


def fit(
    start: Centroids,
    num_rows: Mapping[str, int],
    summed: Summed,
    *,
    rows_in_start: int,
    max_sweeps: int,
    tolerance: float,
    on_full_sweep: Callable[[], None] = lambda: None,
) -> Fit:
    """Centroids for all rows, from centroids that fit samples.

    Args:
        start: by stratum.
        num_rows: of each stratum.
        summed: sums of any batch.
        rows_in_start: rows of a stratum that its start was fitted to; the first batch is larger.
        max_sweeps: over all rows of a stratum.
        tolerance: a sweep that lowers the inertia by no more than this share of it, labels being
            as they were, is the last one on its batch; 0 goes on until nothing moves.
        on_full_sweep: called when the stratum that has most sweeps has another.
    """
    strata = {
        name: _Stratum(centroid_KT, min(1.0, GROWTH * rows_in_start / num_rows[name]))
        for name, centroid_KT in start.items()
    }
    sweeps = 0
    while moving := {
        name: stratum
        for name, stratum in strata.items()
        if not stratum.converged and stratum.sweeps < max_sweeps
    }:
        sums = summed(
            {name: stratum.centroid_KT for name, stratum in moving.items()},
            {name: stratum.share for name, stratum in moving.items()},
        )
        strata |= {name: moving[name].moved(sums[name], tolerance) for name in moving}
        most = max(stratum.sweeps for stratum in strata.values())
        for _ in range(most - sweeps):
            on_full_sweep()
        sweeps = most
    return Fit(
        {name: stratum.centroid_KT for name, stratum in strata.items()},
        sweeps,
        all(stratum.converged for stratum in strata.values()),
    )
