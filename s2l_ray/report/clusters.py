"""What the page shows of the clusters: numbers, sentences and figures.

K clusters, T checkpoints.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from s2l_ray.clusters.scaling import Scale, in_nats
from s2l_ray.errors import first
from s2l_ray.report import plots


@dataclass(frozen=True, eq=False)
class ClusterView:
    """The clusters; `steps` and `selected_K` are None where a run has no training or selection.

    `centroid_KT` is in nats per token, or with the scaling `shape` in that space.
    """

    centroid_KT: np.ndarray
    size_K: np.ndarray
    stratum_K: Sequence[str]
    steps: Sequence[int] | None = None
    selected_K: np.ndarray | None = None
    shrunk: Mapping[str, int] = field(default_factory=dict)
    """Strata that have fewer clusters than were asked for, with how many."""
    scaling: str = "raw"
    inertia: float | None = None
    silhouette: float | None = None
    stability: float | None = None
    tried: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Stratum -> `num_clusters.Trials` as it stands in a manifest, where numbers were chosen."""
    choice: str = ""
    """Why these numbers, in a sentence."""


def clusters_view(
    centroid_KT: np.ndarray,
    summary: Mapping[str, Any],
    steps: Sequence[int] | None,
    selected_K: np.ndarray | None,
) -> ClusterView:
    """What the manifest of the stage says of clusters with these centroids."""
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
        # What auto chose is the first thing that the stage has to say.
        choice=summary["notes"][0] if tried else "",
    )


def quality(clusters: ClusterView | None) -> list[tuple[str, str]]:
    """Numbers that say how good the clusters are, each with its name; those that are known."""
    if clusters is None or not len(clusters.size_K):
        return []
    found = [(f"{len(clusters.size_K):,}", _how_many(clusters))]
    if clusters.inertia is not None:
        unit = "nats²" if clusters.scaling == "raw" else "scaled"
        found.append((f"{clusters.inertia:,.4g}", f"inertia, {unit}"))
    if clusters.silhouette is not None:
        found.append((f"{clusters.silhouette:.2f}", "silhouette"))
    if clusters.stability is not None:
        found.append((f"{clusters.stability:.2f}", "stability"))
    return [*found, (clusters.scaling, "scaling")]


def _how_many(clusters: ClusterView) -> str:
    """What the number of all clusters is made of."""
    per_stratum = sorted(Counter(clusters.stratum_K).values())
    few, many = per_stratum[0], per_stratum[-1]
    auto = "auto: " if clusters.tried else ""
    each = f"{few:,}" if few == many else f"{few:,} to {many:,}"
    if len(per_stratum) > 1:
        return f"clusters ({auto}{each} a stratum)"
    return f"clusters{' (auto)' if auto else ''}"


def figures(clusters: ClusterView | None) -> dict[str, Markup]:
    """The plots that can be drawn, by name, as markup that is already safe."""
    if clusters is None or not len(clusters.size_K):
        return {}
    trajectories = plots.trajectories_svg(
        clusters.centroid_KT,
        clusters.size_K,
        _cluster_names(clusters.stratum_K),
        steps=clusters.steps,
        selected_K=clusters.selected_K,
        scaling=clusters.scaling,
    )
    drawn = {"trajectories": Markup(trajectories)}  # noqa: S704 - drawn by us, text escaped
    if clusters.selected_K is not None:
        taken = plots.taken_svg(clusters.size_K, clusters.selected_K)
        drawn["taken"] = Markup(taken)  # noqa: S704 - drawn by us, text escaped
    if any(len(tried["num_clusters"]) > 1 for tried in clusters.tried.values()):
        ladders = plots.ladders_svg([clusters.tried[name] for name in _drawn_strata(clusters)])
        drawn["ladders"] = Markup(ladders)  # noqa: S704 - drawn by us, numbers alone
    return drawn


def _drawn_strata(clusters: ClusterView) -> list[str]:
    """The strata whose ladders are drawn: those of most examples."""
    rows = Counter[str]()
    for name, size in zip(clusters.stratum_K, clusters.size_K.tolist(), strict=True):
        rows[name] += size
    return sorted(clusters.tried, key=lambda name: (-rows[name], name))[: plots.MAX_LINES]


def cluster_facts(clusters: ClusterView | None) -> list[str]:
    """What the figures cannot show exactly: how many lines, how even the sizes, how much taken."""
    if clusters is None or not len(clusters.size_K):
        return []
    size_K, selected_K = clusters.size_K, clusters.selected_K
    facts = [
        f"{len(size_K):,} clusters of {size_K.min():,} to {size_K.max():,} examples, "
        f"median {np.median(size_K):,.0f}."
    ]
    if selected_K is not None:
        facts.append(
            f"{np.count_nonzero(selected_K == size_K):,} clusters are taken whole, "
            f"{np.count_nonzero(selected_K == 0):,} give nothing; "
            f"the most taken from one is {selected_K.max():,}."
        )
    if clusters.shrunk:
        names = [f"{name or 'all'}: {number:,}" for name, number in clusters.shrunk.items()]
        num_strata = len(set(clusters.stratum_K))
        where = f" in {len(names):,} of {num_strata:,} strata" if num_strata > 1 else ""
        facts.append(
            f"Fewer clusters than asked for{where} ({first(names)}): the sample had fewer distinct "
            "trajectories, or some clusters were left without any."
        )
    num_shown = len(plots.shown_clusters(size_K, selected_K))
    if num_shown < len(size_K):
        facts.append(f"{num_shown} of them are drawn, spread evenly over the sizes.")
    return facts


def _cluster_names(stratum_K: Sequence[str]) -> list[str]:
    """Cluster numbers, with the stratum where there is more than one."""
    if len(set(stratum_K)) < 2:
        return [f"cluster {k}" for k in range(len(stratum_K))]
    return [f"cluster {k} in {stratum}" for k, stratum in enumerate(stratum_K)]
