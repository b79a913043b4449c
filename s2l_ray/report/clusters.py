"""Clusters in the report: their numbers and sentences.

Shapes: K clusters, T checkpoints.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from s2l_ray.artifacts.finished import Finished
from s2l_ray.artifacts.manifest import centroids_file
from s2l_ray.clusters.declaration import CLUSTERS
from s2l_ray.clusters.scaling import Scale, in_nats
from s2l_ray.errors import first
from s2l_ray.report import numbers
from s2l_ray.selection.declaration import SELECTION
from s2l_ray.trajectories.declaration import TRAJECTORIES

MAX_CLUSTERS = 400
"""Clusters that the page tells apart."""
NUM_LABELLED = 3


@dataclass(frozen=True, eq=False)
class ClusterView:
    """The clusters; `steps` and `selected_K` are None for a run without training or selection.

    `centroid_KT` is in nats per token, or without unit if the scaling is `shape`.
    """

    centroid_KT: np.ndarray
    size_K: np.ndarray
    stratum_K: Sequence[str]
    steps: Sequence[int] | None = None
    selected_K: np.ndarray | None = None
    shrunk: Mapping[str, int] = field(default_factory=dict)
    """Strata that have fewer clusters than requested, with their numbers of clusters."""
    scaling: str = "raw"
    inertia: float | None = None
    silhouette: float | None = None
    stability: float | None = None
    tried: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The JSON of `num_clusters.Trials` by stratum; empty if auto did not choose the number."""
    choice: str = ""
    """The reason for these numbers of clusters, in a sentence."""


def clusters_view(finished: Mapping[str, Finished]) -> ClusterView | None:
    """Return the clusters of a run with the number selected from each; None without clusters."""
    if CLUSTERS.name not in finished:
        return None
    clusters = finished[CLUSTERS.name]
    centroid_KT = centroids_file(clusters.folder).read_npy()
    size_K = np.asarray(clusters.summary["size_of_cluster"], np.int64)
    selected_K = None
    if SELECTION.name in finished:
        # Counts end at the last cluster with a selected example.
        counts = finished[SELECTION.name].summary["selected_of_cluster"]
        selected_K = np.pad(np.asarray(counts, np.int64), (0, len(size_K) - len(counts)))
    scored = finished.get(TRAJECTORIES.name)
    steps = scored.summary.get("steps") if scored else None
    return view_of_summary(centroid_KT, clusters.summary, steps or None, selected_K)


def view_of_summary(
    centroid_KT: np.ndarray,
    summary: Mapping[str, Any],
    steps: Sequence[int] | None,
    selected_K: np.ndarray | None,
) -> ClusterView:
    """Return the clusters with these centroids as the summary of their stage describes them."""
    tried, strata = summary.get("tried", {}), summary["stratum_of_cluster"]
    scales = {name: Scale.of_json(value) for name, value in summary.get("scales", {}).items()}
    if scales:
        pairs = zip(centroid_KT, strata, strict=True)
        centroid_KT = np.array([in_nats(centroid_T, scales[name]) for centroid_T, name in pairs])
    return ClusterView(
        centroid_KT,
        np.asarray(summary["size_of_cluster"], np.int64),
        strata,
        steps,
        selected_K,
        summary["shrunk_strata"],
        scaling=summary.get("scaling", "raw"),
        inertia=summary.get("inertia"),
        silhouette=summary.get("silhouette"),
        stability=summary.get("stability"),
        tried=tried,
        # The first note of the stage says what auto chose.
        choice=summary["notes"][0] if tried else "",
    )


def quality(clusters: ClusterView | None) -> list[tuple[str, str]]:
    """Return the known measures of the clusters' quality, each as a number and a name."""
    if clusters is None or not len(clusters.size_K):
        return []
    measures = [(f"{len(clusters.size_K):,}", _composition(clusters))]
    if clusters.inertia is not None:
        unit = "nats²" if clusters.scaling == "raw" else "scaled"
        measures.append((f"{clusters.inertia:,.4g}", f"inertia, {unit}"))
    if clusters.silhouette is not None:
        measures.append((f"{clusters.silhouette:.2f}", "silhouette"))
    if clusters.stability is not None:
        measures.append((f"{clusters.stability:.2f}", "stability"))
    return [*measures, (clusters.scaling, "scaling")]


def _composition(clusters: ClusterView) -> str:
    """Describe how the number of clusters is made up."""
    per_stratum = sorted(Counter(clusters.stratum_K).values())
    few, many = per_stratum[0], per_stratum[-1]
    auto = "auto: " if clusters.tried else ""
    each = f"{few:,}" if few == many else f"{few:,} to {many:,}"
    if len(per_stratum) > 1:
        return f"clusters ({auto}{each} a stratum)"
    return f"clusters{' (auto)' if auto else ''}"


def cluster_facts(clusters: ClusterView | None) -> list[str]:
    """Return facts that figures cannot show exactly: counts, sizes, and numbers selected."""
    if clusters is None or not len(clusters.size_K):
        return []
    size_K, selected_K = clusters.size_K, clusters.selected_K
    facts = [
        f"{len(size_K):,} clusters of {size_K.min():,} to {size_K.max():,} examples, "
        f"median {np.median(size_K):,.0f}."
    ]
    if selected_K is not None:
        facts.append(
            f"{np.count_nonzero(selected_K == size_K):,} clusters are selected whole; from "
            f"{np.count_nonzero(selected_K == 0):,} no example is selected. "
            f"At most {selected_K.max():,} examples are selected from one cluster."
        )
    if clusters.shrunk:
        num_strata = len(set(clusters.stratum_K))
        unnamed = "(none)" if num_strata > 1 else "all"
        names = [
            f"{numbers.name(name) or unnamed}: {number:,}"
            for name, number in clusters.shrunk.items()
        ]
        where = f" in {len(names):,} of {num_strata:,} strata" if num_strata > 1 else ""
        facts.append(
            f"Fewer clusters than requested{where} ({first(names)}): one for every "
            "clusters.rows_per_cluster rows, or fewer where trajectories are equal or clusters "
            "were left without any."
        )
    num_shown = len(shown_clusters(size_K, selected_K))
    if num_shown < len(size_K):
        facts.append(f"{num_shown:,} clusters are shown, spread evenly over the sizes.")
    return facts


def labelled_clusters(size_K: np.ndarray, selected_K: np.ndarray | None) -> list[int]:
    """Return the largest and the most selected clusters; ties go to the lowest cluster number."""
    biggest = np.argsort(-size_K, kind="stable")[:NUM_LABELLED]
    if selected_K is None:
        return sorted(biggest.tolist())
    # Many clusters give the same quota; the smallest of them are labelled.
    most = np.lexsort((size_K, -selected_K))[:NUM_LABELLED]
    return sorted({*biggest.tolist(), *most.tolist()})


def shown_clusters(
    size_K: np.ndarray, selected_K: np.ndarray | None, most: int = MAX_CLUSTERS
) -> list[int]:
    """Return at most `most` clusters: the labelled ones, and others spread over the sizes."""
    if len(size_K) <= most:
        return list(range(len(size_K)))
    labelled = labelled_clusters(size_K, selected_K)
    by_size = [k for k in np.argsort(size_K, kind="stable").tolist() if k not in labelled]
    positions = np.linspace(0, len(by_size) - 1, most - len(labelled)).round().astype(int)
    return sorted({*labelled, *(by_size[position] for position in positions)})
