"""One pass over the clustered pool: rows that stand for each cluster, and its strata.

The pass holds some rows of each cluster and one batch of the pool.

Shapes: N rows of a batch, K clusters, T checkpoints.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from s2l_ray import hashing
from s2l_ray.artifacts.finished import Finished
from s2l_ray.artifacts.tables import Parts
from s2l_ray.clusters.declaration import CLUSTERS
from s2l_ray.storage.location import Location
from s2l_ray.trajectories.declaration import TRAJECTORIES

ROWS_PER_BATCH = 1 << 17
NUM_ENDS = 2
"""Rows that are kept of each cluster at either end: nearest to the centroid, and farthest."""
ROWS_OF_ALL_CLUSTERS = 40_000
MOST_OF_CLUSTER = 200
"""Random rows of one cluster, for the band around its mean."""


@dataclass(frozen=True, eq=False)
class ClusterRows:
    """Rows with `example_id`, `stratum`, `cluster`, and `loss_nats` where losses are known."""

    nearest: pa.Table
    """The rows nearest to each centroid, nearest first; empty if distances are not known."""
    farthest: pa.Table
    """The rows farthest from each centroid, farthest first."""
    sampled: pa.Table
    """Random rows of each cluster, in random order."""
    asked: pa.Table
    """The rows that were asked for."""
    strata: Mapping[int, Counter[str]] = field(default_factory=dict)
    """Cluster -> its rows by stratum; empty if each cluster lies inside one stratum."""


def cluster_rows(
    finished: Mapping[str, Finished], shown: Sequence[int], asked: Collection[str] = ()
) -> ClusterRows:
    """Return rows that stand for the clusters `shown`, and the rows with the ids `asked`.

    Random rows are the same in every pass over the same parts.
    """
    clusters = finished[CLUSTERS.name]
    num_clusters = len(clusters.summary["size_of_cluster"])
    per_cluster = max(8, min(MOST_OF_CLUSTER, ROWS_OF_ALL_CLUSTERS // max(1, len(shown))))
    is_shown_K = np.isin(np.arange(num_clusters), shown)
    nearest, farthest = (LowestOfCluster(num_clusters, NUM_ENDS) for _ in range(2))
    sampled = LowestOfCluster(num_clusters, per_cluster)
    spans_strata = not any(clusters.summary["stratum_of_cluster"])
    strata: dict[int, Counter[str]] = defaultdict(Counter)
    wanted, found, start = pa.array(list(asked), pa.string()), [], 0
    for batch in _batches(clusters, finished.get(TRAJECTORIES.name)):
        if spans_strata:
            _count_strata(batch, strata)
        found.append(batch.filter(pc.is_in(batch["example_id"], wanted)))
        position_N = np.arange(start, start + batch.num_rows, dtype=np.uint64)
        start += batch.num_rows
        is_kept_N = is_shown_K[batch["cluster"].to_numpy()]
        rows = batch.filter(pa.array(is_kept_N))
        sampled.add(rows, hashing.mixed(position_N[is_kept_N]).astype(np.float64))
        if "sqdist" in rows.column_names:
            sqdist_N = rows["sqdist"].to_numpy()
            nearest.add(rows, sqdist_N)
            farthest.add(rows, -sqdist_N)
    return ClusterRows(
        nearest.table(),
        farthest.table(),
        sampled.table(),
        pa.concat_tables(found) if found else pa.table({}),
        strata if strata.keys() and any(any(names) for names in strata.values()) else {},
    )


class LowestOfCluster:
    """Keeps the rows with the lowest scores of each cluster, over any number of batches.

    Of equal scores, those that came first are kept.
    """

    def __init__(self, num_clusters: int, per_cluster: int) -> None:
        self.per_cluster = per_cluster
        # A row with a score from here on cannot be among the lowest of its cluster any more.
        self._bound_K = np.full(num_clusters, np.inf)
        self._score_N = np.empty(0)
        self._table: pa.Table | None = None

    def add(self, rows: pa.Table, score_N: np.ndarray) -> None:
        """Look at the rows of a table with a column `cluster`."""
        is_low_N = score_N < self._bound_K[rows["cluster"].to_numpy()]
        if not is_low_N.any():
            return
        low = rows.filter(pa.array(is_low_N))
        table = low if self._table is None else pa.concat_tables([self._table, low])
        score_N = np.concatenate([self._score_N, score_N[is_low_N]])
        cluster_N = table["cluster"].to_numpy()
        order_N = np.lexsort((score_N, cluster_N))
        place_N = _places(cluster_N[order_N])
        kept_N = order_N[place_N < self.per_cluster]
        last_N = order_N[place_N == self.per_cluster - 1]
        self._bound_K[cluster_N[last_N]] = score_N[last_N]
        self._table, self._score_N = table.take(pa.array(kept_N)).combine_chunks(), score_N[kept_N]

    def table(self) -> pa.Table:
        """Return the kept rows, by cluster, and those of a cluster by score."""
        return pa.table({}) if self._table is None else self._table


def losses(rows: pa.Table) -> np.ndarray | None:
    """Return float32 (N, T), the losses of `rows` in nats per token; None if they are not known."""
    if "loss_nats" not in rows.column_names or not rows.num_rows:
        return None
    flat = pc.list_flatten(rows["loss_nats"]).to_numpy()
    loss_NT: np.ndarray = flat.reshape(rows.num_rows, -1)
    return loss_NT


def _places(sorted_N: np.ndarray) -> np.ndarray:
    """Return the place of each value among its equals, from 0."""
    starts_N = np.concatenate([[True], sorted_N[1:] != sorted_N[:-1]])
    first_N = np.maximum.accumulate(np.where(starts_N, np.arange(len(sorted_N)), 0))
    return np.arange(len(sorted_N)) - first_N


def _batches(clusters: Finished, trajectories: Finished | None) -> Iterator[pa.Table]:
    """Yield tables of some parts, with losses if the trajectories have the same parts."""
    files = Parts(clusters.folder).files()
    of_losses = Parts(trajectories.folder).files() if trajectories else []
    pairs = zip(files, of_losses if len(of_losses) == len(files) else [None] * len(files),
                strict=True)  # fmt: skip
    waiting: list[pa.Table] = []
    for file, with_losses in pairs:
        waiting.append(_part(file, with_losses))
        if sum(table.num_rows for table in waiting) >= ROWS_PER_BATCH:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(parts: Sequence[pa.Table]) -> pa.Table:
    """Return parts as one table with the columns that all of them have."""
    names = [
        name for name in parts[0].column_names if all(name in part.column_names for part in parts)
    ]
    return pa.concat_tables([part.select(names) for part in parts]).combine_chunks()


def _part(file: Location, with_losses: Location | None) -> pa.Table:
    table = file.read_table(["example_id", "stratum", "cluster"], optional=["sqdist"])
    if with_losses is None:
        return table
    scored = with_losses.read_table(["example_id", "loss_nats"])
    if not scored["example_id"].equals(table["example_id"]):
        return table
    return table.append_column("loss_nats", scored["loss_nats"])


def _count_strata(batch: pa.Table, strata: dict[int, Counter[str]]) -> None:
    counts = batch.group_by(["cluster", "stratum"]).aggregate([([], "count_all")])
    columns = (counts[name].to_pylist() for name in ("cluster", "stratum", "count_all"))
    for cluster, stratum, number in zip(*columns, strict=True):
        strata[cluster][stratum] += number
