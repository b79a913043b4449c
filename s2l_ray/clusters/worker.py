"""The actors of the stage `clusters`, each with the trajectories of its parts.

Shape letters: N trajectories of an actor, of one of its parts or of one stratum, S sample rows,
T checkpoints, K clusters of one stratum.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from s2l_ray import hashing
from s2l_ray.artifacts.keys import column_keys
from s2l_ray.artifacts.tables import part_name
from s2l_ray.clusters import kmeans, quality, sampling, scaling
from s2l_ray.clusters.found_strata import FoundStrata
from s2l_ray.clusters.minibatch import Centroids, Sums
from s2l_ray.clusters.num_clusters import Trials, try_ladder
from s2l_ray.clusters.scaling import Moments, Scale
from s2l_ray.config.clusters import MOST_CLUSTERS, ClustersConfig
from s2l_ray.errors import DataError, first
from s2l_ray.storage.location import Location

SAMPLE, START, OTHER_START = 1, 3, 4
"""Salts: each use of the seed gets other random numbers."""

ROWS_IN_SILHOUETTE = 1_000

Samples = dict[str, sampling.Sample]
"""Stratum -> sample."""
Centres = dict[str, sampling.Centre]
"""Stratum -> centre."""
Scales = dict[str, Scale]
"""Stratum -> scale."""
Wanted = int | Literal["auto"]
"""How many clusters a stratum gets."""


@dataclass(frozen=True)
class _StratumRows:
    """The rows of one stratum that an actor holds, in the order of their hashes.

    So the first rows are a mini-batch.

    Attributes:
        key_N: uint64 (N,), hashed keys, ascending.
        position_N: int32 (N,), the position of each row in the actor's parts, put one after the
            other.
        tracked: the trajectories, scaled.
    """

    key_N: np.ndarray
    position_N: np.ndarray
    tracked: kmeans.TrackedRows


class MomentsWorker:
    """Sums up the trajectories of some parts, one part after the other."""

    def __init__(
        self,
        files: dict[int, Location],
        config: ClustersConfig,
        seed: int,
        found: FoundStrata | None = None,
    ) -> None:
        self.files, self.config, self.seed, self.found = files, config, seed, found

    def moments(self) -> dict[str, Moments]:
        """Return, by stratum, the sums that its scale follows from."""
        moments: dict[str, Moments] = {}
        for part in self.files:
            for name, rows in _read(self, part):
                of_part = Moments.of(rows.loss_NT)
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
        self.files, self.config, self.seed, self.found = files, config, seed, found
        self._scales = scales or {}
        self._rows: dict[str, _StratumRows] | None = None

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
        loaded = self._loaded()
        num_rows = sum(len(rows.key_N) for rows in loaded.values())
        cluster_N = np.empty(num_rows, np.int32)
        sqdist_N = np.empty(num_rows, np.float64)
        for name, rows in loaded.items():
            label, sqdist_N[rows.position_N] = rows.tracked.nearest(centroids[name])
            cluster_N[rows.position_N] = label + numbers[name]
        inertia: dict[int, float] = {}
        start = 0
        for number, file in self.files.items():
            table = _with_strata(file.read_table(["example_id", "stratum"]), number, self.found)
            part = slice(start, start + table.num_rows)
            start += table.num_rows
            inertia[number] = float(sqdist_N[part].sum())
            _write_labels(table, cluster_N[part], sqdist_N[part], folder / part_name(number))
        num_clusters = sum(len(centroid_KT) for centroid_KT in centroids.values())
        return np.bincount(cluster_N, minlength=num_clusters), inertia

    def _loaded(self) -> dict[str, _StratumRows]:
        """Return the rows by stratum; they are read at the first call."""
        if self._rows is None:
            pieces: dict[str, list[_PartRows]] = {}
            start = 0
            for part in self.files:
                num_rows = 0
                for name, rows in _read(self, part):
                    rows.position_N[:] += start
                    num_rows += len(rows.key_N)
                    pieces.setdefault(name, []).append(rows)
                start += num_rows
            # One stratum after the other, so that no more than one is in memory twice.
            self._rows = {
                name: _joined_rows(pieces.pop(name), self.config.scaling, self._scales.get(name))
                for name in sorted(pieces)
            }
        return self._rows


@dataclass(frozen=True)
class _PartRows:
    """The rows of one stratum in one part, as read.

    Attributes:
        key_N: uint64 (N,), hashed keys.
        position_N: int32 (N,), the position of each row, from the first row of the part.
        loss_NT: float32 (N, T), nats per token.
    """

    key_N: np.ndarray
    position_N: np.ndarray
    loss_NT: np.ndarray


def _write_labels(
    table: pa.Table, cluster_N: np.ndarray, sqdist_N: np.ndarray, file: Location
) -> None:
    table = table.append_column("cluster", pa.array(cluster_N, pa.int32()))
    table = table.append_column("sqdist", pa.array(sqdist_N.astype(np.float32)))
    file.write_table(table)


def _joined_rows(pieces: list[_PartRows], scaling_name: str, scale: Scale | None) -> _StratumRows:
    """Put the rows of all parts in the order of their keys, and scale them; empties `pieces`."""
    key_N = np.concatenate([rows.key_N for rows in pieces])
    order_N = np.argsort(key_N, kind="stable")
    position_N = np.concatenate([rows.position_N for rows in pieces])[order_N]
    loss_NT = np.concatenate([rows.loss_NT for rows in pieces])
    pieces.clear()
    loss_NT = loss_NT.take(order_N, axis=0)
    scaled_NT = scaling.scaled(loss_NT, scaling_name, scale)
    return _StratumRows(key_N[order_N], position_N, kmeans.TrackedRows(scaled_NT))


def _num_below(key_N: np.ndarray, share: float) -> int:
    """Return how many of the sorted keys are among the lowest `share` of all 64-bit integers."""
    if share >= 1:
        return len(key_N)
    return int(np.searchsorted(key_N, np.uint64(share * 2.0**64)))


def _read(worker: MomentsWorker | ClusterWorker, part: int) -> Iterator[tuple[str, _PartRows]]:
    """Yield the rows of a part, stratum by stratum.

    Raises:
        DataError: a loss is not finite, or above `kmeans.MAX_LOSS_NATS`.
    """
    file = worker.files[part]
    table = file.read_table(["example_id", "stratum", "loss_nats"])
    ids = table["example_id"].to_pylist()
    losses = table["loss_nats"].combine_chunks()
    loss_NT = losses.flatten().to_numpy().reshape(len(ids), losses.type.list_size)
    # NaN fails the comparison.
    bad = np.flatnonzero(~(np.abs(loss_NT) <= kmeans.MAX_LOSS_NATS).all(axis=1))
    if len(bad):
        raise DataError(
            f"clusters: {len(bad):,} trajectories in {file.name} hold a loss that is NaN, infinite "
            f"or above {kmeans.MAX_LOSS_NATS:,.0f} nats (first: "
            f"{first([ids[row] for row in bad[:4]])}). Redo them with `--from trajectories`."
        )
    key_N = hashing.mixed(column_keys(table["example_id"]), worker.seed, SAMPLE)
    table = _with_strata(table, part, worker.found)
    for name, row_N in _rows_by_stratum(table, worker.config.per_stratum).items():
        yield name, _PartRows(key_N[row_N], row_N.astype(np.int32), loss_NT.take(row_N, axis=0))


def _with_strata(table: pa.Table, part: int, found: FoundStrata | None) -> pa.Table:
    return table if found is None else found.replace(table, part)


def _rows_by_stratum(table: pa.Table, per_stratum: bool) -> dict[str, np.ndarray]:
    if not table.num_rows:
        return {}
    if not per_stratum:
        return {"": np.arange(table.num_rows)}
    coded = table["stratum"].combine_chunks().dictionary_encode()
    code_N = coded.indices.to_numpy()
    order_N = np.argsort(code_N, kind="stable")
    ends = np.cumsum(np.bincount(code_N, minlength=len(coded.dictionary)))
    rows = np.split(order_N, ends[:-1])
    return dict(zip(coded.dictionary.to_pylist(), rows, strict=True))
