"""Whether the rows of an extension still fit the clusters that they were placed in.

Reads clusters/part-* one after the other; in memory are bins of distances, not examples.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np

from s2l_ray.clusters import drift
from s2l_ray.storage.location import Location

MIN_ROWS_PER_CLUSTER = 10
"""Of old rows, in the clusters of a stratum together; the percentiles of fewer say too little."""


@dataclass(frozen=True)
class Fitted:
    """Rows that clusters were fitted to: of a run, of new strata, or all where centroids moved.

    Attributes:
        files: example_id, stratum, cluster, sqdist.
        size_of_cluster: rows that each cluster was fitted to; most or all of them in `files`.
        clusters: the numbers of the clusters whose centroids came from these rows.
    """

    files: Sequence[Location]
    size_of_cluster: Sequence[int]
    clusters: range


def compared(
    fitted: Sequence[Fitted],
    placed: Sequence[Location],
    stratum_of_cluster: Sequence[str],
    *,
    moved: bool = False,
) -> dict[str, Any]:
    """How far placed rows are from their centroids, next to the rows that these were fitted to.

    Distances are in the space of the clusters, and a row that is alone in a cluster fitted to it
    is farther out than any. Rows of strata that `fitted` does not cover, or with fewer old rows
    than MIN_ROWS_PER_CLUSTER for each cluster, are left out and counted.

    Args:
        placed: example_id, stratum, cluster, sqdist.
        moved: the centroids of the one entry of `fitted` were fitted to the placed rows as well.
    """
    names = sorted(set(stratum_of_cluster))
    group_K = np.searchsorted(names, stratum_of_cluster)
    num_known = fitted[-1].clusters.stop
    old = reduce(drift.Histogram.merge, [_of_fitted(source, group_K) for source in fitted])
    size_K = np.asarray(fitted[0].size_of_cluster, np.int64) if moved else None
    new = _histogram(placed, group_K, range(num_known), size_K)
    judged = _judged(old.rows_by_group(), np.bincount(group_K[:num_known], minlength=len(names)))
    shown = new.within(judged)
    cluster_by_file = (file.read_table(["cluster"])["cluster"].to_numpy() for file in placed)
    counts = {
        "centroids_updated": moved,
        "rows": shown.num_rows,
        "rows_alone": shown.num_rows - shown.finite().num_rows,
        "rows_of_new_strata": sum(
            int((cluster_N >= num_known).sum()) for cluster_N in cluster_by_file
        ),
        "rows_of_small_strata": new.num_rows - shown.num_rows,
    }
    if not shown.num_rows:
        return counts
    fit = drift.fit(old.within(set(shown.rows_by_group())), shown)
    distances = {"median_distance": fit.median, "p95_distance": fit.p95}
    return {
        **counts,
        "old_rows": fit.num_rows[0],
        **{name: _pair(values) for name, values in distances.items() if values},
        "share_beyond_p95": _pair(fit.beyond_p95),
        "share_beyond_p99": _pair(fit.beyond_p99),
        "reclustering_due": fit.is_due,
    }


def num_fitted(fitted: Sequence[Fitted], stratum_of_cluster: Sequence[str]) -> dict[str, int]:
    """By stratum, the rows that its clusters were fitted to."""
    counts: Counter[str] = Counter()
    for source in fitted:
        for number in source.clusters:
            counts[stratum_of_cluster[number]] += source.size_of_cluster[number]
    return dict(counts)


def sentence(found: Mapping[str, Any]) -> str:
    """What `compared` found, in words."""
    if not found["rows"]:
        return (
            f"cannot be judged: no new row is of a known stratum with {MIN_ROWS_PER_CLUSTER} old "
            "rows for each cluster"
        )
    beyond = found["share_beyond_p95"]["new"]
    # Extensions that were made before centroids could move do not say so.
    moved = found.get("centroids_updated", False)
    start = (
        f"{beyond:.1%} of {found['rows']:,} new rows are beyond the 95th percentile of old rows"
        f"{' in the updated clusters' if moved else ''} "
        f"({drift.MAX_SHARE_BEYOND:.0%} or less is usual): "
    )
    remedy = "in a new run" if moved else "`s2l extend RUN_DIR --update-centroids`"
    fits = f"the clusters {'' if moved else 'still '}fit"
    ends = {
        "due": f"re-clustering is due ({remedy})",
        "unclear": f"too few rows to tell whether {fits}",
        "not due": fits,
    }
    unjudged = found["rows_of_new_strata"] + found["rows_of_small_strata"]
    more = f"; {unjudged:,} more, of new or small strata, are not judged" if unjudged else ""
    return start + ends[verdict(found)] + more


def verdict(found: Mapping[str, Any]) -> Literal["due", "not due", "unclear"]:
    """Of re-clustering, by what `compared` found of rows that can be judged."""
    if found["reclustering_due"]:
        return "due"
    too_many = found["share_beyond_p95"]["new"] > drift.MAX_SHARE_BEYOND
    return "unclear" if too_many else "not due"


def _of_fitted(source: Fitted, group_K: np.ndarray) -> drift.Histogram:
    return _histogram(
        source.files, group_K, source.clusters, np.asarray(source.size_of_cluster, np.int64)
    )


def _histogram(
    files: Sequence[Location],
    group_K: np.ndarray,
    clusters: range,
    size_K: np.ndarray | None = None,
) -> drift.Histogram:
    """Of rows in `clusters`; with their sizes, as if no row were in its own cluster."""
    total = drift.Histogram(np.empty(0, np.int64), np.empty(0, np.int64))
    for file in files:
        table = file.read_table(["cluster", "sqdist"])
        cluster_N, sqdist_N = table["cluster"].to_numpy(), table["sqdist"].to_numpy()
        keep_N = (cluster_N >= clusters.start) & (cluster_N < clusters.stop)
        cluster_N, sqdist_N = cluster_N[keep_N], sqdist_N[keep_N]
        if size_K is not None:
            sqdist_N = drift.without_itself(sqdist_N, size_K[cluster_N])
        total = total.merge(drift.Histogram.of(group_K[cluster_N], sqdist_N))
    return total


def _judged(rows_by_group: Mapping[int, int], num_clusters_G: np.ndarray) -> set[int]:
    return {
        group
        for group, count in rows_by_group.items()
        if count >= MIN_ROWS_PER_CLUSTER * num_clusters_G[group]
    }


def _pair(values: tuple[float, float]) -> dict[str, float]:
    return {"old": round(values[0], 6), "new": round(values[1], 6)}
