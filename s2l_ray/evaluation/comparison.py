"""Means with intervals of one evaluated target, and paired differences of two.

The functions work on tables with the columns of `evaluation/items.parquet`.

Shapes: N items of a set, G strata.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from s2l_ray.evaluation import metrics
from s2l_ray.evaluation.metrics import Metric
from s2l_ray.intervals import (
    Interval,
    combined,
    macro_mean,
    mean_interval,
    paired_difference,
    paired_rate_difference,
    wilson_interval,
)

CONFIDENCE = 0.95
Weighting = Literal["items", "strata"]
KEYS = ["set", "file", "item"]
_OVER_STRATA = {
    "mean": "mean over strata, each counting the same; t interval from the variance inside each "
    "stratum",
    "rate": "mean over strata, each counting the same; the strata's Wilson intervals combined by "
    "MOVER",
}


def methods(of: Sequence[Metric]) -> dict[str, str]:
    """Return the method behind each number of `measure`.

    Paired differences use Student's t, and for rates Newcombe's interval (his method 10), combined
    over strata by MOVER.
    """
    over_items = {metric.key: metric.summary for metric in of}
    return over_items | {f"macro.{metric.key}": _OVER_STRATA[metric.statistic] for metric in of}


def measure(items: pa.Table) -> dict[str, Any]:
    """Return the metrics of one set: over its items, over strata equally, and by stratum.

    Args:
        items: stratum, and the columns of metrics, loss_nats among them, null where an item has no
            number; at least one row. A metric without any number is left out, but the loss.

    Returns:
        JSON values; None if nothing was measured, or the items do not show their spread.
    """
    found = [m for m in metrics.of_columns(items.column_names) if metrics.has_values(m, items)]
    strata = np.array(items["stratum"].to_pylist(), str)
    name_G, group_N, size_G = np.unique(strata, return_inverse=True, return_counts=True)
    values = {metric: _values(items, metric) for metric in found}
    return {
        "items": items.num_rows,
        **{m.key: _described(m, value_N) for m, value_N in values.items()},
        "macro": {
            "strata": len(name_G),
            **{m.key: _macro(m, value_N, group_N) for m, value_N in values.items()},
        },
        "strata": {
            name: {
                "items": int(size),
                **{m.key: _described(m, v_N[group_N == g]) for m, v_N in values.items()},
            }
            for g, (name, size) in enumerate(zip(name_G.tolist(), size_G, strict=True))
        },
    }


@dataclass(frozen=True)
class PairedDifference:
    """The mean of a - b over the items that both targets were evaluated on, with its interval.

    Attributes:
        metric: the name of a metric: loss in nats per token, the others as shares.
        over: whether every item or every stratum counts the same.
        num_items: pairs in the mean.
        num_unpaired: items of the set without a value from both.
        low: None, like `high`, if the pairs do not show their spread.
    """

    set: str
    metric: str
    over: Weighting
    num_items: int
    num_unpaired: int
    difference: float
    low: float | None
    high: float | None


def compare(items_a: pa.Table, items_b: pa.Table) -> list[PairedDifference]:
    """Return the differences of `items_a` minus `items_b` for each set, in the order of `items_a`.

    Items are paired by set, file and row. All metrics are compared that both tables have columns
    of; one without a pair is left out.

    Args:
        items_a: set, file, item, stratum, and the columns of metrics; others are ignored.
        items_b: the same; its strata are ignored.
    """
    found = [
        m for m in metrics.of_columns(items_a.column_names) if m.column in items_b.column_names
    ]
    columns = [*KEYS, "stratum", *(metric.column for metric in found)]
    items_a, items_b = items_a.select(columns), items_b.select(columns)
    return [
        difference
        for name in pc.unique(items_a["set"]).to_pylist()
        for difference in _compare_set(name, _of_set(items_a, name), _of_set(items_b, name), found)
    ]


def _values(items: pa.Table, metric: Metric) -> np.ndarray:
    """Return the numbers of a metric, NaN where an item has none: float64 (N,)."""
    return np.asarray(pc.fill_null(items[metric.column].cast(pa.float64()), math.nan))


def _described(metric: Metric, value_N: np.ndarray) -> dict[str, Any]:
    value_N = value_N[~np.isnan(value_N)]
    if not len(value_N):
        return _as_json(metric, None, 0)
    return _as_json(metric, _interval(metric, value_N), len(value_N))


def _macro(metric: Metric, value_N: np.ndarray, group_N: np.ndarray) -> dict[str, Any]:
    """Describe the mean over the strata that have numbers."""
    has_N = ~np.isnan(value_N)
    value_N, group_N = value_N[has_N], group_N[has_N]
    if not len(value_N):
        return _as_json(metric, None, 0)
    if metric.is_rate:
        groups = [value_N[group_N == g] for g in np.unique(group_N)]
        interval = combined([_interval(metric, group) for group in groups])
    else:
        interval = macro_mean(value_N, group_N, CONFIDENCE)
    return _as_json(metric, interval, len(value_N))


def _interval(metric: Metric, value_N: np.ndarray) -> Interval:
    if metric.is_rate:
        return wilson_interval(int(value_N.sum()), len(value_N), CONFIDENCE)
    return mean_interval(value_N, CONFIDENCE)


def _as_json(metric: Metric, interval: Interval | None, num_items: int) -> dict[str, Any]:
    return {
        metric.statistic: interval and interval.estimate,
        "low": interval and interval.low,
        "high": interval and interval.high,
        "items": num_items,
    }


def _of_set(items: pa.Table, name: str) -> pa.Table:
    return items.filter(pc.equal(items["set"], name))


def _compare_set(
    name: str, items_a: pa.Table, items_b: pa.Table, found: Sequence[Metric]
) -> list[PairedDifference]:
    pairs = items_a.join(
        items_b.drop_columns("stratum"), KEYS, join_type="inner", right_suffix="_b"
    ).sort_by([(key, "ascending") for key in KEYS])
    num_items = items_a.num_rows + items_b.num_rows - pairs.num_rows
    return [
        difference
        for metric in found
        for difference in _differences(name, metric, pairs, num_items)
    ]


def _differences(
    name: str, metric: Metric, pairs: pa.Table, num_items: int
) -> Iterator[PairedDifference]:
    """Yield the difference over items and the one over strata; nothing if there is no pair."""
    sides = (metric.column, f"{metric.column}_b")
    pairs = pairs.filter(pc.and_(*(pairs[side].is_valid() for side in sides)))
    if not pairs.num_rows:
        return
    a_N, b_N = (pairs[side].to_numpy() for side in sides)
    interval_of: Callable[..., Interval] = paired_difference
    if metric.is_rate:
        a_N, b_N, interval_of = a_N.astype(bool), b_N.astype(bool), paired_rate_difference
    stratum_N = np.array(pairs["stratum"].to_pylist(), str)
    weightings: list[tuple[Weighting, np.ndarray | None]] = [
        ("items", None),
        ("strata", stratum_N),
    ]
    for over, group_N in weightings:
        interval = interval_of(a_N, b_N, group_N, CONFIDENCE)
        yield PairedDifference(
            set=name,
            metric=metric.name,
            over=over,
            num_items=pairs.num_rows,
            num_unpaired=num_items - pairs.num_rows,
            difference=interval.estimate,
            low=interval.low,
            high=interval.high,
        )
