"""The selected head of a ranking, read batch by batch."""

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from s2l_ray.artifacts.finished import Finished
from s2l_ray.artifacts.manifest import RANKING
from s2l_ray.storage.failures import explained

ROWS_PER_READ = 1 << 16


def spread_ids(selection: Finished, most: int) -> pa.Array:
    """Return the ids of at most `most` selected examples, spread evenly over the ranks."""
    step = max(1, -(-_num_selected(selection) // most))
    kept, start = [], 0
    for batch in _batches(selection, ["example_id"]):
        first = -start % step
        kept.append(batch["example_id"].take(pa.array(range(first, batch.num_rows, step))))
        start += batch.num_rows
    return pa.concat_arrays(kept) if kept else pa.array([], pa.string())


def first_ids(selection: Finished, clusters: Sequence[int], per_cluster: int) -> list[str]:
    """Return the best ranked selected ids of each cluster, at most `per_cluster` of one."""
    left = dict.fromkeys(clusters, per_cluster)
    ids: list[str] = []
    for batch in _batches(selection, ["example_id", "cluster"]):
        cluster_N = batch["cluster"].to_numpy()
        for row in np.flatnonzero(np.isin(cluster_N, list(left))).tolist():
            cluster = int(cluster_N[row])
            if left.get(cluster):
                left[cluster] -= 1
                ids.append(batch["example_id"][row].as_py())
        left = {cluster: number for cluster, number in left.items() if number}
        if not left:
            break
    return ids


def among(selection: Finished, ids: Collection[str]) -> set[str]:
    """Return those of `ids` that are selected."""
    wanted, found = pa.array(list(ids), pa.string()), set()
    for batch in _batches(selection, ["example_id"]):
        found.update(batch["example_id"].filter(pc.is_in(batch["example_id"], wanted)).to_pylist())
    return found


def _num_selected(selection: Finished) -> int:
    number: int = selection.summary.get("selected", 0)
    return number


def _batches(selection: Finished, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield the selected rows of the ranking, best first; none if there is no ranking."""
    file = selection.folder / RANKING
    left = _num_selected(selection)
    if not left or not file.is_file():
        return
    with explained(file, "read"), file.open() as stream:
        for batch in pq.ParquetFile(stream).iter_batches(ROWS_PER_READ, columns=columns):
            yield batch.slice(0, left)
            left -= min(left, batch.num_rows)
            if not left:
                return
