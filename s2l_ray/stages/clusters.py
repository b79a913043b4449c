"""Stage 4: trajectories are grouped by k-means, inside each stratum or over all.

Actors keep the trajectories of their parts in memory and return integer sums; the driver holds
centroids only. Integer sums add up to the same value in any order, and the rows of a sample or a
mini-batch are those with the lowest hashes of their ids, so centroids are bit-identical under any
number of actors.

Shapes: N trajectories of a part, of an actor or of one stratum there, S sample rows,
T checkpoints, K clusters of one stratum.
"""

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from s2l_ray import resources
from s2l_ray.artifacts import Parts, StageDir, part_name
from s2l_ray.config import ClustersConfig
from s2l_ray.errors import DataError, first
from s2l_ray.fleet import RayFleet
from s2l_ray.maths import fitting, hashing, kmeans, sampling
from s2l_ray.maths.fitting import Centroids, Fit, Sums
from s2l_ray.progress import Progress
from s2l_ray.storage import Location

SAMPLE, START = 1, 3
"""Salts that keep the uses of one seed apart."""

Samples = dict[str, sampling.Sample]
"""By stratum."""
Centres = dict[str, sampling.Centre]


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
    found = fitting.Fit(dict(stored or {}), 0, True)
    unseen = {name: count for name, count in rows_by_stratum.items() if name not in found.centroids}
    if unseen:
        fitted = fit(fleet, unseen, config, progress)
        found = replace(fitted, centroids=found.centroids | fitted.centroids)
    centroids = found.centroids
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
        "lloyd_sweeps": found.sweeps,
        "converged": found.converged,
        "shrunk_strata": _shrunk(centroids, config),
    }


def _fit_samples(
    fleet: "Fleet", rows_by_stratum: Mapping[str, int], config: ClustersConfig, progress: Progress
) -> Fit:
    """The authors' k-means: each stratum's centroids are fitted to its sample alone."""
    progress.start(config.lloyd_sweeps + 1, "sweeps")
    fits = fleet.exchange(sorted(rows_by_stratum), "samples", "fitted_to_sample", {})
    progress.update(config.lloyd_sweeps)
    centroids = {name: centroid_KT for name, (centroid_KT, _, _) in fits.items()}
    sweeps = max(sweeps for _, sweeps, _ in fits.values())
    return Fit(centroids, sweeps, all(at_rest for _, _, at_rest in fits.values()))


def _fit_all(
    fleet: "Fleet", rows_by_stratum: Mapping[str, int], config: ClustersConfig, progress: Progress
) -> Fit:
    """A k-means++ start on samples, then mini-batches that grow, and full sweeps at the end."""
    progress.start(config.lloyd_sweeps + 1, "sweeps")
    names, summed = sorted(rows_by_stratum), partial(_merged, fleet)
    centres = fitting.centres(summed, names, max(fleet.everywhere("num_checkpoints")))
    found = fitting.fit(
        fleet.exchange(names, "samples", "initial_centroids", centres),
        rows_by_stratum,
        summed,
        rows_in_start=config.sample_size,
        max_sweeps=config.lloyd_sweeps,
        tolerance=config.tolerance,
        on_full_sweep=lambda: progress.update(1),
    )
    progress.update(config.lloyd_sweeps - found.sweeps)
    return found


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


def _merged(fleet: "Fleet", centroids: Centroids, shares: Mapping[str, float]) -> Sums:
    """Sums of all workers, added by stratum."""
    merged: dict[str, list[kmeans.ClusterSums]] = {}
    for of_worker in fleet.everywhere("sums", centroids, dict(shares)):
        for name, sums in of_worker.items():
            merged.setdefault(name, []).append(sums)
    return {name: reduce(kmeans.ClusterSums.merge, merged[name]) for name in sorted(merged)}


class Fleet(Protocol):
    """Cluster workers, each with its share of the parts."""

    def everywhere(self, method: str, *arguments: Any) -> list[Any]:
        """What `method` returns on every worker."""

    def exchange(
        self, names: Sequence[str], give: str, take: str, *arguments: Any
    ) -> dict[str, Any]:
        """By name, in order: what `take` makes on one worker of what `give` returns on all."""


@dataclass(frozen=True)
class _Held:
    """An actor's rows of one stratum, in the order of their hashes: a mini-batch comes first.

    Attributes:
        key_N: uint64 (N,), hashed keys, ascending.
        place_N: int32 (N,), where a row stands in the actor's parts, one after the other.
        followed: their trajectories.
    """

    key_N: np.ndarray
    place_N: np.ndarray
    followed: kmeans.Followed


class ClusterWorker:
    """Holds some parts' trajectories; sums and labels them."""

    def __init__(self, files: dict[int, Location], config: ClustersConfig, seed: int) -> None:
        self.files, self.config, self.seed = files, config, seed
        self._held: dict[str, _Held] = {}

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

    def initial_centroids(self, *shards: Samples) -> Centroids:
        """The k-means++ start of every stratum, found on its sample."""
        num_clusters, seed = self.config.num_clusters, self.seed + START
        return {
            name: kmeans.initial_centroids(sample_ST, num_clusters, seed, weight_S)
            for name, (sample_ST, weight_S) in self._joined(shards).items()
        }

    def fitted_to_sample(self, *shards: Samples) -> dict[str, tuple[np.ndarray, int, bool]]:
        """Centroids of every stratum, fitted to its sample from random rows of it."""
        num_clusters, seed = self.config.num_clusters, self.seed + START
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
        if not self._held:
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
            self._held = {name: _held(pieces.pop(name)) for name in sorted(pieces)}
        return self._held


@dataclass(frozen=True)
class _Rows:
    """Rows of one stratum in one part."""

    key_N: np.ndarray
    place_N: np.ndarray
    loss_NT: np.ndarray


def _held(pieces: list[_Rows]) -> _Held:
    key_N = np.concatenate([rows.key_N for rows in pieces])
    order_N = np.argsort(key_N, kind="stable")
    place_N = np.concatenate([rows.place_N for rows in pieces])[order_N]
    loss_NT = np.concatenate([rows.loss_NT for rows in pieces])
    pieces.clear()
    return _Held(key_N[order_N], place_N, kmeans.Followed(loss_NT[order_N]))


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
        yield name, _Rows(key_N[row_N], row_N.astype(np.int32), loss_NT[row_N])


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
