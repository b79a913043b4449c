"""Assignment of an extension's rows to clusters, existing ones or ones that all rows move."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from s2l_ray.artifacts import extensions
from s2l_ray.artifacts.extensions import CLUSTERED, SCORED, BaseRun, Extension
from s2l_ray.artifacts.manifest import STRATA, StageDir, centroids_file
from s2l_ray.artifacts.tables import Parts
from s2l_ray.clusters import extension_drift
from s2l_ray.clusters.scaling import UNIT, Scale
from s2l_ray.errors import first
from s2l_ray.progress import Progress
from s2l_ray.storage.location import Location


def place(
    base: BaseRun, chain: Sequence[Extension], out: StageDir, progress: Progress, *, moves: bool
) -> dict[str, Any]:
    """Assign the rows of the last extension to the clusters of the run and of earlier extensions.

    Args:
        chain: the extensions up to this one, in order.
        moves: True if the centroids move to fit all rows; then all earlier rows are assigned anew.
    """
    from s2l_ray.clusters import stage as clusters

    section, before, extension = base.config.clusters, chain[:-1], chain[-1]
    assert section is not None
    folder, known, fitted = latest_centroids(base, before)
    stored = stored_centroids(folder, known["stratum_of_cluster"])
    scales = {name: Scale.of_json(value) for name, value in known.get("scales", {}).items()}
    rows_fitted = extension_drift.rows_fitted_by_stratum(fitted, known["stratum_of_cluster"])
    strata_GH = None
    if section.strata == "auto":
        strata_GH = (base.run / CLUSTERED / STRATA).read_npy()
    old, pool = extensions.pool(base.run, list(before)), extensions.pool(base.run, list(chain))
    summary = clusters.run(
        section,
        pool.trajectories if moves else Parts(extension.folder(SCORED)),
        out,
        seed=base.config.seed,
        progress=progress,
        stored=clusters.StoredClusters(stored, scales, rows_fitted if moves else None, strata_GH),
    )
    strata, num_known = summary["stratum_of_cluster"], known["num_clusters"]
    unseen, unit = Counter(strata[num_known:]), UNIT[section.scaling]
    files, notes = Parts(out.location).files(), list(summary.get("notes", []))
    if moves:
        num_old = len(old.trajectories.files())
        sizes = summary["size_of_cluster"]
        fitted = [extension_drift.FittedRows(files[:num_old], sizes, range(num_known))]
        notes.append(
            movement_note(old.clusters.files(), files[:num_old], stored, out.location, unit)
        )
        files = files[num_old:]
    if unseen:
        notes.append(
            f"new strata: {len(unseen):,} (first: {first(list(unseen))}), each clustered by "
            f"itself; {unseen.total():,} new clusters in all"
        )
    fit = extension_drift.measure(fitted, files, strata, moved=moves)
    return {
        **summary,
        "new_strata": dict(unseen),
        "fit": {**fit, "unit": unit},
        "notes": notes,
    }


def latest_centroids(
    base: BaseRun, before: Sequence[Extension]
) -> tuple[Location, Mapping[str, Any], list[extension_drift.FittedRows]]:
    """Return the folder of the newest centroids, its summary, and the rows they were fitted to."""
    folder, known = base.run / CLUSTERED, base.summary(CLUSTERED)
    fitted = [_fitted(folder, known, 0)]
    for earlier in before:
        start, folder = known["num_clusters"], earlier.folder(CLUSTERED)
        known = earlier.summary(CLUSTERED) or {}
        if earlier.has_moved:
            fitted, start = [], 0
        fitted.append(_fitted(folder, known, start))
    return folder, known, fitted


def _fitted(folder: Location, summary: Mapping[str, Any], start: int) -> extension_drift.FittedRows:
    numbers = range(start, summary["num_clusters"])
    return extension_drift.FittedRows(Parts(folder).files(), summary["size_of_cluster"], numbers)


def movement_note(
    before: Sequence[Location],
    after: Sequence[Location],
    stored: Mapping[str, np.ndarray],
    folder: Location,
    unit: str = "nats",
) -> str:
    """Return a note on how far centroids moved and how many old rows changed their cluster."""
    before_KT = np.concatenate(list(stored.values())).astype(np.float64)
    after_KT = centroids_file(folder).read_npy()[: len(before_KT)]
    move_K = np.sqrt(((after_KT - before_KT) ** 2).sum(axis=1))
    rows = changed = 0
    for old, new in zip(before, after, strict=True):
        cluster_N, other_N = (file.read_table(["cluster"])["cluster"] for file in (old, new))
        rows += len(cluster_N)
        changed += int((cluster_N.to_numpy() != other_N.to_numpy()).sum())
    return (
        f"centroids moved by {np.median(move_K):.3g} {unit} (median; {move_K.max():.3g} at most); "
        f"{changed:,} of {rows:,} old rows changed their cluster"
    )


def stored_centroids(folder: Location, stratum_of_cluster: Sequence[str]) -> dict[str, np.ndarray]:
    """Return centroids by stratum, in the order of their numbers."""
    centroid_KT = centroids_file(folder).read_npy()
    stored, start = {}, 0
    for name, numbers in itertools.groupby(stratum_of_cluster):
        count = len(list(numbers))
        stored[name] = centroid_KT[start : start + count]
        start += count
    return stored
