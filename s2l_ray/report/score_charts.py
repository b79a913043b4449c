"""Charts of scores: the arms of one set beside each other, and scores over budgets."""

from collections.abc import Sequence
from typing import Any

from s2l_ray.report import numbers
from s2l_ray.report.charts import LEGEND, Chart, Spec, nominal, quantitative, tooltip
from s2l_ray.report.comparison import (
    ALL_DATA,
    NO_TRAINING,
    RANDOM,
    ComparedArm,
    ComparisonView,
    metric_title,
)
from s2l_ray.report.contents import ArmScore

MAX_SPREAD = 4.0
"""The untrained model is drawn if it is at most so many times the others' range away from them."""


def compared(view: ComparisonView | None) -> Chart | None:
    """Draw the arms beside the run's own, with their intervals and the mean of random subsets."""
    if view is None or view.own is None:
        return None
    arms = [arm for arm in view.beside(view.own) if arm.mean is not None]
    rows = [_row(arm.label, arm.mean, arm.low, arm.high, arm is view.own) for arm in _near(arms)]
    baseline = next((arm.mean for arm in arms if arm.method == RANDOM), None)
    return _arms_chart(rows, view.own.metric, view.own.set, baseline)


def scored(scores: Sequence[ArmScore]) -> Chart | None:
    """Draw the loss of the arms on the first set of an evaluation."""
    first = [
        score for score in scores if score.set == scores[0].set and score.loss_nats is not None
    ]
    if not first:
        return None
    rows = [
        _row(score.arm, score.loss_nats, score.loss_low, score.loss_high, score is scores[0])
        for score in first
    ]
    metric = "macro-loss" if first[0].num_strata > 1 else "loss"
    baseline = next((score.loss_nats for score in first if score.arm == RANDOM), None)
    return _arms_chart(rows, metric, first[0].set, baseline)


def budgets(view: ComparisonView | None) -> Chart | None:
    """Draw the score over the number of examples; the reader chooses the set and the metric."""
    arms = [
        arm
        for arm in (view.arms if view else ())
        if arm.mean is not None and arm.examples and arm.method != NO_TRAINING
    ]
    if not arms:
        return None
    labels = list(dict.fromkeys(numbers.name(arm.label) for arm in arms))
    rows = [
        {
            "shown": f"{numbers.name(arm.set)}: {numbers.name(arm.metric)}",
            "method": numbers.name(arm.label),
            "examples": arm.examples,
            "mean": arm.mean,
            "low": arm.low,
            "high": arm.high,
        }
        for arm in arms
    ]
    colour = nominal(
        "method",
        None,
        scale={"domain": labels, "range": ["@series"]},
        legend={**LEGEND, "columns": 4, "symbolType": "circle"},
    )
    x = quantitative(
        "examples", "examples trained on", scale={"type": "log", "nice": False, "padding": 16}
    )
    common = {
        "x": x,
        "color": colour,
        "tooltip": tooltip("method", "examples", "mean", "low", "high"),
    }
    mean = quantitative("mean", "score, with its interval", scale={"zero": False})
    spec = {
        "height": 300,
        "encoding": common,
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 1.6}, "encoding": {"y": mean}},
            {
                "mark": {"type": "rule", "strokeWidth": 1.6, "opacity": 0.55},
                "encoding": {"y": {**mean, "field": "low"}, "y2": {"field": "high"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                "encoding": {"y": mean},
            },
        ],
    }
    words = (
        f"Scores of {numbers.counted(len(labels), 'method')} over the number of examples that the "
        "target was trained on. The table below has all numbers."
    )
    return Chart("budgets", words, spec, rows, choice="shown")


def _arms_chart(
    rows: Sequence[dict[str, Any]], metric: str, set_name: str, baseline: float | None
) -> Chart:
    title = metric_title(metric)
    names = [row["arm"] for row in rows]
    own = {"condition": {"test": "datum.own", "value": "@accent"}, "value": "@muted"}
    axes = {"y": nominal("arm", None, sort=names, axis={"labelPadding": 8}), "color": own}
    mean = quantitative("mean", title, scale={"zero": False}, axis={"tickCount": 5})
    about = tooltip("arm", "mean", "low", "high")
    layers: list[Spec] = [
        {
            "mark": {"type": "rule", "strokeWidth": 3, "opacity": 0.6},
            "encoding": {**axes, "x": {**mean, "field": "low"}, "x2": {"field": "high"}},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
            "encoding": {**axes, "x": mean, "tooltip": about},
        },
    ]
    if baseline is not None:
        line = {"type": "rule", "strokeDash": [4, 4], "color": "@warm", "strokeWidth": 1.5}
        data = {"values": [{"mean": baseline}]}
        layers.insert(0, {"data": data, "mark": line, "encoding": {"x": mean}})
    listed = "; ".join(_in_words(row) for row in rows)
    words = f"{title[0].upper()}{title[1:]}, on {numbers.name(set_name)}: {listed}."
    return Chart("headline", words, {"height": 34 * len(names), "layer": layers}, rows)


def _row(
    label: str, mean: float | None, low: float | None, high: float | None, is_own: bool
) -> dict[str, Any]:
    return {"arm": numbers.name(label, 28), "mean": mean, "low": low, "high": high, "own": is_own}


def _in_words(row: dict[str, Any]) -> str:
    if row["low"] is None or row["high"] is None:
        return f"{row['arm']} {row['mean']:.4g}"
    return f"{row['arm']} {row['mean']:.4g} ({row['low']:.4g} to {row['high']:.4g})"


def _near(arms: Sequence[ComparedArm]) -> list[ComparedArm]:
    """Return the arms without an untrained one so far away that it would hide the others."""
    means = [arm.mean for arm in arms if arm.method != NO_TRAINING and arm.mean is not None]
    if not means:
        return list(arms)
    reach = MAX_SPREAD * (max(means) - min(means))
    order = {ALL_DATA: 1, NO_TRAINING: 2}
    near = [
        arm
        for arm in arms
        if arm.mean is not None and min(means) - reach <= arm.mean <= max(means) + reach
    ]
    return sorted(near, key=lambda arm: order.get(arm.method, 0))
