"""Stage 4: trajectories are grouped by k-means, inside each stratum or over all.

Actors keep the trajectories of their parts in memory and return integer sums; the driver holds
centroids only. Integer sums add up to the same value in any order, and the rows of a mini-batch
are chosen by a hash of their id, so centroids are bit-identical under any number of actors.

Shapes: N trajectories of a part, S sample rows, T checkpoints, K clusters of one stratum.
"""

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from s2l_ray import resources
from s2l_ray.artifacts import Parts, StageDir, part_name
from s2l_ray.config import ClustersConfig
from s2l_ray.errors import DataError, first
from s2l_ray.fleet import RayFleet
from s2l_ray.maths import hashing, kmeans
from s2l_ray.progress import Progress
from s2l_ray.storage import Location

SAMPLE, SWEEP, START = 1, 2, 3
"""Salts that keep the uses of one seed apart."""

ROWS_PER_JOIN = 1 << 19
"""Trajectories of which samples are drawn at once."""

Centroids = dict[str, np.ndarray]
"""Stratum -> centroid_KT, float32."""
Sums = dict[str, kmeans.ClusterSums]
Samples = dict[str, tuple[np.ndarray, np.ndarray]]
"""Stratum -> hashed key_S, uint64, and loss_ST, float32, of its rows with the smallest keys."""
Fit = tuple[Centroids, int, bool]
"""Centroids, the most Lloyd sweeps that a stratum took, and whether all came to rest."""


def run(
    config: ClustersConfig,
    trajectories: Parts,
    out: StageDir,
    *,
    seed: int,
    progress: Progress,
    stored: Centroids | None = None,
) -> dict[str, Any]:
    """Cluster every trajectory.

    Args:
        stored: centroids that stay as they are, strata in the order of their numbers. Trajectories
            of these strata are placed; strata that are not among them are clustered by themselves,
            and their clusters get the numbers that follow.

    Reads   trajectories part-*     example_id, stratum: string, loss_nats: float32[T]
    Writes  part-*.parquet          example_id, stratum: string, cluster: int32, sqdist: float32
            centroids.npy           float32 (K, T), nats per token, strata in the order of names
    Raises  DataError when there is no trajectory, or one is not finite.
    """
    wanted = resources.workers("clusters", config.workers, cpus=1, gpus=0)
    fleet = RayFleet.start(ClusterWorker, trajectories.files(), wanted, config, seed)
    summary = cluster(fleet, config, out.location, progress=progress, stored=stored)
    if not summary["rows"]:
        raise DataError(f"clusters: there are no trajectories in {trajectories.folder}.")
    return summary


def cluster(
    fleet: "Fleet",
    config: ClustersConfig,
    folder: Location,
    *,
    progress: Progress,
    stored: Centroids | None = None,
) -> dict[str, Any]:
    """Cluster what the workers of `fleet` hold, write it to `folder`; the summary of it."""
    rows_by_stratum = sum(fleet.everywhere("row_counts"), Counter[str]())
    num_rows = rows_by_stratum.total()
    if not num_rows:
        return {"rows": 0}
    fit = _fit_samples if config.method == "authors" else _fit_all
    centroids, sweeps, converged = dict(stored or {}), 0, True
    unseen = {name: count for name, count in rows_by_stratum.items() if name not in centroids}
    if unseen:
        fitted, sweeps, converged = fit(fleet, unseen, config, progress)
        centroids |= fitted
    numbers = _first_numbers(centroids)
    sizes_K, inertia = _assign(fleet, centroids, numbers, folder)
    progress.update(1)
    _write_centroids(centroids, folder)
    return {
        "rows": num_rows,
        "num_clusters": len(sizes_K),
        "stratum_of_cluster": [name for name in centroids for _ in centroids[name]],
        "size_of_cluster": sizes_K.tolist(),
        "inertia": inertia,
        "lloyd_sweeps": sweeps,
        "converged": converged,
        "shrunk_strata": _shrunk(centroids, config),
    }


def _fit_samples(
    fleet: "Fleet", rows_by_stratum: Mapping[str, int], config: ClustersConfig, progress: Progress
) -> Fit:
    """The authors' k-means: each stratum's centroids are fitted to its sample alone."""
    progress.start(config.lloyd_sweeps + 1, "sweeps")
    fits = fleet.exchange(sorted(rows_by_stratum), "samples", "fitted_to_sample")
    progress.update(config.lloyd_sweeps)
    centroids = {name: centroid_KT for name, (centroid_KT, _, _) in fits.items()}
    sweeps = max(sweeps for _, sweeps, _ in fits.values())
    return centroids, sweeps, all(at_rest for _, _, at_rest in fits.values())


def _fit_all(
    fleet: "Fleet", rows_by_stratum: Mapping[str, int], config: ClustersConfig, progress: Progress
) -> Fit:
    """A k-means++ start on samples, then mini-batches and full sweeps over all rows."""
    centroids = fleet.exchange(sorted(rows_by_stratum), "samples", "initial_centroids")
    num_rows = sum(rows_by_stratum.values())
    progress.start(config.minibatch_sweeps + config.lloyd_sweeps + 1, "sweeps")
    centroids = _minibatches(fleet, centroids, config, num_rows, progress)
    return _lloyd(fleet, centroids, config.lloyd_sweeps, progress)


def _minibatches(
    fleet: "Fleet",
    centroids: Centroids,
    config: ClustersConfig,
    num_rows: int,
    progress: Progress,
) -> Centroids:
    """Running means over hashed mini-batches; a pool that is one batch goes straight to Lloyd."""
    if num_rows <= config.rows_per_batch:
        progress.update(config.minibatch_sweeps)
        return centroids
    seen = {name: np.zeros(len(centroids[name]), np.int64) for name in centroids}
    share = config.rows_per_batch / num_rows
    for sweep in range(config.minibatch_sweeps):
        for name, sums in _merged(fleet, "batch_sums", centroids, sweep, share).items():
            moved_KT, seen[name] = kmeans.minibatch_step(centroids[name], seen[name], sums)
            centroids = {**centroids, name: moved_KT}
        progress.update(1)
    return centroids


def _lloyd(fleet: "Fleet", centroids: Centroids, max_sweeps: int, progress: Progress) -> Fit:
    """Full sweeps until no centroid moves, each stratum for itself; clusters left empty go."""
    moving = dict(centroids)
    for sweep in range(max_sweeps):
        sums = _merged(fleet, "all_sums", moving)
        progress.update(1)
        moved = {name: kmeans.centroids(sums[name], moving[name]) for name in moving}
        for name in moving:
            filled_K = sums[name].count_K > 0
            centroids = {**centroids, name: moved[name][filled_K]}
        moving = {
            name: centroids[name]
            for name in moving
            if not np.array_equal(moved[name], moving[name]) or (sums[name].count_K == 0).any()
        }
        if not moving:
            return centroids, sweep + 1, True
    return centroids, max_sweeps, False


def _assign(
    fleet: "Fleet", centroids: Centroids, numbers: Mapping[str, int], folder: Location
) -> tuple[np.ndarray, float]:
    """Write every part's labels; sizes of all clusters, and the inertia in nats squared."""
    totals = fleet.everywhere("assign", centroids, dict(numbers), folder)
    size_K = np.sum([size for size, _ in totals], axis=0)
    # Parts are summed in their own order, whoever computed them.
    inertia_by_part = sorted(item for _, parts in totals for item in parts.items())
    return size_K, float(sum(inertia for _, inertia in inertia_by_part))


def _first_numbers(centroids: Centroids) -> dict[str, int]:
    """The number of each stratum's first cluster: clusters are numbered through all strata."""
    counts = [len(centroid_KT) for centroid_KT in centroids.values()]
    starts = np.concatenate([[0], np.cumsum(counts)])
    return {name: int(start) for name, start in zip(centroids, starts, strict=False)}


def _write_centroids(centroids: Centroids, folder: Location) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate(list(centroids.values())).astype(np.float32))
    (folder / "centroids.npy").write_bytes(buffer.getvalue())


def _shrunk(centroids: Centroids, config: ClustersConfig) -> dict[str, int]:
    """Strata with fewer clusters than asked for, because they have fewer distinct rows."""
    counts = {name: len(centroid_KT) for name, centroid_KT in centroids.items()}
    return {name: count for name, count in counts.items() if count < config.num_clusters}


def _merged(fleet: "Fleet", method: str, *arguments: Any) -> Sums:
    """Sums of all workers, added by stratum."""
    merged: dict[str, list[kmeans.ClusterSums]] = {}
    for of_worker in fleet.everywhere(method, *arguments):
        for name, sums in of_worker.items():
            merged.setdefault(name, []).append(sums)
    return {name: reduce(kmeans.ClusterSums.merge, merged[name]) for name in sorted(merged)}


class Fleet(Protocol):
    """Cluster workers, each with its share of the parts."""

    def everywhere(self, method: str, *arguments: Any) -> list[Any]:
        """What `method` returns on every worker."""

    def exchange(self, names: Sequence[str], give: str, take: str) -> dict[str, Any]:
        """By name, in order: what `take` makes on one worker of what `give` returns on all."""


@dataclass(frozen=True)
class _Part:
    """One part in memory: trajectories of a stratum lie together."""

    loss_NT: np.ndarray
    key_N: np.ndarray
    rows_by_stratum: dict[str, np.ndarray]


class ClusterWorker:
    """Holds some parts' trajectories; sums and labels them."""

    def __init__(self, files: dict[int, Location], config: ClustersConfig, seed: int) -> None:
        self.files, self.config, self.seed = files, config, seed
        self._parts: list[_Part] = []

    def row_counts(self) -> Counter[str]:
        """Rows by stratum."""
        counts = Counter[str]()
        for part in self._loaded():
            counts.update({name: len(rows) for name, rows in part.rows_by_stratum.items()})
        return counts

    def samples(self, names: Sequence[str]) -> Samples:
        """What this worker's rows can give to the samples of these strata."""
        wanted, shards, num_rows = set(names), list[Samples](), 0
        for part in self._loaded():
            shards.append(
                {
                    name: (hashing.mixed(part.key_N[rows], self.seed, SAMPLE), part.loss_NT[rows])
                    for name, rows in part.rows_by_stratum.items()
                    if name in wanted
                }
            )
            num_rows += len(part.key_N)
            if num_rows >= ROWS_PER_JOIN:
                # Otherwise all rows of a worker would be in memory a second time.
                shards, num_rows = [self._joined(shards)], 0
        return self._joined(shards)

    def initial_centroids(self, *shards: Samples) -> Centroids:
        """The k-means++ start of every stratum, found on its sample."""
        num_clusters, seed = self.config.num_clusters, self.seed + START
        return {
            name: kmeans.initial_centroids(sample_ST, num_clusters, seed)
            for name, (_, sample_ST) in self._joined(shards).items()
        }

    def fitted_to_sample(self, *shards: Samples) -> dict[str, tuple[np.ndarray, int, bool]]:
        """Centroids of every stratum, fitted to its sample from random rows of it."""
        num_clusters, seed = self.config.num_clusters, self.seed + START
        fits = {}
        for name, (_, sample_ST) in self._joined(shards).items():
            start_KT = kmeans.random_rows(sample_ST, num_clusters, seed)
            fits[name] = kmeans.lloyd_with_splits(sample_ST, start_KT, self.config.lloyd_sweeps)
        return fits

    def _joined(self, shards: Sequence[Samples]) -> Samples:
        """The samples of a union, which are those of its shards' samples put together."""
        by_name: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        for shard in shards:
            for name, sample in shard.items():
                by_name.setdefault(name, []).append(sample)
        joined = {}
        for name, samples in by_name.items():
            key_S, loss_ST = (np.concatenate(arrays) for arrays in zip(*samples, strict=True))
            keep = hashing.bottom_k(key_S, self.config.rows_per_sample)
            joined[name] = key_S[keep], loss_ST[keep]
        return joined

    def batch_sums(self, centroids: Centroids, sweep: int, share: float) -> Sums:
        """Sums over the rows whose hash for this sweep is among the lowest `share` of all."""
        limit = np.uint64(share * float(2**64 - 2**12))
        return self._sums(
            centroids,
            lambda part, rows: rows[
                hashing.mixed(part.key_N[rows], self.seed, SWEEP, sweep) < limit
            ],
        )

    def all_sums(self, centroids: Centroids) -> Sums:
        return self._sums(centroids, lambda _, rows: rows)

    def _sums(
        self, centroids: Centroids, chosen: Callable[[_Part, np.ndarray], np.ndarray]
    ) -> Sums:
        found: dict[str, list[kmeans.ClusterSums]] = {}
        for part in self._loaded():
            for name, rows in part.rows_by_stratum.items():
                if name in centroids:
                    loss_NT = part.loss_NT[chosen(part, rows)]
                    found.setdefault(name, []).append(kmeans.summarise(loss_NT, centroids[name]))
        return {name: reduce(kmeans.ClusterSums.merge, sums) for name, sums in found.items()}

    def assign(
        self, centroids: Centroids, numbers: Mapping[str, int], folder: Location
    ) -> tuple[np.ndarray, dict[int, float]]:
        """Write the labels of every part; cluster sizes, and the inertia of each part."""
        size_K = np.zeros(sum(len(centroid_KT) for centroid_KT in centroids.values()), np.int64)
        inertia: dict[int, float] = {}
        for number, part in zip(self.files, self._loaded(), strict=True):
            cluster_N = np.empty(len(part.loss_NT), np.int32)
            sqdist_N = np.empty(len(part.loss_NT), np.float64)
            for name, rows in part.rows_by_stratum.items():
                label, sqdist_N[rows] = kmeans.nearest(part.loss_NT[rows], centroids[name])
                cluster_N[rows] = label + numbers[name]
            size_K += np.bincount(cluster_N, minlength=len(size_K))
            inertia[number] = float(sqdist_N.sum())
            self._write(number, cluster_N, sqdist_N, folder)
        return size_K, inertia

    def _write(
        self, number: int, cluster_N: np.ndarray, sqdist_N: np.ndarray, folder: Location
    ) -> None:
        table = self.files[number].read_table(["example_id", "stratum"])
        table = table.append_column("cluster", pa.array(cluster_N, pa.int32()))
        table = table.append_column("sqdist", pa.array(sqdist_N.astype(np.float32)))
        (folder / part_name(number)).write_table(table)

    def _loaded(self) -> list[_Part]:
        if len(self._parts) < len(self.files):
            self._parts = [
                _load(file, per_stratum=self.config.per_stratum) for file in self.files.values()
            ]
        return self._parts


def _load(file: Location, *, per_stratum: bool) -> _Part:
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
    return _Part(loss_NT, hashing.example_keys(ids), _rows_by_stratum(table, per_stratum))


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
