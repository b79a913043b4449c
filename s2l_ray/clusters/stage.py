"""Stage 4: trajectories are grouped by k-means, inside each stratum or over all.

Actors keep the trajectories of their parts in memory and return integer sums; the driver holds
centroids only. Integer sums add up to the same value in any order, and the rows of a sample or a
mini-batch are chosen by hashes of their ids, so centroids are bit-identical under any number of
actors.

Shapes: T checkpoints, K clusters of one stratum, or of all.
"""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import Any, Protocol

import numpy as np

from s2l_ray.artifacts.manifest import CENTROIDS, Parts, StageDir
from s2l_ray.clusters import kmeans, minibatch, num_clusters
from s2l_ray.clusters.minibatch import Centroids, Fit, Sums
from s2l_ray.clusters.num_clusters import Tried
from s2l_ray.clusters.scaling import Moments
from s2l_ray.clusters.worker import ClusterWorker, MomentsWorker, Scales
from s2l_ray.config.sections import ClustersConfig
from s2l_ray.distributed import resources
from s2l_ray.distributed.fleet import RayFleet
from s2l_ray.errors import DataError
from s2l_ray.progress import Progress
from s2l_ray.storage.location import Location

ADVICE_ON_MEMORY = "Raise clusters.workers, on a cluster with more machines, or use larger ones."


def run(
    config: ClustersConfig,
    trajectories: Parts,
    out: StageDir,
    *,
    seed: int,
    progress: Progress,
    stored: Centroids | None = None,
    stored_scales: Scales | None = None,
    moving: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Cluster every trajectory.

    Args:
        stored: centroids that keep their numbers, strata in the order of these. Trajectories of
            these strata are placed; strata that are not among them are clustered by themselves,
            and their clusters get the numbers that follow.
        stored_scales: what the trajectories of stored strata are standardised by.
        moving: how many rows of each of these strata the stored centroids were fitted to. They are
            moved to fit all rows, and one that is left without any stays where it was then;
            None: they stay as they are.

    Reads   trajectories part-*     example_id, stratum: string, loss_nats: float32[T]
    Writes  part-*.parquet          example_id, stratum: string, cluster: int32, sqdist: float32
            _centroids.npy          float32 (K, T), strata in the order of names
    Raises  DataError when there is no trajectory, or one is not finite.

    Centroids, distances and the inertia are in the space that rows are compared in: nats per token
    (squared), or as `scaling` makes it. What it made it by is `scales` in the summary.
    """
    wanted = resources.workers("clusters", config.workers, cpus=1, gpus=0, advice=ADVICE_ON_MEMORY)
    files, scales = trajectories.files(), Scales()
    if config.scaling == "standardised":
        # These workers are gone, and what they took is free, before the others read the same rows.
        scales = scales_of(RayFleet.start(MomentsWorker, files, wanted, config, seed))
        scales |= stored_scales or {}
    fleet = RayFleet.start(ClusterWorker, files, wanted, config, seed, scales)
    summary = cluster(fleet, config, out.location, progress=progress, stored=stored, moving=moving)
    if not summary["rows"]:
        raise DataError(f"clusters: there are no trajectories in {trajectories.folder}.")
    told = {name: scale.as_json() for name, scale in sorted(scales.items())}
    return {**summary, "scales": told} if scales else summary


def scales_of(fleet: "Fleet") -> Scales:
    """What every stratum is standardised by, or all rows where they are clustered together."""
    merged: dict[str, Moments] = {}
    for of_worker in fleet.call_all("moments"):
        for name, moments in of_worker.items():
            merged[name] = merged[name].merge(moments) if name in merged else moments
    return {name: moments.scale() for name, moments in merged.items() if moments.count}


def cluster(
    fleet: "Fleet",
    config: ClustersConfig,
    folder: Location,
    *,
    progress: Progress,
    stored: Centroids | None = None,
    moving: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Cluster what the workers of `fleet` hold, write it to `folder`; the summary of it."""
    rows_by_stratum = sum(fleet.call_all("row_counts"), Counter[str]())
    num_rows = rows_by_stratum.total()
    if not num_rows:
        return {"rows": 0}
    fit = _fit_samples if config.method == "authors" else _fit_all
    found, tried = Fit(dict(stored or {}), 0, True), dict[str, Tried]()
    if moving is not None:
        found = _swept(
            fleet, found.centroids, moving, rows_by_stratum, config, progress, keep_empty=True
        )
    unseen = {name: count for name, count in rows_by_stratum.items() if name not in found.centroids}
    if unseen:
        fitted, tried = fit(fleet, unseen, config, progress)
        found = Fit(
            found.centroids | fitted.centroids,
            max(found.sweeps, fitted.sweeps),
            found.converged and fitted.converged,
        )
    centroids = found.centroids
    # Rows that were placed say nothing of clusters that others made.
    quality = _judged(fleet, unseen if moving is None else rows_by_stratum, centroids)
    numbers = _first_numbers(centroids)
    sizes_K, inertia = _assign(fleet, centroids, numbers, folder)
    progress.update(1)
    _write_centroids(centroids, folder)
    notes = [*([num_clusters.sentence(tried)] if tried else []), *quality.pop("notes", [])]
    return {
        "rows": num_rows,
        "num_clusters": len(sizes_K),
        "stratum_of_cluster": [name for name in centroids for _ in centroids[name]],
        "size_of_cluster": sizes_K.tolist(),
        "inertia": inertia,
        "lloyd_sweeps": found.sweeps,
        "converged": found.converged,
        **quality,
        "shrunk_strata": _shrunk(centroids, config, tried),
        **({"scaling": config.scaling} if config.scaling != "raw" else {}),
        **({"tried": {name: each.as_json() for name, each in tried.items()}} if tried else {}),
        **({"notes": notes} if notes else {}),
    }


def _fit_samples(
    fleet: "Fleet", rows_by_stratum: Mapping[str, int], config: ClustersConfig, progress: Progress
) -> tuple[Fit, dict[str, Tried]]:
    """The authors' k-means: each stratum's centroids are fitted to its sample alone."""
    progress.start(config.lloyd_sweeps + 1, "sweeps")
    fits = fleet.shuffle(sorted(rows_by_stratum), "samples", "fitted_to_sample", {})
    progress.update(config.lloyd_sweeps)
    centroids = {name: centroid_KT for name, (centroid_KT, _, _) in fits.items()}
    sweeps = max(sweeps for _, sweeps, _ in fits.values())
    return Fit(centroids, sweeps, all(at_rest for _, _, at_rest in fits.values())), {}


def _fit_all(
    fleet: "Fleet", rows_by_stratum: Mapping[str, int], config: ClustersConfig, progress: Progress
) -> tuple[Fit, dict[str, Tried]]:
    """A k-means++ start on samples, then mini-batches that grow, and full sweeps at the end.

    Where the number of clusters is left open, also what was tried on the sample of each stratum.
    """
    names = sorted(rows_by_stratum)
    num_checkpoints = max(fleet.call_all("num_checkpoints"))
    centres = minibatch.centres(partial(_merged, fleet), names, num_checkpoints)
    starts = fleet.shuffle(names, "samples", "started", centres)
    start = {name: centroid_KT for name, (centroid_KT, _) in starts.items()}
    rows_in_start = dict.fromkeys(names, config.sample_size)
    found = _swept(fleet, start, rows_in_start, rows_by_stratum, config, progress)
    return found, {name: tried for name, (_, tried) in starts.items() if tried is not None}


def _swept(
    fleet: "Fleet",
    start: Centroids,
    rows_in_start: Mapping[str, int],
    rows_by_stratum: Mapping[str, int],
    config: ClustersConfig,
    progress: Progress,
    *,
    keep_empty: bool = False,
) -> Fit:
    """Centroids after mini-batches that grow, and full sweeps at the end."""
    progress.start(config.lloyd_sweeps + 1, "sweeps")
    found = minibatch.fit(
        start,
        rows_by_stratum,
        partial(_merged, fleet),
        rows_in_start=rows_in_start,
        max_sweeps=config.lloyd_sweeps,
        tolerance=config.tolerance,
        keep_empty=keep_empty,
        on_full_sweep=lambda: progress.update(1),
    )
    progress.update(config.lloyd_sweeps - found.sweeps)
    return found


def _judged(
    fleet: "Fleet", rows_by_stratum: Mapping[str, int], centroids: Centroids
) -> dict[str, Any]:
    """How well clusters are apart, and how many pairs of rows another seed puts alike.

    Means over the strata that have clusters to tell apart, weighted by their rows.
    """
    names = [name for name in sorted(rows_by_stratum) if len(centroids[name]) > 1]
    judged = fleet.shuffle(names, "samples_to_judge", "judged", centroids) if names else {}
    found = {name: pair for name, pair in judged.items() if pair is not None}
    if not found:
        return {}
    weights = [rows_by_stratum[name] for name in found]
    silhouette, stability = np.average(list(found.values()), axis=0, weights=weights).tolist()
    note = (
        f"silhouette {silhouette:.2f}; from another seed, pairs of rows agree to {stability:.2f} "
        "(adjusted Rand index)"
    )
    return {"silhouette": silhouette, "stability": stability, "notes": [note]}


def _assign(
    fleet: "Fleet", centroids: Centroids, numbers: Mapping[str, int], folder: Location
) -> tuple[np.ndarray, float]:
    """Write every part's labels; sizes of all clusters, and the inertia."""
    totals = fleet.call_all("assign", centroids, dict(numbers), folder)
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
    (folder / CENTROIDS).write_bytes(buffer.getvalue())


def _shrunk(
    centroids: Centroids, config: ClustersConfig, tried: Mapping[str, Tried]
) -> dict[str, int]:
    """Strata with fewer clusters than asked for, with how many: too few rows of the sample differ,
    or clusters were left without rows.
    """
    counts = {name: len(centroid_KT) for name, centroid_KT in centroids.items()}
    if config.num_clusters == "auto":
        return {name: counts[name] for name in tried if counts[name] < tried[name].chosen}
    return {name: count for name, count in counts.items() if count < config.num_clusters}


def _merged(fleet: "Fleet", centroids: Centroids, shares: Mapping[str, float]) -> Sums:
    """Sums of all workers, added by stratum."""
    merged: dict[str, list[kmeans.ClusterSums]] = {}
    for of_worker in fleet.call_all("sums", centroids, dict(shares)):
        for name, sums in of_worker.items():
            merged.setdefault(name, []).append(sums)
    return {name: reduce(kmeans.ClusterSums.merge, merged[name]) for name in sorted(merged)}


class Fleet(Protocol):
    """Cluster workers, each with its share of the parts."""

    def call_all(self, method: str, *arguments: Any) -> list[Any]:
        """Return what `method` returns on every worker."""

    def shuffle(
        self, names: Sequence[str], mapper: str, reducer: str, *arguments: Any
    ) -> dict[str, Any]:
        """Map on all workers, and reduce each name on one of them."""
