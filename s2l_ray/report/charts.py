"""Charts of the page: Vega-Lite specifications, their rows, and what they show in words.

Colours of the form `@accent` are those of the page's theme. The page fills in rows and width.

Shapes: K clusters, T checkpoints.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from s2l_ray.report import numbers
from s2l_ray.report.clusters import ClusterView, shown_clusters
from s2l_ray.report.lengths import Lengths, histogram, median
from s2l_ray.report.strata import STRATUM, StratumLine

Spec = dict[str, Any]
MAX_LINES = 100
MAX_BARS = 24
LEAST_SPREAD = 1e-4
LEGEND = {"orient": "top", "title": None, "symbolType": "square"}


@dataclass(frozen=True)
class Chart:
    """A chart; `rows` are also the table that the page offers for download."""

    name: str
    words: str
    """What it shows, for those who do not see it."""
    spec: Spec
    rows: Sequence[Mapping[str, Any]]
    choice: str = ""
    """The column whose values the reader chooses from; empty if the chart shows all rows."""


def quantitative(column: str, title: str | None, **more: Any) -> Spec:
    return {"field": column, "type": "quantitative", "title": title, **more}


def nominal(column: str, title: str | None, **more: Any) -> Spec:
    return {"field": column, "type": "nominal", "title": title, **more}


def tooltip(*columns: str) -> list[Spec]:
    return [{"field": column, "type": "nominal"} for column in columns]


def cluster_charts(clusters: ClusterView | None) -> list[Chart]:
    """Return the charts of the clusters that can be drawn."""
    if clusters is None or not len(clusters.size_K):
        return []
    charts = [trajectories(clusters)]
    if clusters.selected_K is not None:
        charts.append(selected(clusters.size_K, clusters.selected_K))
    if any(len(tried["num_clusters"]) > 1 for tried in clusters.tried.values()):
        charts.append(ladders(clusters))
    return charts


def trajectories(clusters: ClusterView) -> Chart:
    """Draw the mean loss of the clusters over training, at most MAX_LINES of them."""
    size_K, mean_KT = clusters.size_K, clusters.centroid_KT
    shown = shown_clusters(size_K, clusters.selected_K, MAX_LINES)
    steps = clusters.steps or range(1, mean_KT.shape[1] + 1)
    rows = [
        {
            "cluster": k,
            "stratum": numbers.name(clusters.stratum_K[k]),
            "examples": int(size_K[k]),
            "step": step,
            "loss": float(mean_KT[k, t]),
        }
        for k in shown
        for t, step in enumerate(steps)
    ]
    title = "mean shape" if clusters.scaling == "shape" else "mean loss, nats per token"
    size = quantitative(
        "examples",
        "examples in the cluster",
        scale={"type": "log", "range": ["@cool", "@accent", "@warm"], "interpolate": "rgb"},
        legend={
            "orient": "top",
            "symbolType": "stroke",
            "values": sorted({int(size_K.min()), int(np.median(size_K)), int(size_K.max())}),
        },
    )
    spec = {
        "height": 320,
        "mark": {"type": "line", "strokeWidth": 1.4, "opacity": 0.75, "point": {"size": 14}},
        "encoding": {
            "x": quantitative("step", _step_title(clusters), scale={"nice": False, "zero": False}),
            "y": quantitative("loss", title, scale={"zero": False}),
            "detail": {"field": "cluster"},
            "color": size,
            "order": {"field": "step"},
            "tooltip": tooltip("cluster", "stratum", "examples", "step", "loss"),
        },
    }
    first, last = mean_KT[:, 0], mean_KT[:, -1]
    words = (
        f"Lines of {len(shown):,} clusters over {mean_KT.shape[1]} checkpoints. At the first "
        f"checkpoint they lie between {first.min():.3g} and {first.max():.3g}, at the last between "
        f"{last.min():.3g} and {last.max():.3g}."
    )
    return Chart("trajectories", words, spec, rows)


def selected(size_K: np.ndarray, selected_K: np.ndarray) -> Chart:
    """Draw each cluster's size against the number selected from it, on logarithmic axes.

    Clusters on the same dot are drawn as one, whose area grows with their number. So thousands of
    clusters stay as readable as ten.
    """
    size_D, selected_D, count_D = merged_dots(size_K, selected_K)
    rows = [
        {"size": int(size), "selected": int(taken), "clusters": int(number), "guide": ""}
        for size, taken, number in zip(size_D, selected_D, count_D, strict=True)
    ]
    share = selected_K.sum() / size_K.sum()
    ends = (max(1, int(size_K.min())), max(2, int(size_K.max())))
    at_random = f"{numbers.share(share)}, as random sampling"
    guides = [
        {"size": size, "selected": size * part, "guide": guide}
        for guide, part in (("the whole cluster", 1.0), (at_random, share))
        for size in np.geomspace(*ends, 40).tolist()
    ]
    axes = {
        "x": quantitative(
            "size", "examples in the cluster", scale={"type": "log", "nice": False, "padding": 8}
        ),
        "y": quantitative("selected", "examples selected", scale={"type": "symlog"}),
    }
    dots = {
        "mark": {"type": "circle", "color": "@accent", "opacity": 0.75},
        "encoding": {
            **axes,
            "size": quantitative("clusters", None, legend=None, scale={"range": [40, 400]}),
            "tooltip": tooltip("size", "selected", "clusters"),
        },
    }
    lines = {
        "data": {"values": guides},
        "mark": {"type": "line", "strokeWidth": 1.2},
        "encoding": {
            **axes,
            "strokeDash": nominal("guide", None, legend={**LEGEND, "symbolType": "stroke"}),
            "color": {"value": "@warm"},
        },
    }
    words = (
        f"{len(size_K):,} clusters of {size_K.min():,} to {size_K.max():,} examples; from "
        f"{selected_K.min():,} to {selected_K.max():,} are selected of each."
    )
    return Chart("selected", words, {"height": 280, "layer": [lines, dots]}, rows)


def ladders(clusters: ClusterView) -> Chart:
    """Draw the spread for every number of clusters that was tried, a line for each stratum."""
    rows_of = Counter[str]()
    for stratum, size in zip(clusters.stratum_K, clusters.size_K.tolist(), strict=True):
        rows_of[stratum] += size
    unnamed = "(none)" if len(rows_of) > 1 else "all"
    drawn = sorted(clusters.tried, key=lambda stratum: (-rows_of[stratum], stratum))[:MAX_LINES]
    rows = [
        {
            "stratum": numbers.name(stratum) or unnamed,
            "clusters": number,
            # The spread is zero if all rows lie on their centroids; zero has no logarithm.
            "spread": max(float(spread), LEAST_SPREAD),
            "chosen": number == clusters.tried[stratum]["chosen"],
        }
        for stratum in drawn
        for number, spread in zip(
            clusters.tried[stratum]["num_clusters"], clusters.tried[stratum]["spread"], strict=True
        )
    ]
    encoding = {
        "x": quantitative("clusters", "clusters", scale={"type": "log", "base": 2}),
        "y": quantitative(
            "spread", "spread left", scale={"type": "log"}, axis={"format": "~%", "tickCount": 5}
        ),
        "detail": {"field": "stratum"},
        "tooltip": tooltip("stratum", "clusters", "spread", "chosen"),
    }
    line = {"type": "line", "color": "@accent", "opacity": 0.9 if len(drawn) == 1 else 0.4}
    chosen = {"type": "point", "filled": True, "color": "@warm", "size": 70, "opacity": 1}
    spec = {
        "height": 240,
        "encoding": encoding,
        "layer": [{"mark": line}, {"mark": chosen, "transform": [{"filter": "datum.chosen"}]}],
    }
    words = f"Spread left in {numbers.counted(len(drawn), 'stratum')} with each number of clusters."
    return Chart("ladders", words.replace("stratums", "strata"), spec, rows)


def strata(lines: Sequence[StratumLine], label: str = STRATUM) -> Chart | None:
    """Draw the share of each stratum in the pool and in the subset; `label` is what they are."""
    num_pool = sum(line.num_examples for line in lines)
    num_selected = sum(line.num_selected for line in lines)
    if not lines or not num_selected:
        return None
    ordered = sorted(lines, key=lambda line: (-line.num_examples, line.name))[:MAX_BARS]
    names = distinct([line.name or "(none)" for line in ordered])
    # A path in Vega may hold more than a plain name.
    is_plain = label.isidentifier() and label not in ("part", "examples", "share")
    column = label if is_plain else STRATUM
    rows = [
        {column: name, "part": part, "examples": number, "share": number / whole}
        for name, line in zip(names, ordered, strict=True)
        for part, number, whole in (
            ("pool", line.num_examples, num_pool),
            ("subset", line.num_selected, num_selected),
        )
    ]
    encoding = {
        "y": nominal(column, None, sort=names, axis={"labelPadding": 6}),
        "x": quantitative("share", "share of rows", axis={"format": "~%", "tickCount": 5}),
        "tooltip": tooltip(column, "part", "examples", "share"),
    }
    dots = {
        "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
        "encoding": {"color": _parts_colour()},
    }
    bridge = {
        "mark": {"type": "line", "color": "@rule", "strokeWidth": 3},
        "encoding": {"detail": {"field": column}},
    }
    spec = {"height": 20 * len(names), "encoding": encoding, "layer": [bridge, dots]}
    first = ordered[0]
    words = (
        f"Share of {len(ordered):,} strata in pool and subset, by {numbers.name(label)}. The "
        f"largest, {names[0]}, is "
        f"{numbers.share(first.num_examples, num_pool)} of the pool and "
        f"{numbers.share(first.num_selected, num_selected)} of the subset."
    )
    return Chart("strata", words, spec, rows)


def lengths(found: Lengths | None) -> Chart | None:
    """Draw how the tokens of examples are distributed in the pool and in the subset."""
    if found is None:
        return None
    rows = histogram(found)
    spec = {
        "height": 220,
        "mark": {"type": "line", "interpolate": "step", "strokeWidth": 2},
        "encoding": {
            "x": quantitative("from", "tokens, prompt and response", scale={"nice": False}),
            "y": quantitative("share", "share of rows", axis={"format": "~%", "tickCount": 5}),
            "color": _parts_colour(),
            "tooltip": tooltip("part", "from", "to", "examples", "share"),
        },
    }
    words = f"The median example of the pool has {median(found.pool_L):,} tokens"
    if found.selected_L is not None:
        words += f", that of the subset {median(found.selected_L):,}"
    return Chart("lengths", f"{words}.", spec, rows)


def merged_dots(
    size_K: np.ndarray, selected_K: np.ndarray, *, cells_per_decade: int = 24
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return size, number selected and number of clusters of each dot, a cell of a log grid."""
    cell_K2 = np.stack([np.log10(np.maximum(size_K, 1)), np.log10(selected_K + 1)], axis=1)
    cell_K2 = np.round(cell_K2 * cells_per_decade).astype(np.int64)
    _, first_D, count_D = np.unique(cell_K2, axis=0, return_index=True, return_counts=True)
    return size_K[first_D], selected_K[first_D], count_D


def _parts_colour() -> Spec:
    scale = {"domain": ["pool", "subset"], "range": ["@muted", "@accent"]}
    return nominal("part", None, scale=scale, legend=LEGEND)


def _step_title(clusters: ClusterView) -> str:
    return "training step" if clusters.steps is not None else "checkpoint"


def distinct(names: Sequence[str]) -> list[str]:
    """Return short names; those that would be equal get numbers."""
    short = [numbers.name(name, 32) for name in names]
    seen = Counter[str]()
    distinct = []
    for name in short:
        seen[name] += 1
        distinct.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return distinct
