"""Figures of a run as inline SVG: deterministic, transparent, readable on light and dark pages.

K clusters, T checkpoints. Text stays text: its colour and font come from the page.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

MAX_LINES = 100
NUM_LABELLED = 3
AXIS_COLOUR = "#8b929c"
DOT_COLOUR = "#3f86c6"
CHOSEN_COLOUR = "#e0602a"
LEAST_SPREAD = 1e-4
SIZE_COLOURS = LinearSegmentedColormap.from_list("size", ["#58a9cf", "#8a86c8", "#e0602a"])
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": AXIS_COLOUR,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": AXIS_COLOUR,
    "grid.alpha": 0.25,
    "xtick.color": AXIS_COLOUR,
    "ytick.color": AXIS_COLOUR,
}


def trajectories_svg(
    centroid_KT: np.ndarray,
    size_K: np.ndarray,
    names: Sequence[str],
    *,
    steps: Sequence[int] | None,
    selected_K: np.ndarray | None,
    scaling: str = "raw",
) -> str:
    """Mean loss of every cluster over training, at most MAX_LINES of them.

    Args:
        centroid_KT: float array (K, T), mean loss at each checkpoint, nats per token; of shapes,
            in their unit.
        size_K: int array (K,), examples in each cluster: the line's colour and width.
        names: K names; those of the biggest and of the most selected clusters are written.
        steps: T training steps; None numbers the checkpoints from 1.
        selected_K: int array (K,), examples taken from each cluster, where a selection exists.
        scaling: that of the clusters; only `shape` leaves centroids that are no losses.
    """
    with matplotlib.rc_context(_style("trajectories")):
        figure, axes = _figure(height=4.6)
        figure.subplots_adjust(right=0.76)
        step_T = np.arange(1, centroid_KT.shape[1] + 1) if steps is None else np.asarray(steps)
        shown, labelled = shown_clusters(size_K, selected_K), labelled_clusters(size_K, selected_K)
        _lines(axes, step_T, centroid_KT, size_K, shown, labelled)
        axes.set_xlabel("training step" if steps is not None else "checkpoint")
        axes.set_ylabel("mean shape" if scaling == "shape" else "mean loss, nats per token")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.margins(x=0.01)
        figure.draw_without_rendering()  # fixes the limits, on which the places of labels depend
        _end_labels(axes, step_T, centroid_KT, names, labelled)
        return _svg(figure, "Mean loss of each cluster at each checkpoint")


def taken_svg(size_K: np.ndarray, selected_K: np.ndarray) -> str:
    """Each cluster's size against what was taken from it, on logarithmic axes.

    Clusters that would fall on the same dot are drawn as one, its area growing with their number,
    so thousands of clusters stay as readable as ten.
    """
    with matplotlib.rc_context(_style("taken")):
        figure, axes = _figure(height=4.2)
        size_D, taken_D, count_D = merged_dots(size_K, selected_K)
        axes.scatter(size_D, taken_D, s=18 * np.sqrt(count_D), c=DOT_COLOUR, alpha=0.7, lw=0)
        _guides(axes, size_K, selected_K)
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=1, linscale=0.4)
        axes.set_ylim(bottom=-0.15)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(_thousands))
        axes.set_xlabel("examples in the cluster")
        axes.set_ylabel("examples taken")
        axes.legend(loc="upper left", frameon=False)
        return _svg(figure, "Size of each cluster against the number of examples taken from it")


def ladders_svg(ladders: Sequence[Mapping[str, Any]]) -> str:
    """What every number of clusters that was tried came to, a line for each stratum.

    Args:
        ladders: `num_clusters`, `spread` and `chosen` of each, as in the manifest of clusters.
    """
    with matplotlib.rc_context(_style("ladders")):
        figure, axes = _figure(height=3.4)
        figure.subplots_adjust(bottom=0.16)
        alone = len(ladders) == 1
        for ladder in ladders:
            # Rows that lie on their centroids have no logarithm.
            spread = np.maximum(ladder["spread"], LEAST_SPREAD)
            place = ladder["num_clusters"].index(ladder["chosen"])
            pen: dict[str, Any] = {
                "color": DOT_COLOUR,
                "alpha": 0.9 if alone else 0.35,
                "lw": 1.6 if alone else 1,
            }
            axes.plot(ladder["num_clusters"], spread, marker="o" if alone else "", ms=4, **pen)
            axes.plot(ladder["chosen"], spread[place], "o", ms=9 if alone else 5, c=CHOSEN_COLOUR)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))
        axes.set_xlabel("clusters")
        axes.set_ylabel("spread left")
        dot = Line2D([], [], marker="o", ls="", c=CHOSEN_COLOUR, label="chosen")
        axes.legend(handles=[dot], loc="upper right", frameon=False)
        return _svg(figure, "Spread that is left with each number of clusters that was tried")


def labelled_clusters(size_K: np.ndarray, selected_K: np.ndarray | None) -> list[int]:
    """The biggest clusters and those that gave most, ties going to the lowest cluster number."""
    biggest = np.argsort(-size_K, kind="stable")[:NUM_LABELLED]
    if selected_K is None:
        return sorted(biggest.tolist())
    # Many clusters give the same quota; of those the smallest are the ones worth a name.
    most = np.lexsort((size_K, -selected_K))[:NUM_LABELLED]
    return sorted({*biggest.tolist(), *most.tolist()})


def shown_clusters(size_K: np.ndarray, selected_K: np.ndarray | None) -> list[int]:
    """At most MAX_LINES clusters: the labelled ones, and others spread evenly over the sizes."""
    if len(size_K) <= MAX_LINES:
        return list(range(len(size_K)))
    labelled = labelled_clusters(size_K, selected_K)
    by_size = [k for k in np.argsort(size_K, kind="stable").tolist() if k not in labelled]
    places = np.linspace(0, len(by_size) - 1, MAX_LINES - len(labelled)).round().astype(int)
    return sorted({*labelled, *(by_size[place] for place in places)})


def merged_dots(
    size_K: np.ndarray, selected_K: np.ndarray, *, cells_per_decade: int = 24
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Size, number taken and number of clusters of each dot; a dot is a cell of a log grid."""
    cell_K2 = np.stack([np.log10(np.maximum(size_K, 1)), np.log10(selected_K + 1)], axis=1)
    cell_K2 = np.round(cell_K2 * cells_per_decade).astype(np.int64)
    _, first_D, count_D = np.unique(cell_K2, axis=0, return_index=True, return_counts=True)
    return size_K[first_D], selected_K[first_D], count_D


def _style(salt: str) -> Any:
    """Our settings, and a salt that keeps the ids of one figure apart from another's."""
    return {**STYLE, "svg.hashsalt": salt}


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, height))
    figure.patch.set_alpha(0)
    FigureCanvasSVG(figure)
    figure.subplots_adjust(left=0.11, right=0.98, bottom=0.13, top=0.92)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    return figure, axes


def _lines(
    axes: Axes,
    step_T: np.ndarray,
    centroid_KT: np.ndarray,
    size_K: np.ndarray,
    shown: list[int],
    labelled: list[int],
) -> None:
    """One line a cluster, the labelled ones above the others; then the wider, the lower."""
    norm = LogNorm(vmin=max(1, int(size_K.min())), vmax=max(2, int(size_K.max())))
    marker = "o" if len(step_T) == 1 else ""
    for k in sorted(shown, key=lambda k: (k in labelled, -size_K[k], k)):
        alpha = 0.95 if k in labelled else 0.55
        pen = _pen(norm, size_K[k])
        axes.plot(step_T, centroid_KT[k], alpha=alpha, marker=marker, markersize=4, **pen)
    samples = sorted({int(size_K.min()), int(np.median(size_K)), int(size_K.max())})
    keys = [Line2D([], [], label=f"cluster of {n:,}", **_pen(norm, n)) for n in samples]
    axes.legend(handles=keys, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)


def _pen(norm: LogNorm, size: float) -> dict[str, Any]:
    depth = float(norm(max(size, 1)))
    return {"color": SIZE_COLOURS(depth), "linewidth": 0.7 + 2.6 * depth}


def _end_labels(
    axes: Axes,
    step_T: np.ndarray,
    centroid_KT: np.ndarray,
    names: Sequence[str],
    labelled: list[int],
) -> None:
    """Write names right of the lines' ends, pushed apart where the ends lie close together."""
    order = sorted(labelled, key=lambda k: (centroid_KT[k, -1], k))
    ends = [(step_T[-1], centroid_KT[k, -1]) for k in order]
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [to_axes.transform(end)[1] for end in ends]
    for k, end, height in zip(order, ends, spread(heights, gap=0.055), strict=True):
        axes.annotate(
            printable(names[k]),
            xy=end,
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            parse_math=False,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": AXIS_COLOUR, "lw": 0.7, "relpos": (0, 0.5)},
        )


def spread(heights: Sequence[float], *, gap: float, top: float = 1.0) -> list[float]:
    """Ascending heights, moved up until they are `gap` apart, and down again from above `top`."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    ceilings = [top - gap * above for above in reversed(range(len(placed)))]
    return [min(height, ceiling) for height, ceiling in zip(placed, ceilings, strict=True)]


def printable(text: str, limit: int = 24) -> str:
    """`text` on one line and short: SVG refuses control characters, and a label must fit."""
    clean = "".join(char if char.isprintable() else "?" for char in text)
    return clean if len(clean) <= limit else f"{clean[: limit - 3]}..."


def _guides(axes: Axes, size_K: np.ndarray, selected_K: np.ndarray) -> None:
    """Where all of a cluster is taken, and where sampling at random would lie on average."""
    size_P = np.geomspace(max(1, size_K.min()), max(2, size_K.max()), 50)
    share = selected_K.sum() / size_K.sum()
    axes.plot(size_P, size_P, color=AXIS_COLOUR, lw=1, label="all of it")
    at_random = f"{share:.1%} of it, as at random"
    axes.plot(size_P, size_P * share, color="#d9662f", lw=1.2, ls="--", label=at_random)


def _thousands(value: float, _position: int) -> str:
    return f"{value:,.0f}"


def _percent(value: float, _position: int) -> str:
    return f"{100 * value:g}%"


def _svg(figure: Figure, label: str) -> str:
    """The bare <svg> element, without date, metadata, XML prologue or group ids."""
    buffer = io.StringIO()
    empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=empty)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    # The same group ids in each figure would clash on one page; nothing refers to them.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
