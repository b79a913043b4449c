"""Drift of an extension: whether its rows still fit the clusters that they were assigned to.

Reads clusters/part-* one after the other; in memory are bins of distances, not examples.

Shape letters: N rows of a part, K clusters, G groups (strata).
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
"""A stratum is compared if it has this many old rows for each of its clusters. The percentiles of
fewer rows say too little."""


@dataclass(frozen=True)
class FittedRows:
    """Rows that clusters were fitted to: those of a run, of new strata, or all after an update.

    Attributes:
        files: example_id, stratum, cluster, sqdist.
        size_of_cluster: rows that each cluster was fitted to; most or all of them are in `files`.
        clusters: the numbers of the clusters whose centroids were computed from these rows.
    """

    files: Sequence[Location]
    size_of_cluster: Sequence[int]
    clusters: range


def measure(
    fitted: Sequence[FittedRows],
    assigned: Sequence[Location],
    stratum_of_cluster: Sequence[str],
    *,
    moved: bool = False,
) -> dict[str, Any]:
    """Compare the distances of assigned rows to those of the rows that the clusters were fitted to.

    Distances are in the space of the clusters. A fitted row that is alone in its cluster counts as
    farther out than any other. Some assigned rows are left out and counted: those of strata that
    `fitted` does not cover, and those of strata with fewer old rows than MIN_ROWS_PER_CLUSTER for
    each cluster.

    Args:
        assigned: example_id, stratum, cluster, sqdist.
        moved: the centroids of the one entry of `fitted` were fitted to the assigned rows as well.
    """
    names = sorted(set(stratum_of_cluster))
    group_K = np.searchsorted(names, stratum_of_cluster)
    num_known = fitted[-1].clusters.stop
    old = reduce(drift.Histogram.merge, [_of_fitted(source, group_K) for source in fitted])
    size_K = np.asarray(fitted[0].size_of_cluster, np.int64) if moved else None
    new = _histogram(assigned, group_K, range(num_known), size_K)
    large = _large_groups(
        old.rows_by_group(), np.bincount(group_K[:num_known], minlength=len(names))
    )
    compared = new.within(large)
    cluster_by_file = (file.read_table(["cluster"])["cluster"].to_numpy() for file in assigned)
    counts = {
        "centroids_updated": moved,
        "rows": compared.num_rows,
        "rows_alone": compared.num_rows - compared.finite().num_rows,
        "rows_of_new_strata": sum(
            int((cluster_N >= num_known).sum()) for cluster_N in cluster_by_file
        ),
        "rows_of_small_strata": new.num_rows - compared.num_rows,
    }
    if not compared.num_rows:
        return counts
    comparison = drift.compare(old.within(set(compared.rows_by_group())), compared)
    distances = {"median_distance": comparison.median, "p95_distance": comparison.p95}
    return {
        **counts,
        "old_rows": comparison.num_rows[0],
        **{name: _pair(values) for name, values in distances.items() if values},
        "share_beyond_p95": _pair(comparison.beyond_p95),
        "share_beyond_p99": _pair(comparison.beyond_p99),
        "reclustering_due": comparison.is_due,
    }


def rows_fitted_by_stratum(
    fitted: Sequence[FittedRows], stratum_of_cluster: Sequence[str]
) -> dict[str, int]:
    """Return, by stratum, how many rows its clusters were fitted to."""
    counts: Counter[str] = Counter()
    for source in fitted:
        for number in source.clusters:
            counts[stratum_of_cluster[number]] += source.size_of_cluster[number]
    return dict(counts)


def sentence(measured: Mapping[str, Any]) -> str:
    """Return the result of `measure` in words."""
    if not measured["rows"]:
        return (
            f"cannot be judged: no new row is of a known stratum with {MIN_ROWS_PER_CLUSTER} old "
            "rows for each cluster"
        )
    beyond = measured["share_beyond_p95"]["new"]
    # Manifests of extensions that were made before centroids could move lack this key.
    moved = measured.get("centroids_updated", False)
    start = (
        f"{beyond:.1%} of {measured['rows']:,} new rows are beyond the 95th percentile of old rows"
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
    unjudged = measured["rows_of_new_strata"] + measured["rows_of_small_strata"]
    more = f"; {unjudged:,} more, of new or small strata, are not judged" if unjudged else ""
    return start + ends[verdict(measured)] + more


def verdict(measured: Mapping[str, Any]) -> Literal["due", "not due", "unclear"]:
    """Return whether re-clustering is due, from a result of `measure` that compared some rows."""
    if measured["reclustering_due"]:
        return "due"
    too_many = measured["share_beyond_p95"]["new"] > drift.MAX_SHARE_BEYOND
    return "unclear" if too_many else "not due"


def _of_fitted(source: FittedRows, group_K: np.ndarray) -> drift.Histogram:
    return _histogram(
        source.files, group_K, source.clusters, np.asarray(source.size_of_cluster, np.int64)
    )


def _histogram(
    files: Sequence[Location],
    group_K: np.ndarray,
    clusters: range,
    size_K: np.ndarray | None = None,
) -> drift.Histogram:
    """Count the distances of rows in `clusters`.

    If `size_K`, the sizes of the clusters, is given, the distance of a row is the one it would have
    if its cluster had been fitted without it.
    """
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


def _large_groups(rows_by_group: Mapping[int, int], num_clusters_G: np.ndarray) -> set[int]:
    """Return the groups with at least MIN_ROWS_PER_CLUSTER rows for each of their clusters."""
    return {
        group
        for group, count in rows_by_group.items()
        if count >= MIN_ROWS_PER_CLUSTER * num_clusters_G[group]
    }


def _pair(values: tuple[float, float]) -> dict[str, float]:
    return {"old": round(values[0], 6), "new": round(values[1], 6)}
