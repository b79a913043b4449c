"""What came of extensions: their subset, and what a terminal and the report say of them."""

from typing import Any

from s2l_ray.artifacts import extensions
from s2l_ray.artifacts.extensions import Extension
from s2l_ray.artifacts.manifest import read_manifest, subset_file
from s2l_ray.clusters import extension_drift
from s2l_ray.clusters.declaration import CLUSTERS
from s2l_ray.data.declaration import PREPARE
from s2l_ray.errors import DataError
from s2l_ray.report.extensions import ExtensionLine, ExtensionsView, OldAndNew
from s2l_ray.selection.declaration import SELECTION
from s2l_ray.storage.location import Location


def selected(run: Location) -> list[Location]:
    """The subset of the whole pool, where the run's configuration asks for one."""
    chain = [item for item in extensions.of_run(run) if not item.is_empty]
    if not chain or chain[-1].summary(SELECTION.folder) is None:
        return []
    places = [subset_file(chain[-1].location, suffix) for suffix in ("jsonl", "parquet")]
    return [place for place in places if place.exists()]


def summary_lines(extension: Extension) -> list[tuple[str, str]]:
    """What came of the given rows, each line with its name."""
    prepared, placed = extension.summary(PREPARE.folder), extension.summary(CLUSTERS.folder)
    assert prepared is not None
    rejected = sum(prepared["rejected"].values())
    counts = f"{prepared['kept']:,} of {prepared['rows']:,}; {prepared['known']:,} were known"
    lines = [("new rows", f"{counts}, {rejected:,} rejected")]
    if placed is None:
        return lines
    taken = sum(1 for size in placed["size_of_cluster"] if size)
    unseen = sum(placed["new_strata"].values())
    where = "with all old rows, " if extension.has_moved else ""
    of = f"{taken:,} of {placed['num_clusters']:,} clusters, {unseen:,} new"
    lines.append(("placed", f"{where}in {of}"))
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
    """All extensions of a clustered run whose rows are prepared; None where there are none."""
    found = extensions.of_run(run)
    if not found:
        return None
    used = [item for item in found if not item.is_empty]
    placed = used[-1].summary(CLUSTERS.folder) if used else None
    fits = [summary["fit"] for item in used if (summary := item.summary(CLUSTERS.folder))]
    return ExtensionsView(
        [_line(item) for item in found],
        fit=extension_drift.sentence(placed["fit"]) if placed else "",
        unit=next((fit["unit"] for fit in fits if "unit" in fit), "nats"),
        hindrance=_hindrance(run),
    )


def _hindrance(run: Location) -> str:
    """Why the extensions cannot be used as they are; empty where they can."""
    if read_manifest(run / CLUSTERS.folder) is None:
        return ""
    try:
        extensions.extended_pool(run)
    except DataError as error:
        return str(error)
    return ""


def _line(item: Extension) -> ExtensionLine:
    prepared, placed = item.summary(PREPARE.folder), item.summary(CLUSTERS.folder)
    assert prepared is not None, "of_run has looked"
    rejected = sum(prepared["rejected"].values())
    counts = {"num_new": prepared["kept"], "num_known": prepared["known"], "num_rejected": rejected}
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
