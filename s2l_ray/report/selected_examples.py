"""Selected examples that the report shows, from the largest and the smallest clusters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from s2l_ray.artifacts.finished import Finished
from s2l_ray.artifacts.manifest import RANKING
from s2l_ray.artifacts.tables import Parts, original_rows
from s2l_ray.clusters.declaration import CLUSTERS
from s2l_ray.config.data import DataConfig
from s2l_ray.data.declaration import PREPARE
from s2l_ray.data.examples import read_example
from s2l_ray.selection.declaration import SELECTION
from s2l_ray.storage.location import Location

EXAMPLES_PER_END = 2
"""Number of clusters that show an example, among the largest and among the smallest."""
ROWS_PER_READ = 1 << 16


@dataclass(frozen=True)
class SelectedExample:
    """A selected row, from a cluster of `size` examples."""

    cluster: int
    size: int
    prompt: str
    response: str


def selected_examples(
    finished: Mapping[str, Finished], data: DataConfig | None
) -> list[SelectedExample]:
    """Return the first-ranked selected row of the largest and of the smallest clusters.

    The list is empty for a run without prepared rows, clusters or selection.
    """
    if data is None or not {PREPARE.name, CLUSTERS.name, SELECTION.name} <= finished.keys():
        return []
    selection, sizes = finished[SELECTION.name], finished[CLUSTERS.name].summary["size_of_cluster"]
    shown = end_clusters(sizes, selection.summary["selected_of_cluster"])
    ranking = selection.folder / RANKING
    id_by_cluster = _first_ranked(ranking, shown, selection.summary["selected"])
    rows = Parts(finished[PREPARE.name].folder, "rows")
    row_by_id = rows_by_id(rows, list(id_by_cluster.values()))
    examples = []
    for cluster, example_id in id_by_cluster.items():
        example = read_example(row_by_id[example_id], data.fields.of_pool)
        prompt = f"{example.prompt}\n\n{example.context}" if example.context else example.prompt
        examples.append(SelectedExample(cluster, sizes[cluster], prompt, example.response))
    return examples


def end_clusters(sizes: Sequence[int], selected: Sequence[int]) -> list[int]:
    """Return the largest and the smallest clusters with a selected example, largest first."""
    given = [cluster for cluster, count in enumerate(selected) if count]
    given.sort(key=lambda cluster: (-sizes[cluster], cluster))
    if len(given) <= 2 * EXAMPLES_PER_END:
        return given
    return given[:EXAMPLES_PER_END] + given[-EXAMPLES_PER_END:]


def rows_by_id(rows: Parts, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the original rows with these ids; parts after the last of them are not read."""
    row_by_id: dict[str, dict[str, Any]] = {}
    wanted = pa.array(ids, pa.string())
    for file in rows.files():
        if len(row_by_id) == len(ids):
            break
        if not pc.any(pc.is_in(file.read_table(["example_id"])["example_id"], wanted)).as_py():
            continue
        part = file.read_table()
        part = part.filter(pc.is_in(part["example_id"], wanted))
        row_by_id |= dict(zip(part["example_id"].to_pylist(), original_rows(part), strict=True))
    return row_by_id


def _first_ranked(ranking: Location, clusters: Sequence[int], num_selected: int) -> dict[int, str]:
    """Return the id with the lowest rank in each of `clusters`, from the first `num_selected`."""
    first_id: dict[int, str] = {}
    filesystem, path = ranking.filesystem()
    left = num_selected
    with filesystem.open_input_file(path) as stream:
        for batch in pq.ParquetFile(stream).iter_batches(
            ROWS_PER_READ, columns=["example_id", "cluster"]
        ):
            cluster_N = batch["cluster"].to_numpy()[:left]
            for cluster in clusters:
                positions = np.flatnonzero(cluster_N == cluster)
                if cluster not in first_id and len(positions):
                    first_id[cluster] = batch["example_id"][int(positions[0])].as_py()
            left -= len(cluster_N)
            if not left or len(first_id) == len(clusters):
                break
    return {cluster: first_id[cluster] for cluster in clusters}
