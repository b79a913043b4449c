"""Means with intervals of one evaluated target, and paired differences of two.

The functions work on tables with the columns of `evaluation/items.parquet`.

Shapes: N items of a set, G strata.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
METHODS = {
    "loss_nats": "mean over items, Student's t interval",
    "exact_match": "share of items whose final answer is right, Wilson score interval",
    "macro.loss_nats": "mean over strata, each counting the same; t interval from the variance "
    "inside each stratum",
    "macro.exact_match": "mean over strata, each counting the same; the strata's Wilson intervals "
    "combined by MOVER",
}
"""The method behind each number of `measure`. Paired differences use Student's t for losses, and
Newcombe's interval (his method 10) for exact match, combined over strata by MOVER."""

Metric = Literal["loss", "exact match"]
Weighting = Literal["items", "strata"]
KEYS = ["set", "file", "item"]
MEASURED = ["stratum", "loss_nats", "correct"]


def measure(items: pa.Table) -> dict[str, Any]:
    """Return loss and exact match of one set: over its items, over strata equally, and by stratum.

    Args:
        items: stratum, loss_nats (null if an item has none), correct; at least one row.

    Returns:
        JSON values; None if nothing was measured, or the items do not show their spread.
    """
    scores = _Scores.of(items)
    groups = scores.by_stratum()
    return {
        "items": len(scores.correct_N),
        **scores.plain(),
        "macro": {"strata": len(groups), **scores.macro()},
        "strata": {
            name: {"items": len(group.correct_N), **group.plain()} for name, group in groups.items()
        },
    }


@dataclass(frozen=True)
class PairedDifference:
    """The mean of a - b over the items that both targets were evaluated on, with its interval.

    Attributes:
        metric: loss in nats per token, exact match as a share.
        over: whether every item or every stratum counts the same.
        num_items: pairs in the mean.
        num_unpaired: items of the set without a value from both.
        low: None, like `high`, if the pairs do not show their spread.
    """

    set: str
    metric: Metric
    over: Weighting
    num_items: int
    num_unpaired: int
    difference: float
    low: float | None
    high: float | None


def compare(items_a: pa.Table, items_b: pa.Table) -> list[PairedDifference]:
    """Return the differences of `items_a` minus `items_b` for each set, in the order of `items_a`.

    Items are paired by set, file and row. A metric without a pair is left out.

    Args:
        items_a: set, file, item, stratum, loss_nats, correct; other columns are ignored.
        items_b: the same; its strata are ignored.
    """
    return [
        difference
        for name in pc.unique(items_a["set"]).to_pylist()
        for difference in _compare_set(name, _of_set(items_a, name), _of_set(items_b, name))
    ]


@dataclass(frozen=True)
class _Scores:
    """The columns of some items; loss_N is NaN for an item without a loss."""

    loss_N: np.ndarray
    correct_N: np.ndarray
    stratum_N: np.ndarray

    @classmethod
    def of(cls, items: pa.Table) -> "_Scores":
        loss = pc.fill_null(items["loss_nats"].cast(pa.float64()), math.nan)
        strata = items["stratum"].to_pylist()
        return cls(loss.to_numpy(), items["correct"].to_numpy(), np.array(strata, object))

    def where(self, keep_N: np.ndarray) -> "_Scores":
        return _Scores(self.loss_N[keep_N], self.correct_N[keep_N], self.stratum_N[keep_N])

    def by_stratum(self) -> dict[str, "_Scores"]:
        return {name: self.where(self.stratum_N == name) for name in sorted(set(self.stratum_N))}

    def plain(self) -> dict[str, Any]:
        loss_N = self.loss_N[~np.isnan(self.loss_N)]
        mean = mean_interval(loss_N, CONFIDENCE) if len(loss_N) else None
        rate = wilson_interval(int(self.correct_N.sum()), len(self.correct_N), CONFIDENCE)
        return _described(mean, len(loss_N), rate)

    def macro(self) -> dict[str, Any]:
        with_loss = self.where(~np.isnan(self.loss_N))
        loss_N, stratum_N = with_loss.loss_N, with_loss.stratum_N.astype(str)
        mean = macro_mean(loss_N, stratum_N, CONFIDENCE) if len(loss_N) else None
        groups = [group.correct_N for group in self.by_stratum().values()]
        rates = [wilson_interval(int(group.sum()), len(group), CONFIDENCE) for group in groups]
        return _described(mean, len(loss_N), combined(rates))


def _described(mean: Interval | None, num_losses: int, rate: Interval) -> dict[str, Any]:
    return {
        "loss_nats": {
            "mean": mean and mean.estimate,
            "low": mean and mean.low,
            "high": mean and mean.high,
            "items": num_losses,
        },
        "exact_match": {"rate": rate.estimate, "low": rate.low, "high": rate.high},
    }


def _of_set(items: pa.Table, name: str) -> pa.Table:
    return items.select(KEYS + MEASURED).filter(pc.equal(items["set"], name))


def _compare_set(name: str, items_a: pa.Table, items_b: pa.Table) -> list[PairedDifference]:
    pairs = items_a.join(
        items_b.drop_columns("stratum"), KEYS, join_type="inner", right_suffix="_b"
    ).sort_by([(key, "ascending") for key in KEYS])
    num_items = items_a.num_rows + items_b.num_rows - pairs.num_rows
    with_loss = pairs.filter(
        pc.and_(pairs["loss_nats"].is_valid(), pairs["loss_nats_b"].is_valid())
    )
    return [
        *_differences(name, "loss", with_loss, "loss_nats", num_items),
        *_differences(name, "exact match", pairs, "correct", num_items),
    ]


def _differences(
    name: str, metric: Metric, pairs: pa.Table, column: str, num_items: int
) -> Iterator[PairedDifference]:
    """Yield the difference over items and the one over strata; nothing if there is no pair."""
    if not pairs.num_rows:
        return
    a_N, b_N = (pairs[side].to_numpy() for side in (column, f"{column}_b"))
    interval_of = paired_rate_difference if metric == "exact match" else paired_difference
    stratum_N = np.array(pairs["stratum"].to_pylist(), str)
    weightings: list[tuple[Weighting, np.ndarray | None]] = [
        ("items", None),
        ("strata", stratum_N),
    ]
    for over, group_N in weightings:
        interval = interval_of(a_N, b_N, group_N, CONFIDENCE)
        yield PairedDifference(
            set=name,
            metric=metric,
            over=over,
            num_items=pairs.num_rows,
            num_unpaired=num_items - pairs.num_rows,
            difference=interval.estimate,
            low=interval.low,
            high=interval.high,
        )
