"""Stage 8: one page, and a table for the terminal, from the results of the other stages.

It runs in one process without Ray. Manifests hold the counts. From the pool itself it reads only
the selected head of the ranking and the rows of a few parts, one part at a time.
"""

from collections.abc import Mapping
from typing import Any

from s2l_ray.artifacts.finished import Finished
from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.config.sections import RunConfig
from s2l_ray.data.declaration import PREPARE
from s2l_ray.evaluation.comparison import CONFIDENCE
from s2l_ray.report import page, table
from s2l_ray.report.arms import arm_scores, comparable_arms, paired_differences
from s2l_ray.report.clusters import clusters_view
from s2l_ray.report.extensions import extensions_view
from s2l_ray.report.selected_examples import selected_examples
from s2l_ray.report.strata import strata_lines
from s2l_ray.storage.location import Location


def run(
    run_dir: Location, config: RunConfig, finished: Mapping[str, Finished], out: StageDir
) -> dict[str, Any]:
    """Write `index.html`, a self-contained page of every stage that the run has finished.

    Reads   */_manifest.json, clusters/_centroids.npy, selection/ranking.parquet, prepared/rows-*,
            evaluation/metrics.json and items.parquet, of the run and of its arms, and manifests of
            its extensions
    """
    report = collect(run_dir, config, finished)
    (out.location / "index.html").write_bytes(page.render(report).encode())
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


def collect(
    run_dir: Location, config: RunConfig, finished: Mapping[str, Finished]
) -> page.ReportData:
    """Collect everything that the page shows of the run in `run_dir`."""
    arms = comparable_arms(finished, config)
    return page.ReportData(
        name=run_dir.name,
        config=config.model_dump(mode="json"),
        versions={k: v for item in finished.values() for k, v in item.manifest.versions.items()},
        stages=[_stage_line(item) for item in finished.values()],
        counts=_pool_counts(finished),
        clusters=clusters_view(finished),
        strata=strata_lines(finished),
        extensions=extensions_view(run_dir),
        evaluation=arm_scores(arms),
        comparisons=paired_differences(arms),
        confidence=CONFIDENCE,
        examples=selected_examples(finished, config.data),
    )


def _stage_line(item: Finished) -> page.StageLine:
    """Return the stage with the plain values of its summary."""
    shown = {
        key: round(value, 4) if isinstance(value, float) else value
        for key, value in item.summary.items()
        if isinstance(value, int | float | str)
    }
    return page.StageLine(item.label, item.manifest.seconds, item.manifest.finished, shown)


def _pool_counts(finished: Mapping[str, Finished]) -> page.PoolCounts | None:
    if PREPARE.name not in finished:
        return None
    counts = finished[PREPARE.name].summary
    return page.PoolCounts(
        num_rows=counts["rows"],
        num_kept=counts["kept"],
        num_rejected_by_reason=counts["rejected"],
        num_tokens=counts["tokens"],
        num_duplicates=counts["duplicates"],
        num_cut=counts.get("cut", 0),
    )
