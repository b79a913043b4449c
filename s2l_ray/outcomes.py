"""What came of extensions: their subset, and lines that say it in a terminal."""

from s2l_ray import drift, extensions
from s2l_ray.extensions import Extension
from s2l_ray.storage import Location


def selected(run: Location) -> list[Location]:
    """The subset of the whole pool, where the run's configuration asks for one."""
    chain = [item for item in extensions.of_run(run) if not item.is_empty]
    if not chain or chain[-1].summary("selection") is None:
        return []
    places = [chain[-1].folder("selection") / f"selected.{kind}" for kind in ("jsonl", "parquet")]
    return [place for place in places if place.exists()]


def summary_lines(extension: Extension) -> list[tuple[str, str]]:
    """What came of the given rows, each line with its name."""
    prepared, placed = extension.summary("prepare"), extension.summary("clusters")
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
    if fit["rows"]:
        median, p95 = fit["median_distance_nats"], fit["p95_distance_nats"]
        lines.append(
            (
                "distance",
                f"median {median['new']:.3g} nats (old rows {median['old']:.3g}), "
                f"95th percentile {p95['new']:.3g} ({p95['old']:.3g})",
            )
        )
    return [*lines, ("fit", drift.sentence(fit))]
