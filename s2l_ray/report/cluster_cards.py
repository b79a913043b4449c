"""What the page says of each cluster: its losses, its strata, and how many were taken.

Shapes: N rows of a cluster, K clusters, T checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from s2l_ray.report.cluster_rows import ClusterRows, losses
from s2l_ray.report.clusters import ClusterView, shown_clusters

BAND = (0.1, 0.9)
"""Quantiles of the losses between which the band of a cluster lies."""
MAX_STRATA = 6


@dataclass(frozen=True, eq=False)
class ClusterCard:
    """One cluster; `band_2T` is None where no losses of its rows are known."""

    number: int
    size: int
    num_selected: int | None
    mean_T: np.ndarray
    """Float (T,): the mean loss in nats per token; of clusters of shapes, of a sample of rows."""
    band_2T: np.ndarray | None
    """Float (2, T): the quantiles BAND of the losses of a sample of rows."""
    strata: Sequence[tuple[str, int]]
    """The most frequent strata of its rows, with their numbers of rows."""
    num_strata: int


def cluster_cards(clusters: ClusterView, rows: ClusterRows) -> list[ClusterCard]:
    """Return the cards of the clusters that the page shows, by cluster number."""
    loss_NT = losses(rows.sampled)
    sampled_N = rows.sampled["cluster"].to_numpy() if rows.sampled.num_rows else np.empty(0)
    cards = []
    for k in shown_clusters(clusters.size_K, clusters.selected_K):
        own_NT = loss_NT[sampled_N == k] if loss_NT is not None else np.empty((0, 0))
        by_shape = clusters.scaling == "shape" and len(own_NT) > 0
        strata = _strata(clusters, rows, k)
        cards.append(
            ClusterCard(
                k,
                int(clusters.size_K[k]),
                None if clusters.selected_K is None else int(clusters.selected_K[k]),
                own_NT.mean(axis=0) if by_shape else clusters.centroid_KT[k],
                np.quantile(own_NT, BAND, axis=0) if len(own_NT) else None,
                strata[:MAX_STRATA],
                len(strata),
            )
        )
    return cards


def _strata(clusters: ClusterView, rows: ClusterRows, k: int) -> list[tuple[str, int]]:
    """Return the strata of a cluster, the most frequent first; empty if the pool has none."""
    if k in rows.strata:
        return sorted(rows.strata[k].items(), key=lambda pair: (-pair[1], pair[0]))
    name = clusters.stratum_K[k]
    return [(name, int(clusters.size_K[k]))] if name else []


def no_rows() -> ClusterRows:
    """Return the rows of a pool that is not read."""
    empty = pa.table({})
    return ClusterRows(empty, empty, empty, empty)
