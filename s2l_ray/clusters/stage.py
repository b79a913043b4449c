"""Stage 4: k-means on loss trajectories, inside each stratum or over the whole pool.

Actors hold the trajectories of their parts in memory and return integer sums. The driver holds
centroids only. Integer sums add up to the same value in any order, and the rows of a sample or a
mini-batch are chosen by hashes of their ids. So centroids are bit-identical under any number of
actors.

Shape letters: T checkpoints, K clusters of one stratum, or of all.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

import numpy as np

from s2l_ray.artifacts.manifest import CENTROIDS, StageDir
from s2l_ray.artifacts.tables import Parts
from s2l_ray.clusters import found_strata, kmeans, minibatch, num_clusters
from s2l_ray.clusters.fleet import Fleet
from s2l_ray.clusters.found_strata import StrataWorker
from s2l_ray.clusters.minibatch import Centroids, KMeansResult, Limits, Sums
from s2l_ray.clusters.num_clusters import Trials
from s2l_ray.clusters.scaling import Moments
from s2l_ray.clusters.worker import ClusterWorker, MomentsWorker, Scales
from s2l_ray.config.clusters import ClustersConfig
from s2l_ray.distributed import resources
from s2l_ray.distributed.threads import start_fleet
from s2l_ray.errors import DataError
from s2l_ray.progress import Progress
from s2l_ray.storage.location import Location
from s2l_ray.trajectories.footers import loss_bytes


@dataclass(frozen=True)
class StoredClusters:
    """Clusters that exist already, in the order of their numbers; they keep these numbers.

    Trajectories of their strata are assigned to the nearest of them. Other strata are clustered by
    themselves, and their clusters get the numbers that follow.

    Attributes:
        centroids: by stratum.
        scales: by stratum, what its trajectories are standardised by.
        rows_fitted: by stratum, how many rows the centroids were fitted to, if they are to be moved
            to fit all rows. A centroid that is left without rows then stays where it was. None if
            the centroids stay as they are.
        strata_GH: centroids of found strata, float32 (G, H); None finds new ones where asked for.
    """

    centroids: Centroids = field(default_factory=dict)
    scales: Scales = field(default_factory=dict)
    rows_fitted: Mapping[str, int] | None = None
    strata_GH: np.ndarray | None = None


NO_CLUSTERS = StoredClusters()


def run(
    config: ClustersConfig,
    trajectories: Parts,
    out: StageDir,
    *,
    seed: int,
    progress: Progress,
    stored: StoredClusters = NO_CLUSTERS,
) -> dict[str, Any]:
    """Cluster every trajectory.

    Reads   trajectories part-*     example_id, stratum: string, loss_nats: float32[T]
    Writes  part-*.parquet          example_id, stratum: string, cluster: int32, sqdist: float32
            _centroids.npy          float32 (K, T), strata in the order of names
            _strata.npy             with `strata: auto`, unless they are stored: float32 (G, H)
    Raises  DataError when there is no trajectory, or one is not finite, or embeddings are missing.

    Centroids are in the space that rows are compared in: nats per token, or the unit of `scaling`.
    Distances and the inertia are in the square of that unit. The scales of standardised
    trajectories are `scales` in the summary.
    """
    files, scales, strata = trajectories.files(), Scales(), None
    wanted = _workers(config, trajectories, out)
    # Workers end before the next ones start: no name here holds them longer than they are needed.
    if config.strata == "auto":
        vectors = found_strata.embedding_files(trajectories)
        strata = found_strata.find(
            start_fleet(StrataWorker, files, wanted, vectors, seed),
            config,
            out.location,
            stored.strata_GH,
            progress=progress,
        )
    found, of_strata = strata or (None, {})
    if config.scaling == "standardised":
        scales = scales_of(start_fleet(MomentsWorker, files, wanted, config, found))
        scales |= stored.scales
    fleet = start_fleet(ClusterWorker, files, wanted, config, seed, scales, found)
    summary = cluster(fleet, config, out.location, progress=progress, stored=stored)
    if not summary["rows"]:
        raise DataError(f"clusters: there are no trajectories in {trajectories.folder}.")
    if found is not None and stored.strata_GH is None:
        summary = found_strata.told(summary, found, of_strata, out.location)
    as_json = {name: scale.as_json() for name, scale in sorted(scales.items())}
    return {**summary, "scales": as_json} if scales else summary


def _workers(config: ClustersConfig, trajectories: Parts, out: StageDir) -> resources.Workers:
    """Return threads of this process where the trajectories fit it, and actors where not."""
    if resources.fits_here(lambda: loss_bytes(trajectories.stored())):
        return resources.threads(out.stage, advice=out.advice_on_memory)
    return resources.workers(out.stage, config.workers, cpus=1, gpus=0, advice=out.advice_on_memory)


def scales_of(fleet: Fleet) -> Scales:
    """Return the scale of every stratum; of all rows, named "", if they are clustered together."""
    merged: dict[str, Moments] = {}
    for of_worker in fleet.call_all("moments"):
        for name, moments in of_worker.items():
            merged[name] = merged[name].merge(moments) if name in merged else moments
    return {name: moments.scale() for name, moments in merged.items() if moments.count}


def cluster(
    fleet: Fleet,
    config: ClustersConfig,
    folder: Location,
    *,
    progress: Progress,
    stored: StoredClusters = NO_CLUSTERS,
) -> dict[str, Any]:
    """Cluster the rows that the workers of `fleet` hold, write `folder`, and return the summary."""
    progress.doing("reading the trajectories")
    rows_by_stratum = sum(fleet.call_all("row_counts"), Counter[str]())
    num_rows = rows_by_stratum.total()
    if not num_rows:
        return {"rows": 0}
    result, trials = KMeansResult(dict(stored.centroids), 0, True), dict[str, Trials]()
    moves = stored.rows_fitted is not None
    if stored.rows_fitted is not None:
        limits = Limits(config.lloyd_sweeps, config.tolerance, keep_empty=True)
        result = _sweep(
            fleet, result.centroids, stored.rows_fitted, rows_by_stratum, limits, progress
        )
    new = {name: count for name, count in rows_by_stratum.items() if name not in result.centroids}
    if new:
        fit = _fit_samples if config.method == "authors" else _fit_all
        fitted, trials = fit(fleet, new, config, progress)
        result = KMeansResult(
            result.centroids | fitted.centroids,
            max(result.sweeps, fitted.sweeps),
            result.converged and fitted.converged,
        )
    centroids = result.centroids
    # Rows that were assigned to stored clusters are no evidence for the quality of these.
    progress.doing("measuring silhouette and stability")
    quality = _quality(fleet, rows_by_stratum if moves else new, centroids)
    progress.doing("assigning rows to clusters")
    sizes_K, inertia = _assign(fleet, centroids, _first_numbers(centroids), folder)
    progress.update(1)
    _write_centroids(centroids, folder)
    notes = [
        *([num_clusters.sentence(trials)] if trials else []),
        *_notes_on_sizes(config, new, sizes_K),
        *quality.pop("notes", []),
    ]
    return {
        "rows": num_rows,
        "num_clusters": len(sizes_K),
        "stratum_of_cluster": [name for name in centroids for _ in centroids[name]],
        "size_of_cluster": sizes_K.tolist(),
        "inertia": inertia,
        "lloyd_sweeps": result.sweeps,
        "converged": result.converged,
        **quality,
        "shrunk_strata": _shrunk(centroids, config, trials),
        **({"scaling": config.scaling} if config.scaling != "raw" else {}),
        **({"tried": {name: each.as_json() for name, each in trials.items()}} if trials else {}),
        **({"notes": notes} if notes else {}),
    }


def _fit_samples(
    fleet: Fleet, rows_by_stratum: Mapping[str, int], config: ClustersConfig, progress: Progress
) -> tuple[KMeansResult, dict[str, Trials]]:
    """Fit the centroids of each stratum to its sample alone, as the authors do."""
    progress.start(config.lloyd_sweeps + 1, "sweeps")
    fits = fleet.shuffle(sorted(rows_by_stratum), "samples", "fitted_to_sample", {})
    progress.update(config.lloyd_sweeps)
    centroids = {name: centroid_KT for name, (centroid_KT, _, _) in fits.items()}
    sweeps = max(sweeps for _, sweeps, _ in fits.values())
    return KMeansResult(centroids, sweeps, all(at_rest for _, _, at_rest in fits.values())), {}


def _fit_all(
    fleet: Fleet, rows_by_stratum: Mapping[str, int], config: ClustersConfig, progress: Progress
) -> tuple[KMeansResult, dict[str, Trials]]:
    """Fit centroids to all rows: a k-means++ start on samples, then sweeps.

    Returns:
        the centroids; and by stratum the numbers of clusters that were tried, if the number is
        left open.
    """
    names = sorted(rows_by_stratum)
    num_checkpoints = max(fleet.call_all("num_checkpoints"))
    centres = minibatch.centres(partial(_merged, fleet), names, num_checkpoints)
    wanted = {name: config.clusters_of(rows_by_stratum[name]) for name in names}
    progress.doing("choosing the first centroids")
    starts = fleet.shuffle(names, "samples_for_start", "starts", centres, wanted)
    start = {name: centroid_KT for name, (centroid_KT, _) in starts.items()}
    rows_in_start = dict.fromkeys(names, config.sample_size)
    limits = Limits(config.lloyd_sweeps, config.tolerance)
    result = _sweep(fleet, start, rows_in_start, rows_by_stratum, limits, progress)
    return result, {name: trials for name, (_, trials) in starts.items() if trials is not None}


def _sweep(
    fleet: Fleet,
    start: Centroids,
    rows_in_start: Mapping[str, int],
    rows_by_stratum: Mapping[str, int],
    limits: Limits,
    progress: Progress,
) -> KMeansResult:
    """Fit centroids by mini-batches that grow, and full sweeps at the end."""
    progress.start(limits.max_sweeps + 1, "sweeps")
    result = minibatch.fit(
        start,
        rows_by_stratum,
        partial(_merged, fleet),
        rows_in_start=rows_in_start,
        limits=limits,
        on_full_sweep=lambda: progress.update(1),
    )
    progress.update(limits.max_sweeps - result.sweeps)
    return result


def _quality(
    fleet: Fleet, rows_by_stratum: Mapping[str, int], centroids: Centroids
) -> dict[str, Any]:
    """Return the silhouette, and the agreement with a clustering from another seed.

    Both are means over the strata with at least two clusters, weighted by their rows. The result is
    empty if there is none.
    """
    names = [name for name in sorted(rows_by_stratum) if len(centroids[name]) > 1]
    by_name = fleet.shuffle(names, "uniform_samples", "qualities", centroids) if names else {}
    pairs = {name: pair for name, pair in by_name.items() if pair is not None}
    if not pairs:
        return {}
    weights = [rows_by_stratum[name] for name in pairs]
    silhouette, stability = np.average(list(pairs.values()), axis=0, weights=weights).tolist()
    note = (
        f"silhouette {silhouette:.2f}; from another seed, pairs of rows agree to {stability:.2f} "
        "(adjusted Rand index)"
    )
    return {"silhouette": silhouette, "stability": stability, "notes": [note]}


def _assign(
    fleet: Fleet, centroids: Centroids, numbers: Mapping[str, int], folder: Location
) -> tuple[np.ndarray, float]:
    """Write the labels of every part; return the sizes of all clusters, and the inertia."""
    totals = fleet.call_all("assign", centroids, dict(numbers), folder)
    size_K = np.sum([size for size, _ in totals], axis=0)
    # Summed in the order of the parts, so that the last bits do not depend on the workers.
    inertia_by_part = sorted(item for _, parts in totals for item in parts.items())
    return size_K, float(sum(inertia for _, inertia in inertia_by_part))


def _first_numbers(centroids: Centroids) -> dict[str, int]:
    """Return the number of the first cluster of each stratum, numbered through all strata."""
    counts = [len(centroid_KT) for centroid_KT in centroids.values()]
    starts = np.concatenate([[0], np.cumsum(counts)])
    return {name: int(start) for name, start in zip(centroids, starts, strict=False)}


def _write_centroids(centroids: Centroids, folder: Location) -> None:
    (folder / CENTROIDS).write_npy(np.concatenate(list(centroids.values())).astype(np.float32))


def _shrunk(
    centroids: Centroids, config: ClustersConfig, trials: Mapping[str, Trials]
) -> dict[str, int]:
    """Return the strata with fewer clusters than asked for, and how many clusters they have.

    There are fewer if too few rows of the sample differ, or if clusters were left without rows.
    """
    counts = {name: len(centroid_KT) for name, centroid_KT in centroids.items()}
    if config.num_clusters == "auto":
        return {name: counts[name] for name in trials if counts[name] < trials[name].chosen}
    return {name: count for name, count in counts.items() if count < config.num_clusters}


def _notes_on_sizes(
    config: ClustersConfig, rows_by_stratum: Mapping[str, int], size_K: np.ndarray
) -> list[str]:
    """Say where there are fewer clusters than asked for, and whether most hold one row."""
    notes, number = [], config.num_clusters
    capped = [
        wanted
        for rows in rows_by_stratum.values()
        if isinstance(wanted := config.clusters_of(rows), int) and wanted != number
    ]
    if capped:
        where = f" in {len(capped):,} of {len(rows_by_stratum):,} strata"
        few, most = min(capped), max(capped)
        notes.append(
            f"{few:,}{f' to {most:,}' if few < most else ''} "
            f"cluster{'' if most == 1 else 's'} instead of {number:,}"
            f"{where if len(rows_by_stratum) > 1 else ''}: one for every {config.rows_per_cluster} "
            "rows (clusters.rows_per_cluster)"
        )
    alone = int((size_K == 1).sum())
    if 2 * alone > len(size_K) > 1:
        notes.append(
            f"{alone:,} of {len(size_K):,} clusters hold a single row, so they say nothing about "
            "which rows are alike: lower clusters.num_clusters"
        )
    return notes


def _merged(fleet: Fleet, centroids: Centroids, shares: Mapping[str, float]) -> Sums:
    """Return the sums over the rows of all workers, by stratum."""
    merged: dict[str, list[kmeans.ClusterSums]] = {}
    for of_worker in fleet.call_all("sums", centroids, dict(shares)):
        for name, sums in of_worker.items():
            merged.setdefault(name, []).append(sums)
    return {name: reduce(kmeans.ClusterSums.merge, merged[name]) for name in sorted(merged)}
