"""The actors of the stage `clusters`, each with the trajectories of its parts.

Shape letters: N trajectories of an actor, of one of its parts or of one stratum, S sample rows,
T checkpoints, K clusters of one stratum.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from s2l_ray.artifacts.tables import part_name
from s2l_ray.clusters import held_rows, kmeans, quality, sampling
from s2l_ray.clusters.found_strata import FoundStrata
from s2l_ray.clusters.held_rows import HeldRows, PartFiles, StratumRows
from s2l_ray.clusters.minibatch import Centroids, Sums
from s2l_ray.clusters.num_clusters import Trials, try_ladder
from s2l_ray.clusters.scaling import Moments, Scale
from s2l_ray.config.clusters import MOST_CLUSTERS, ClustersConfig
from s2l_ray.storage.location import Location

START, OTHER_START = 3, 4
"""Salts: each use of the seed gets other random numbers (`held_rows` has one more)."""

ROWS_IN_SILHOUETTE = 1_000

Samples = dict[str, sampling.Sample]
"""Stratum -> sample."""
Centres = dict[str, sampling.Centre]
"""Stratum -> centre."""
Scales = dict[str, Scale]
"""Stratum -> scale."""
Wanted = int | Literal["auto"]
"""How many clusters a stratum gets."""


class MomentsWorker:
    """Sums up the trajectories of some parts, one part after the other."""

    def __init__(
        self,
        files: dict[int, Location],
        config: ClustersConfig,
        found: FoundStrata | None = None,
    ) -> None:
        self.parts = PartFiles(files, config.per_stratum, found)

    def moments(self) -> dict[str, Moments]:
        """Return, by stratum, the sums that its scale follows from."""
        moments: dict[str, Moments] = {}
        for part, _, rows in self.parts.ids():
            loss_NT = held_rows.losses(self.parts.files[part])
            for name, row_N in rows.items():
                of_part = Moments.of(loss_NT.take(row_N, axis=0))
                moments[name] = moments[name].merge(of_part) if name in moments else of_part
        return moments


class ClusterWorker:
    """Holds the scaled trajectories of some parts; sums and labels them.

    Args:
        files: the parts, by part number.
        scales: the scale of every stratum, if trajectories are standardised.
        found: the strata that take the place of those of the rows, if any.
    """

    def __init__(
        self,
        files: dict[int, Location],
        config: ClustersConfig,
        seed: int,
        scales: Scales | None = None,
        found: FoundStrata | None = None,
    ) -> None:
        self.parts = PartFiles(files, config.per_stratum, found)
        self.config, self.seed = config, seed
        self._scales = scales or {}
        self._rows: HeldRows | None = None

    def row_counts(self) -> Counter[str]:
        """Return the number of rows by stratum."""
        return Counter({name: len(rows.key_N) for name, rows in self._loaded().items()})

    def num_checkpoints(self) -> int:
        """Return the number of checkpoints, or 0 if this worker holds no row."""
        return max((rows.tracked.loss_NT.shape[1] for rows in self._loaded().values()), default=0)

    def samples(self, names: Sequence[str], centres: Centres) -> Samples:
        """Return the candidates for the samples of these strata among the rows of this worker."""
        size = self.config.sample_size
        return {
            name: sampling.draw(rows.tracked.loss_NT, rows.key_N, size, centres.get(name))
            for name, rows in self._loaded().items()
            if name in names
        }

    def samples_for_start(
        self, names: Sequence[str], centres: Centres, wanted: Mapping[str, Wanted]
    ) -> dict[str, tuple[sampling.Sample, Wanted]]:
        """Return the candidates for samples, each with the number of clusters of its stratum."""
        samples = self.samples(names, centres)
        return {name: (sample, wanted[name]) for name, sample in samples.items()}

    def starts(
        self, *shards: Mapping[str, tuple[sampling.Sample, Wanted]]
    ) -> dict[str, tuple[np.ndarray, Trials | None]]:
        """Return the k-means++ start of every stratum, computed on its sample.

        Args:
            shards: the results of `samples_for_start` from all workers.

        Returns:
            for each stratum its centroids, and the numbers of clusters that were tried, or None if
            the number is configured.
        """
        wanted = {name: number for shard in shards for name, (_, number) in shard.items()}
        samples = [{name: sample for name, (sample, _) in shard.items()} for shard in shards]
        return {
            name: self._start(sample_ST, weight_S, wanted[name])
            for name, (sample_ST, weight_S) in self._joined(samples).items()
        }

    def _start(
        self, sample_ST: np.ndarray, weight_S: np.ndarray, wanted: Wanted
    ) -> tuple[np.ndarray, Trials | None]:
        tried, seed = None, self.seed + START
        if wanted == "auto":
            tried = try_ladder(sample_ST, weight_S, most=MOST_CLUSTERS, seed=seed)
            wanted = tried.chosen
        return kmeans.initial_centroids(sample_ST, wanted, seed, weight_S), tried

    def fitted_to_sample(self, *shards: Samples) -> dict[str, tuple[np.ndarray, int, bool]]:
        """Return, for every stratum, centroids that were fitted to its sample from random rows.

        Args:
            shards: the results of `samples` from all workers.

        Returns:
            for each stratum the result of `kmeans.lloyd_with_splits`.
        """
        num_clusters, seed = self.config.num_clusters, self.seed + START
        assert num_clusters != "auto"
        fits = {}
        for name, (sample_ST, _) in self._joined(shards).items():
            start_KT = kmeans.random_rows(sample_ST, num_clusters, seed)
            fits[name] = kmeans.lloyd_with_splits(sample_ST, start_KT, self.config.lloyd_sweeps)
        return fits

    def _joined(self, shards: Sequence[Samples]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return, for every stratum, the rows of its sample and how many rows each stands for."""
        by_name: dict[str, list[sampling.Sample]] = {}
        for shard in shards:
            for name, sample in shard.items():
                by_name.setdefault(name, []).append(sample)
        size = self.config.sample_size
        return {
            name: sampling.weighted(sampling.join(samples, size), size)
            for name, samples in by_name.items()
        }

    def uniform_samples(self, names: Sequence[str], centroids: Centroids) -> dict[str, Any]:
        """Return the candidates for uniform samples of these strata, each with its centroids."""
        return {name: (sample, centroids[name]) for name, sample in self.samples(names, {}).items()}

    def qualities(self, *shards: Mapping[str, Any]) -> dict[str, tuple[float, float] | None]:
        """Return the silhouette and the stability of each stratum.

        The result is None if the first rows of the sample lie in one cluster.

        Args:
            shards: the results of `uniform_samples` from all workers.
        """
        centroids = {
            name: centroid_KT for shard in shards for name, (_, centroid_KT) in shard.items()
        }
        samples = [{name: sample for name, (sample, _) in shard.items()} for shard in shards]
        return {
            name: self._quality(sample_ST, centroids[name])
            for name, (sample_ST, _) in self._joined(samples).items()
        }

    def _quality(
        self, sample_ST: np.ndarray, centroid_KT: np.ndarray
    ) -> tuple[float, float] | None:
        label_S, _ = kmeans.nearest(sample_ST, centroid_KT)
        first_S = slice(0, ROWS_IN_SILHOUETTE)
        if len(np.unique(label_S[first_S])) < 2:
            return None
        seed = self.seed + OTHER_START
        other_KT = kmeans.initial_centroids(sample_ST, len(centroid_KT), seed)
        return (
            quality.silhouette(sample_ST[first_S], label_S[first_S]),
            quality.adjusted_rand_index(label_S, kmeans.nearest(sample_ST, other_KT)[0]),
        )

    def sums(self, centroids: Centroids, shares: Mapping[str, float]) -> Sums:
        """Return the sums of each stratum over the rows with hashes in the lowest `share`."""
        return {
            name: rows.tracked.sums(centroids[name], _num_below(rows.key_N, shares[name]))
            for name, rows in self._loaded().items()
            if name in centroids
        }

    def assign(
        self, centroids: Centroids, numbers: Mapping[str, int], folder: Location
    ) -> tuple[np.ndarray, dict[int, float]]:
        """Write the labels of every part.

        Args:
            numbers: the number of the first cluster of each stratum.

        Returns:
            the sizes of all clusters; and the inertia by part number.
        """
        for name, rows in self._loaded().items():
            rows.tracked.sums(centroids[name])
        size_K = np.zeros(sum(len(centroid_KT) for centroid_KT in centroids.values()), np.int64)
        inertia: dict[int, float] = {}
        start = 0
        # One part after the other: labels and distances of all rows would take much memory.
        for number, table, row_by_name in self.parts.ids():
            place_P = self._held().place_N[start : start + table.num_rows]
            start += table.num_rows
            cluster_P, sqdist_P = np.empty(len(place_P), np.int32), np.empty(len(place_P))
            for name, row_P in row_by_name.items():
                rows = self._loaded()[name]
                label, sqdist_P[row_P] = rows.tracked.labelled(place_P[row_P] - rows.first)
                cluster_P[row_P] = label + numbers[name]
            size_K += np.bincount(cluster_P, minlength=len(size_K))
            inertia[number] = float(sqdist_P.sum())
            _write_labels(table, cluster_P, sqdist_P, folder / part_name(number))
        return size_K, inertia

    def _loaded(self) -> dict[str, StratumRows]:
        """Return the rows by stratum; they are read at the first call."""
        return self._held().strata

    def _held(self) -> HeldRows:
        if self._rows is None:
            self._rows = held_rows.read(self.parts, self.config, self._scales, self.seed)
        return self._rows


def _write_labels(
    table: pa.Table, cluster_N: np.ndarray, sqdist_N: np.ndarray, file: Location
) -> None:
    table = table.append_column("cluster", pa.array(cluster_N, pa.int32()))
    table = table.append_column("sqdist", pa.array(sqdist_N.astype(np.float32)))
    file.write_table(table)


def _num_below(key_N: np.ndarray, share: float) -> int:
    """Return how many of the sorted keys are among the lowest `share` of all 64-bit integers."""
    if share >= 1:
        return len(key_N)
    return int(np.searchsorted(key_N, np.uint64(share * 2.0**64)))
