"""Extensions of a run, as the terminal and the report show them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from s2l_ray.artifacts import extensions
from s2l_ray.artifacts.extensions import Extension
from s2l_ray.artifacts.manifest import read_manifest, subset_file
from s2l_ray.clusters import extension_drift
from s2l_ray.clusters.declaration import CLUSTERS
from s2l_ray.data.declaration import PREPARE
from s2l_ray.errors import DataError
from s2l_ray.selection.declaration import SELECTION
from s2l_ray.storage.location import Location


@dataclass(frozen=True)
class OldAndNew:
    """A quantile of the distances to the nearest centroid, of old rows and of new rows."""

    old: float
    new: float


@dataclass(frozen=True)
class ExtensionLine:
    """One extension as a line of the report; None stands for a number that is not known."""

    name: str
    num_new: int
    num_in_pool: int
    """Rows that the pool already held, and that were left out."""
    num_rejected: int
    num_clusters_used: int | None = None
    """Clusters that hold new rows; if the centroids were updated, clusters that hold any rows."""
    num_clusters: int | None = None
    updated: bool = False
    """True if the centroids were updated, and all rows assigned to them again."""
    median_distance: OldAndNew | None = None
    p95_distance: OldAndNew | None = None
    share_beyond_p95: float | None = None
    """Share of new rows beyond the 95th percentile of the old rows of their stratum."""
    reclustering: str = ""
    """The verdict on re-clustering; empty if no row could be judged."""


@dataclass(frozen=True)
class ExtensionsView:
    """All extensions in their order, how well the newest rows fit, and what prevents their use."""

    lines: Sequence[ExtensionLine]
    fit: str = ""
    problem: str = ""
    """The reason why the extensions cannot be used; empty if they can."""
    unit: str = "nats"
    """The unit of distances."""


def subset_files(run: Location) -> list[Location]:
    """Return the files of the subset of the extended pool; empty if the run has no selection."""
    used = [item for item in extensions.list_prepared(run) if not item.is_empty]
    if not used or used[-1].summary(SELECTION.folder) is None:
        return []
    files = [subset_file(used[-1].location, suffix) for suffix in ("jsonl", "parquet")]
    return [file for file in files if file.is_file()]


def summary_lines(extension: Extension) -> list[tuple[str, str]]:
    """Return what the terminal says of an extension: a title and a text for each line."""
    prepared, placed = extension.summary(PREPARE.folder), extension.summary(CLUSTERS.folder)
    assert prepared is not None
    rejected = sum(prepared["rejected"].values())
    counts = f"{prepared['kept']:,} of {prepared['rows']:,}"
    in_pool = f"{prepared['known']:,} already in the pool"
    lines = [("new rows", f"{counts}; {in_pool}, {rejected:,} rejected")]
    if placed is None:
        return lines
    num_used = sum(1 for size in placed["size_of_cluster"] if size)
    num_new = sum(placed["new_strata"].values())
    old_rows = "with all old rows, " if extension.has_moved else ""
    clusters = f"{num_used:,} of {placed['num_clusters']:,} clusters, {num_new:,} new"
    lines.append(("placed", f"{old_rows}in {clusters}"))
    fit = placed["fit"]
    if "median_distance" in fit:
        median, p95 = fit["median_distance"], fit["p95_distance"]
        lines.append(
            (
                "distance",
                f"median {median['new']:.3g} {fit['unit']} (old rows {median['old']:.3g}), "
                f"95th percentile {p95['new']:.3g} ({p95['old']:.3g})",
            )
        )
    return [*lines, ("fit", extension_drift.sentence(fit))]


def extensions_view(run: Location) -> ExtensionsView | None:
    """Return the extensions of a clustered run whose rows are prepared; None if there are none."""
    prepared = extensions.list_prepared(run)
    if not prepared:
        return None
    used = [item for item in prepared if not item.is_empty]
    placed = used[-1].summary(CLUSTERS.folder) if used else None
    fits = [summary["fit"] for item in used if (summary := item.summary(CLUSTERS.folder))]
    return ExtensionsView(
        [_line(item) for item in prepared],
        fit=extension_drift.sentence(placed["fit"]) if placed else "",
        unit=next((fit["unit"] for fit in fits if "unit" in fit), "nats"),
        problem=_problem(run),
    )


def _problem(run: Location) -> str:
    """Return the reason why the extensions cannot be used as they are; empty if they can."""
    if read_manifest(run / CLUSTERS.folder) is None:
        return ""
    try:
        extensions.extended_pool(run)
    except DataError as error:
        return str(error)
    return ""


def _line(item: Extension) -> ExtensionLine:
    prepared, placed = item.summary(PREPARE.folder), item.summary(CLUSTERS.folder)
    assert prepared is not None, "of_run returns prepared extensions only"
    counts = {
        "num_new": prepared["kept"],
        "num_in_pool": prepared["known"],
        "num_rejected": sum(prepared["rejected"].values()),
    }
    if placed is None:
        return ExtensionLine(item.name, **counts)
    fit = placed["fit"]
    return ExtensionLine(
        item.name,
        **counts,
        num_clusters_used=sum(1 for size in placed["size_of_cluster"] if size),
        num_clusters=placed["num_clusters"],
        updated=item.has_moved,
        **(_judgement(fit) if fit["rows"] else {}),
    )


def _judgement(fit: dict[str, Any]) -> dict[str, Any]:
    names = [name for name in ("median_distance", "p95_distance") if name in fit]
    return {
        **{name: OldAndNew(**fit[name]) for name in names},
        "share_beyond_p95": fit["share_beyond_p95"]["new"],
        "reclustering": extension_drift.verdict(fit),
    }
