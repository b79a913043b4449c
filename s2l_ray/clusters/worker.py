"""What an actor of the stage `clusters` does with the trajectories of its parts.

Shapes: N trajectories of an actor, of one of its parts or of one stratum, S sample rows,
T checkpoints, K clusters of one stratum.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from s2l_ray import hashing
from s2l_ray.artifacts.manifest import part_name
from s2l_ray.clusters import kmeans, quality, sampling, scaling
from s2l_ray.clusters import num_clusters as choosing
from s2l_ray.clusters.minibatch import Centroids, Sums
from s2l_ray.clusters.num_clusters import Tried
from s2l_ray.clusters.scaling import Moments, Scale
from s2l_ray.config.sections import MOST_CLUSTERS, ClustersConfig
from s2l_ray.errors import DataError, first
from s2l_ray.storage.location import Location

SAMPLE, START, OTHER_START = 1, 3, 4
"""Salts that keep the uses of one seed apart."""

ROWS_IN_SILHOUETTE = 1_000

Samples = dict[str, sampling.Sample]
"""By stratum."""
Centres = dict[str, sampling.Centre]
Scales = dict[str, Scale]


@dataclass(frozen=True)
class _Held:
    """An actor's rows of one stratum, in the order of their hashes: a mini-batch comes first.

    Attributes:
        key_N: uint64 (N,), hashed keys, ascending.
        place_N: int32 (N,), where a row stands in the actor's parts, one after the other.
        followed: their trajectories, scaled.
    """

    key_N: np.ndarray
    place_N: np.ndarray
    followed: kmeans.Followed


class MomentsWorker:
    """Sums up some parts' trajectories, one part after the other."""

    def __init__(self, files: dict[int, Location], config: ClustersConfig, seed: int) -> None:
        self.files, self.config, self.seed = files, config, seed

    def moments(self) -> dict[str, Moments]:
        """By stratum, what follows from sums how it is standardised."""
        found: dict[str, Moments] = {}
        for file in self.files.values():
            for name, rows in _read(file, per_stratum=self.config.per_stratum, seed=self.seed):
                of_part = Moments.of(rows.loss_NT)
                found[name] = found[name].merge(of_part) if name in found else of_part
        return found


class ClusterWorker:
    """Holds some parts' trajectories, scaled; sums and labels them.

    Args:
        scales: of every stratum, where trajectories are standardised.
    """

    def __init__(
        self,
        files: dict[int, Location],
        config: ClustersConfig,
        seed: int,
        scales: Scales | None = None,
    ) -> None:
        self.files, self.config, self.seed = files, config, seed
        self._scales = scales or {}
        self._held: dict[str, _Held] | None = None

    def row_counts(self) -> Counter[str]:
        """Rows by stratum."""
        return Counter({name: len(held.key_N) for name, held in self._loaded().items()})

    def num_checkpoints(self) -> int:
        return max((held.followed.loss_NT.shape[1] for held in self._loaded().values()), default=0)

    def samples(self, names: Sequence[str], centres: Centres) -> Samples:
        """What this worker's rows can give to the samples of these strata."""
        size = self.config.sample_size
        return {
            name: sampling.draw(held.followed.loss_NT, held.key_N, size, centres.get(name))
            for name, held in self._loaded().items()
            if name in names
        }

    def started(self, *shards: Samples) -> dict[str, tuple[np.ndarray, Tried | None]]:
        """The k-means++ start of every stratum, found on its sample, and what was tried for it."""
        return {
            name: self._start(sample_ST, weight_S)
            for name, (sample_ST, weight_S) in self._joined(shards).items()
        }

    def _start(
        self, sample_ST: np.ndarray, weight_S: np.ndarray
    ) -> tuple[np.ndarray, Tried | None]:
        wanted, tried, seed = self.config.num_clusters, None, self.seed + START
        if wanted == "auto":
            tried = choosing.attempt(sample_ST, weight_S, most=MOST_CLUSTERS, seed=seed)
            wanted = tried.chosen
        return kmeans.initial_centroids(sample_ST, wanted, seed, weight_S), tried

    def fitted_to_sample(self, *shards: Samples) -> dict[str, tuple[np.ndarray, int, bool]]:
        """Centroids of every stratum, fitted to its sample from random rows of it."""
        num_clusters, seed = self.config.num_clusters, self.seed + START
        assert num_clusters != "auto"
        fits = {}
        for name, (sample_ST, _) in self._joined(shards).items():
            start_KT = kmeans.random_rows(sample_ST, num_clusters, seed)
            fits[name] = kmeans.lloyd_with_splits(sample_ST, start_KT, self.config.lloyd_sweeps)
        return fits

    def _joined(self, shards: Sequence[Samples]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Of every stratum the rows of its sample, and what each stands for."""
        by_name: dict[str, list[sampling.Sample]] = {}
        for shard in shards:
            for name, sample in shard.items():
                by_name.setdefault(name, []).append(sample)
        size = self.config.sample_size
        return {
            name: sampling.weighted(sampling.join(samples, size), size)
            for name, samples in by_name.items()
        }

    def samples_to_judge(self, names: Sequence[str], centroids: Centroids) -> dict[str, Any]:
        """Uniform samples of these strata, each with its centroids."""
        return {name: (sample, centroids[name]) for name, sample in self.samples(names, {}).items()}

    def judged(self, *shards: Mapping[str, Any]) -> dict[str, tuple[float, float] | None]:
        """Silhouette and stability of each stratum; None where the sample lies in one cluster."""
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
        few_S = slice(0, ROWS_IN_SILHOUETTE)
        if len(np.unique(label_S[few_S])) < 2:
            return None
        seed = self.seed + OTHER_START
        other_KT = kmeans.initial_centroids(sample_ST, len(centroid_KT), seed)
        return (
            quality.silhouette(sample_ST[few_S], label_S[few_S]),
            quality.adjusted_rand_index(label_S, kmeans.nearest(sample_ST, other_KT)[0]),
        )

    def sums(self, centroids: Centroids, shares: Mapping[str, float]) -> Sums:
        """Sums of each stratum over its rows whose hashes are among the lowest `share` of all."""
        return {
            name: held.followed.sums(centroids[name], _num_below(held.key_N, shares[name]))
            for name, held in self._loaded().items()
            if name in centroids
        }

    def assign(
        self, centroids: Centroids, numbers: Mapping[str, int], folder: Location
    ) -> tuple[np.ndarray, dict[int, float]]:
        """Write the labels of every part; cluster sizes, and the inertia of each part."""
        held = self._loaded()
        num_rows = sum(len(of_stratum.key_N) for of_stratum in held.values())
        cluster_N = np.empty(num_rows, np.int32)
        sqdist_N = np.empty(num_rows, np.float64)
        for name, of_stratum in held.items():
            label, sqdist_N[of_stratum.place_N] = of_stratum.followed.nearest(centroids[name])
            cluster_N[of_stratum.place_N] = label + numbers[name]
        inertia: dict[int, float] = {}
        start = 0
        for number, file in self.files.items():
            table = file.read_table(["example_id", "stratum"])
            rows = slice(start, start + table.num_rows)
            start += table.num_rows
            inertia[number] = float(sqdist_N[rows].sum())
            self._write(number, table, cluster_N[rows], sqdist_N[rows], folder)
        num_clusters = sum(len(centroid_KT) for centroid_KT in centroids.values())
        return np.bincount(cluster_N, minlength=num_clusters), inertia

    def _write(
        self,
        number: int,
        table: pa.Table,
        cluster_N: np.ndarray,
        sqdist_N: np.ndarray,
        folder: Location,
    ) -> None:
        table = table.append_column("cluster", pa.array(cluster_N, pa.int32()))
        table = table.append_column("sqdist", pa.array(sqdist_N.astype(np.float32)))
        (folder / part_name(number)).write_table(table)

    def _loaded(self) -> dict[str, _Held]:
        if self._held is None:
            pieces: dict[str, list[_Rows]] = {}
            start = 0
            for file in self.files.values():
                num_rows = 0
                for name, rows in _read(file, per_stratum=self.config.per_stratum, seed=self.seed):
                    rows.place_N[:] += start
                    num_rows += len(rows.key_N)
                    pieces.setdefault(name, []).append(rows)
                start += num_rows
            # One stratum after the other, so that no more than one is in memory twice.
            self._held = {
                name: _held(pieces.pop(name), self.config.scaling, self._scales.get(name))
                for name in sorted(pieces)
            }
        return self._held


@dataclass(frozen=True)
class _Rows:
    """Rows of one stratum in one part."""

    key_N: np.ndarray
    place_N: np.ndarray
    loss_NT: np.ndarray


def _held(pieces: list[_Rows], scaling_name: str, scale: Scale | None) -> _Held:
    key_N = np.concatenate([rows.key_N for rows in pieces])
    order_N = np.argsort(key_N, kind="stable")
    place_N = np.concatenate([rows.place_N for rows in pieces])[order_N]
    loss_NT = np.concatenate([rows.loss_NT for rows in pieces])
    pieces.clear()
    loss_NT = loss_NT.take(order_N, axis=0)
    scaled_NT = scaling.scaled(loss_NT, scaling_name, scale)
    return _Held(key_N[order_N], place_N, kmeans.Followed(scaled_NT))


def _num_below(key_N: np.ndarray, share: float) -> int:
    """How many of the sorted keys are among the lowest `share` of all 64-bit integers."""
    if share >= 1:
        return len(key_N)
    return int(np.searchsorted(key_N, np.uint64(share * 2.0**64)))


def _read(file: Location, *, per_stratum: bool, seed: int) -> Iterator[tuple[str, _Rows]]:
    """The rows of a part, stratum by stratum; places count from its first row.

    Raises:
        DataError: a loss is not finite, or too large to be one.
    """
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
    key_N = hashing.mixed(hashing.example_keys(ids), seed, SAMPLE)
    for name, row_N in _rows_by_stratum(table, per_stratum).items():
        yield name, _Rows(key_N[row_N], row_N.astype(np.int32), loss_NT.take(row_N, axis=0))


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
