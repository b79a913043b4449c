"""Stage 8: one page, and a table for the terminal, out of what the other stages left.

Runs in one process without Ray. Manifests hold the counts; of the pool itself only the selected
head of the ranking and the rows of a few parts are read, one part at a time.

Shapes: K clusters, T checkpoints.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from s2l_ray.artifacts.finished import Finished
from s2l_ray.artifacts.manifest import Parts, StageDir, centroids_file, original_rows
from s2l_ray.clusters.declaration import CLUSTERS
from s2l_ray.config import budgets
from s2l_ray.config.sections import DataConfig, RunConfig
from s2l_ray.data.declaration import PREPARE
from s2l_ray.data.examples import read_example
from s2l_ray.evaluation.comparison import CONFIDENCE, compare
from s2l_ray.evaluation.declaration import EVALUATION
from s2l_ray.report import outcomes, page, table
from s2l_ray.report.clusters import ClusterView, clusters_view
from s2l_ray.report.page import ArmScore, Comparison, ReportData, StratumLine
from s2l_ray.selection.declaration import SELECTION
from s2l_ray.storage.location import Location
from s2l_ray.training.declaration import TARGET
from s2l_ray.trajectories.declaration import TRAJECTORIES

EXAMPLES_PER_END = 2
"""Clusters that show an example, among the biggest and among the smallest."""
ROWS_PER_READ = 1 << 16
COMPARED = ("set", "file", "item", "stratum", "correct", "loss_nats")


def run(
    run_dir: Location, config: RunConfig, finished: Mapping[str, Finished], out: StageDir
) -> dict[str, Any]:
    """Write `index.html`, a self-contained page of whatever the run has finished.

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
    """For each evaluation set a table of the arms, and a sentence that compares them."""
    judged = judged_arms(finished, config)
    return table.lines(arm_scores(judged), paired_differences(judged), CONFIDENCE)


def collect(run_dir: Location, config: RunConfig, finished: Mapping[str, Finished]) -> ReportData:
    """All that the page shows of the run in `run_dir`."""
    judged = judged_arms(finished, config)
    return ReportData(
        name=run_dir.name,
        config=config.model_dump(mode="json"),
        versions={k: v for item in finished.values() for k, v in item.manifest.versions.items()},
        stages=[_stage_line(item) for item in finished.values()],
        counts=_pool_counts(finished),
        clusters=cluster_view(finished),
        strata=strata_lines(finished),
        extensions=outcomes.extensions_view(run_dir),
        evaluation=arm_scores(judged),
        comparisons=paired_differences(judged),
        confidence=CONFIDENCE,
        examples=selected_examples(finished, config.data),
    )


def _stage_line(item: Finished) -> page.StageLine:
    """The stage with the plain values of its summary."""
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
    )


def cluster_view(finished: Mapping[str, Finished]) -> ClusterView | None:
    """The clusters with what was taken from each; steps and selection where they are known."""
    if CLUSTERS.name not in finished:
        return None
    clusters = finished[CLUSTERS.name]
    centroid_KT = centroids_file(clusters.folder).read_npy()
    size_K = np.asarray(clusters.summary["size_of_cluster"], np.int64)
    selected_K = None
    if SELECTION.name in finished:
        # Counts end at the last cluster that gave an example.
        given = finished[SELECTION.name].summary["selected_of_cluster"]
        selected_K = np.pad(np.asarray(given, np.int64), (0, len(size_K) - len(given)))
    scored = finished.get(TRAJECTORIES.name)
    steps = scored.summary.get("steps") if scored else None
    return clusters_view(centroid_KT, clusters.summary, steps or None, selected_K)


def strata_lines(finished: Mapping[str, Finished]) -> list[StratumLine]:
    """Pool and subset by stratum; nothing without a selection, or when no example has a stratum."""
    if not {CLUSTERS.name, SELECTION.name} <= finished.keys():
        return []
    selected = finished[SELECTION.name].summary["strata"]
    pool = _pool_strata(finished[CLUSTERS.name])
    if pool.keys() == {""}:
        return []
    names = Counter(finished[CLUSTERS.name].summary["stratum_of_cluster"])
    return [
        StratumLine(name, pool[name], selected.get(name, 0), names[name] if any(names) else None)
        for name in sorted(pool)
    ]


def _pool_strata(clusters: Finished) -> Counter[str]:
    """Examples of each stratum, from the cluster sizes where no cluster spans several strata."""
    counts: Counter[str] = Counter()
    names = clusters.summary["stratum_of_cluster"]
    if any(names):
        for name, size in zip(names, clusters.summary["size_of_cluster"], strict=True):
            counts[name] += size
        return counts
    for part in Parts(clusters.folder).tables(["stratum"]):
        for item in part["stratum"].value_counts().to_pylist():
            counts[item["values"]] += item["counts"]
    return counts


@dataclass(frozen=True)
class JudgedArm:
    """An evaluated arm under the name that tables give it; the run's own comes first."""

    name: str
    stages: dict[str, Finished]
    metrics: dict[str, Any]

    @property
    def is_own(self) -> bool:
        return self.stages[EVALUATION.name].arm == ""

    def items(self) -> pa.Table:
        place = self.stages[EVALUATION.name].folder / "items.parquet"
        return place.read_table(list(COMPARED))


def judged_arms(finished: Mapping[str, Finished], config: RunConfig) -> list[JudgedArm]:
    """The evaluated arms that were trained and judged as the first one was; others are no match."""
    by_arm: dict[str, dict[str, Finished]] = {}
    for item in finished.values():
        by_arm.setdefault(item.arm, {})[item.stage] = item
    judged = [
        JudgedArm(
            arm_title(arm, config),
            stages,
            (stages[EVALUATION.name].folder / "metrics.json").read_json(),
        )
        for arm, stages in by_arm.items()
        if EVALUATION.name in stages
    ]
    return [arm for arm in judged if _settings(arm) == _settings(judged[0])]


def arm_title(arm: str, config: RunConfig) -> str:
    """The method of an arm that has the run's own budget and seed; its folder's name elsewhere."""
    selection = config.selection
    if selection is None:
        return arm or "selection"
    title = arm.removesuffix(f"-{budgets.slug(selection.budget)}-{config.seed}")
    return arm if arm and title == selection.method else title or selection.method


def _settings(arm: JudgedArm) -> dict[str, Any]:
    """What must be equal for a comparison to say something of the selection."""
    return {
        key: value
        for stage in (TARGET.name, EVALUATION.name)
        if stage in arm.stages
        for key, value in arm.stages[stage].manifest.inputs.items()
        if key.startswith((f"{stage}.", "data."))
    }


def arm_scores(judged: Sequence[JudgedArm]) -> list[ArmScore]:
    """One line for every set and arm."""
    return [
        _score(arm.name, name, found)
        for arm in judged
        for name, found in arm.metrics["sets"].items()
    ]


def _score(arm: str, name: str, found: Mapping[str, Any]) -> ArmScore:
    numbers = found["macro"] if _has_strata(found) else found
    loss, rate = numbers["loss_nats"], numbers["exact_match"]
    return ArmScore(
        set=name,
        arm=arm,
        num_items=found["items"],
        loss_nats=loss["mean"],
        loss_low=loss["low"],
        loss_high=loss["high"],
        exact_match=rate["rate"],
        exact_match_low=rate["low"],
        exact_match_high=rate["high"],
        num_strata=len(found["strata"]),
    )


def _has_strata(found: Mapping[str, Any]) -> bool:
    """Whether the strata of a set, not its items, count equally in the numbers shown."""
    return len(found["strata"]) > 1


def paired_differences(judged: Sequence[JudgedArm]) -> list[Comparison]:
    """The run's own arm minus each of the others on the items they share, where it is known."""
    if len(judged) < 2 or not judged[0].is_own:
        return []
    own, items = judged[0], judged[0].items()
    over = {
        name: "strata" if _has_strata(found) else "items"
        for name, found in own.metrics["sets"].items()
    }
    return [
        Comparison(
            pair.set, pair.metric, own.name, other.name, pair.difference, pair.low, pair.high
        )
        for other in judged[1:]
        for pair in compare(items, other.items())
        if pair.over == over[pair.set] and pair.low is not None and pair.high is not None
    ]


def selected_examples(
    finished: Mapping[str, Finished], data: DataConfig | None
) -> list[page.SelectedExample]:
    """The first-ranked selected row of the biggest and the smallest clusters, where rows exist."""
    if data is None or not {PREPARE.name, CLUSTERS.name, SELECTION.name} <= finished.keys():
        return []
    selection, sizes = finished[SELECTION.name], finished[CLUSTERS.name].summary["size_of_cluster"]
    shown = end_clusters(sizes, selection.summary["selected_of_cluster"])
    ranking = selection.folder / "ranking.parquet"
    id_by_cluster = _first_ranked(ranking, shown, selection.summary["selected"])
    rows = Parts(finished[PREPARE.name].folder, "rows")
    row_by_id = _rows_of(rows, list(id_by_cluster.values()))
    examples = []
    for cluster, example_id in id_by_cluster.items():
        example = read_example(row_by_id[example_id], data.fields)
        prompt = f"{example.prompt}\n\n{example.context}" if example.context else example.prompt
        examples.append(page.SelectedExample(cluster, sizes[cluster], prompt, example.response))
    return examples


def end_clusters(sizes: Sequence[int], selected: Sequence[int]) -> list[int]:
    """The biggest and the smallest clusters that gave an example, biggest first."""
    given = [cluster for cluster, count in enumerate(selected) if count]
    given.sort(key=lambda cluster: (-sizes[cluster], cluster))
    if len(given) <= 2 * EXAMPLES_PER_END:
        return given
    return given[:EXAMPLES_PER_END] + given[-EXAMPLES_PER_END:]


def _first_ranked(ranking: Location, clusters: Sequence[int], num_selected: int) -> dict[int, str]:
    """The id with the lowest rank in each of `clusters`, among the first `num_selected` ranks."""
    found: dict[int, str] = {}
    filesystem, path = ranking.filesystem()
    left = num_selected
    with filesystem.open_input_file(path) as stream:
        for batch in pq.ParquetFile(stream).iter_batches(
            ROWS_PER_READ, columns=["example_id", "cluster"]
        ):
            cluster_N = batch["cluster"].to_numpy()[:left]
            for cluster in clusters:
                places = np.flatnonzero(cluster_N == cluster)
                if cluster not in found and len(places):
                    found[cluster] = batch["example_id"][int(places[0])].as_py()
            left -= len(cluster_N)
            if not left or len(found) == len(clusters):
                break
    return {cluster: found[cluster] for cluster in clusters}


def _rows_of(rows: Parts, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The original rows with these ids, from the parts up to the one that holds the last."""
    found: dict[str, dict[str, Any]] = {}
    wanted = pa.array(ids, pa.string())
    for file in rows.files():
        if len(found) == len(ids):
            break
        if not pc.any(pc.is_in(file.read_table(["example_id"])["example_id"], wanted)).as_py():
            continue
        part = file.read_table()
        part = part.filter(pc.is_in(part["example_id"], wanted))
        found |= dict(zip(part["example_id"].to_pylist(), original_rows(part), strict=True))
    return found
