"""Stage 8: one page, and a table for the terminal, from the results of the other stages.

It runs in one process without Ray. Manifests hold the counts. The pool itself is read part by part,
and no more than a sample of it is in memory at once.
"""

from collections.abc import Mapping
from typing import Any

from s2l_ray.artifacts.extensions import LOSSES_BEFORE
from s2l_ray.artifacts.finished import Finished
from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.config.sections import RunConfig
from s2l_ray.data.declaration import PREPARE
from s2l_ray.evaluation.comparison import CONFIDENCE
from s2l_ray.report import examples, page, table
from s2l_ray.report.arms import arm_scores, comparable_arms, paired_differences
from s2l_ray.report.cluster_cards import cluster_cards, no_rows
from s2l_ray.report.cluster_rows import cluster_rows
from s2l_ray.report.clusters import clusters_view, shown_clusters
from s2l_ray.report.comparison import ComparisonView, comparison_view
from s2l_ray.report.contents import PoolCounts, ReportData, StageLine
from s2l_ray.report.extensions import extensions_view
from s2l_ray.report.lengths import lengths
from s2l_ray.report.provenance import provenance
from s2l_ray.report.strata import strata_lines, stratum_label
from s2l_ray.storage.location import Location
from s2l_ray.training.declaration import REFERENCE, TARGET


def run(
    run_dir: Location, config: RunConfig, finished: Mapping[str, Finished], out: StageDir
) -> dict[str, Any]:
    """Write `index.html`, a self-contained page of every stage that the run has finished.

    Reads   */_manifest.json, prepared/, trajectories/, clusters/, selection/ranking.parquet,
            evaluation/metrics.json and items.parquet, of the run and of its arms, manifests of its
            extensions, and comparison/
    Raises  DataError if the table of the comparison cannot be read.
    """
    report = collect(run_dir, config, finished)
    (out.location / "index.html").write_bytes(page.render(report).encode("utf-8", "replace"))
    return {
        "stages": len(report.stages),
        "arms": len({score.arm for score in report.evaluation}),
        "sets": len({score.set for score in report.evaluation}),
        "examples": len(report.examples),
    }


def summary_lines(finished: Mapping[str, Finished], config: RunConfig) -> list[str]:
    """Return for each evaluation set a table of the arms, and a sentence that compares them."""
    arms = comparable_arms(finished, config)
    return table.lines(arm_scores(arms), paired_differences(arms), CONFIDENCE)


def collect(run_dir: Location, config: RunConfig, finished: Mapping[str, Finished]) -> ReportData:
    """Collect everything that the page shows of the run in `run_dir`."""
    arms = comparable_arms(finished, config)
    clusters = clusters_view(finished)
    rows = no_rows()
    if clusters is not None:
        shown = shown_clusters(clusters.size_K, clusters.selected_K)
        rows = cluster_rows(finished, shown, examples.chosen_ids(finished, shown))
    reference, target = finished.get(REFERENCE.name), finished.get(TARGET.name)
    return ReportData(
        name=run_dir.name,
        config=config.model_dump(mode="json"),
        versions={k: v for item in finished.values() for k, v in item.manifest.versions.items()},
        stages=[_stage_line(item) for item in finished.values()],
        counts=_pool_counts(finished),
        lengths=lengths(finished),
        clusters=clusters,
        strata=strata_lines(finished, rows.strata),
        stratum_label=stratum_label(config),
        extensions=extensions_view(run_dir),
        curve=reference.summary.get("curve", ()) if reference else (),
        target_curve=target.summary.get("curve", ()) if target else (),
        held_out=target.summary.get("held_out", ()) if target else (),
        evaluation=arm_scores(arms),
        comparisons=paired_differences(arms),
        comparison=_comparison(run_dir, config),
        confidence=CONFIDENCE,
        cards=cluster_cards(clusters, rows) if clusters is not None else (),
        examples=[
            *examples.example_rows(finished, config.data, rows),
            *examples.rejected_rows(finished),
        ],
        provenance=provenance(run_dir),
    )


def _comparison(run_dir: Location, config: RunConfig) -> ComparisonView | None:
    if config.selection is None:
        return comparison_view(run_dir, "s2l", "")
    selection = config.selection
    return comparison_view(run_dir, selection.method, str(selection.budget))


def _stage_line(item: Finished) -> StageLine:
    """Return the stage with the plain values of its summary."""
    shown = {
        key: round(value, 4) if isinstance(value, float) else value
        for key, value in item.summary.items()
        if isinstance(value, int | float | str) and key != LOSSES_BEFORE
    }
    known = item.manifest
    return StageLine(
        item.label, known.seconds, known.finished, shown, known.fingerprint, known.notes
    )


def _pool_counts(finished: Mapping[str, Finished]) -> PoolCounts | None:
    if PREPARE.name not in finished:
        return None
    counts = finished[PREPARE.name].summary
    return PoolCounts(
        num_rows=counts["rows"],
        num_kept=counts["kept"],
        num_rejected_by_reason=counts["rejected"],
        num_tokens=counts["tokens"],
        num_duplicates=counts["duplicates"],
        num_cut=counts.get("cut", 0),
    )
