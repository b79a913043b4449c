"""Figures of a run as inline SVG: deterministic, transparent, readable on light and dark pages.

Text stays text: its colour and font come from the page.

Shapes: K clusters, T checkpoints.
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
    """Draw the mean loss of the clusters over training, at most MAX_LINES of them.

    Args:
        centroid_KT: float array (K, T), mean loss at each checkpoint, nats per token; without unit
            if the scaling is `shape`.
        size_K: int array (K,), examples in each cluster, which set the line's colour and width.
        names: K names; the figure shows those of the largest and of the most selected clusters.
        steps: T training steps; None numbers the checkpoints from 1.
        selected_K: int array (K,), examples selected from each cluster; None without a selection.
        scaling: the scaling of the clusters; with `shape` alone, centroids are not losses.
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
        figure.draw_without_rendering()  # fixes the limits, on which the labels depend
        _end_labels(axes, step_T, centroid_KT, names, labelled)
        return _svg(figure, "Mean loss of each cluster at each checkpoint")


def selected_svg(size_K: np.ndarray, selected_K: np.ndarray) -> str:
    """Draw each cluster's size against the number selected from it, on logarithmic axes.

    Clusters on the same dot are drawn as one dot, whose area grows with their number. So thousands
    of clusters stay as readable as ten.
    """
    with matplotlib.rc_context(_style("selected")):
        figure, axes = _figure(height=4.2)
        size_D, selected_D, count_D = merged_dots(size_K, selected_K)
        axes.scatter(size_D, selected_D, s=18 * np.sqrt(count_D), c=DOT_COLOUR, alpha=0.7, lw=0)
        _guides(axes, size_K, selected_K)
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=1, linscale=0.4)
        axes.set_ylim(bottom=-0.15)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(_thousands))
        axes.set_xlabel("examples in the cluster")
        axes.set_ylabel("examples selected")
        axes.legend(loc="upper left", frameon=False)
        return _svg(figure, "Size of each cluster against the number of examples selected from it")


def ladders_svg(ladders: Sequence[Mapping[str, Any]]) -> str:
    """Draw the spread for every number of clusters that was tried, a line for each stratum.

    Args:
        ladders: `num_clusters`, `spread` and `chosen` of each stratum, from the manifest of the
            clusters.
    """
    with matplotlib.rc_context(_style("ladders")):
        figure, axes = _figure(height=3.4)
        figure.subplots_adjust(bottom=0.16)
        alone = len(ladders) == 1
        for ladder in ladders:
            # The spread is zero if all rows lie on their centroids; zero has no logarithm.
            spread = np.maximum(ladder["spread"], LEAST_SPREAD)
            position = ladder["num_clusters"].index(ladder["chosen"])
            pen: dict[str, Any] = {
                "color": DOT_COLOUR,
                "alpha": 0.9 if alone else 0.35,
                "lw": 1.6 if alone else 1,
            }
            axes.plot(ladder["num_clusters"], spread, marker="o" if alone else "", ms=4, **pen)
            axes.plot(
                ladder["chosen"], spread[position], "o", ms=9 if alone else 5, c=CHOSEN_COLOUR
            )
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
    """Return the largest and the most selected clusters; ties go to the lowest cluster number."""
    biggest = np.argsort(-size_K, kind="stable")[:NUM_LABELLED]
    if selected_K is None:
        return sorted(biggest.tolist())
    # Many clusters give the same quota; the smallest of them are labelled.
    most = np.lexsort((size_K, -selected_K))[:NUM_LABELLED]
    return sorted({*biggest.tolist(), *most.tolist()})


def shown_clusters(size_K: np.ndarray, selected_K: np.ndarray | None) -> list[int]:
    """Return at most MAX_LINES clusters: the labelled ones, and others spread over the sizes."""
    if len(size_K) <= MAX_LINES:
        return list(range(len(size_K)))
    labelled = labelled_clusters(size_K, selected_K)
    by_size = [k for k in np.argsort(size_K, kind="stable").tolist() if k not in labelled]
    positions = np.linspace(0, len(by_size) - 1, MAX_LINES - len(labelled)).round().astype(int)
    return sorted({*labelled, *(by_size[position] for position in positions)})


def merged_dots(
    size_K: np.ndarray, selected_K: np.ndarray, *, cells_per_decade: int = 24
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return size, number selected and number of clusters of each dot, a cell of a log grid."""
    cell_K2 = np.stack([np.log10(np.maximum(size_K, 1)), np.log10(selected_K + 1)], axis=1)
    cell_K2 = np.round(cell_K2 * cells_per_decade).astype(np.int64)
    _, first_D, count_D = np.unique(cell_K2, axis=0, return_index=True, return_counts=True)
    return size_K[first_D], selected_K[first_D], count_D


def _style(salt: str) -> Any:
    """Return the settings, with a salt that makes the ids of each figure distinct."""
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
    """Draw one line for each cluster: labelled ones on top, and wide ones below narrow ones."""
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
    """Write names right of the lines' ends, and move them apart if the ends lie close together."""
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
    """Move ascending heights up until they are `gap` apart, and down again from above `top`."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    ceilings = [top - gap * above for above in reversed(range(len(placed)))]
    return [min(height, ceiling) for height, ceiling in zip(placed, ceilings, strict=True)]


def printable(text: str, limit: int = 24) -> str:
    """Return `text` short and without control characters, which SVG refuses."""
    clean = "".join(char if char.isprintable() else "?" for char in text)
    return clean if len(clean) <= limit else f"{clean[: limit - 3]}..."


def _guides(axes: Axes, size_K: np.ndarray, selected_K: np.ndarray) -> None:
    """Draw the line of clusters selected whole, and the average line of random sampling."""
    size_P = np.geomspace(max(1, size_K.min()), max(2, size_K.max()), 50)
    share = selected_K.sum() / size_K.sum()
    axes.plot(size_P, size_P, color=AXIS_COLOUR, lw=1, label="all of the cluster")
    at_random = f"{share:.1%} of the cluster, as random sampling"
    axes.plot(size_P, size_P * share, color="#d9662f", lw=1.2, ls="--", label=at_random)


def _thousands(value: float, _position: int) -> str:
    return f"{value:,.0f}"


def _percent(value: float, _position: int) -> str:
    return f"{100 * value:g}%"


def _svg(figure: Figure, label: str) -> str:
    """Return the bare <svg> element, without date, metadata, XML prologue or group ids."""
    buffer = io.StringIO()
    empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=empty)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    # Figures have the same group ids, which would clash on one page; nothing refers to them.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
