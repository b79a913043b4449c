"""Charts of the trainings: the losses of reference and target, step by step."""

from collections.abc import Mapping, Sequence

from s2l_ray.report import numbers
from s2l_ray.report.charts import LEGEND, Chart, distinct, nominal, quantitative, tooltip

SUBSET = "the subset"
"""The rows that the target is trained on, in the legend of its losses."""


def reference(curve: Sequence[tuple[int, float]]) -> Chart | None:
    """Draw the loss of the reference over its training."""
    if len(curve) < 2:
        return None
    rows = [{"step": step, "loss": loss} for step, loss in curve]
    spec = {
        "height": 220,
        "mark": {"type": "line", "color": "@accent", "strokeWidth": 2},
        "encoding": {
            "x": quantitative("step", "step", scale={"nice": False}),
            "y": quantitative("loss", "loss, nats per token", scale={"zero": False}),
            "tooltip": tooltip("step", "loss"),
        },
    }
    words = (
        f"The loss falls from {curve[0][1]:.3g} to {curve[-1][1]:.3g} nats per token in "
        f"{curve[-1][0]:,} steps."
    )
    return Chart("training", words, spec, rows)


def target(
    curve: Sequence[tuple[int, float]], held_out: Sequence[tuple[int, Mapping[str, float]]]
) -> Chart | None:
    """Draw the loss of the target over its training, on the subset and on held-out sets."""
    if len(curve) < 2:
        return None
    sets = list(dict.fromkeys(name for _, losses in held_out for name in losses))
    labels = dict(zip(sets, distinct([f"held out: {name}" for name in sets]), strict=True))
    rows = [{"rows": SUBSET, "step": step, "loss": loss} for step, loss in curve]
    rows += [
        {"rows": labels[name], "step": step, "loss": loss}
        for step, losses in held_out
        for name, loss in losses.items()
    ]
    scale = {"domain": [SUBSET, *labels.values()], "range": ["@series"]}
    spec = {
        "height": 240,
        "mark": {"type": "line", "strokeWidth": 2, "point": {"size": 18}},
        "encoding": {
            "x": quantitative("step", "step", scale={"nice": False}),
            "y": quantitative("loss", "loss, nats per token", scale={"zero": False}),
            "color": nominal("rows", None, scale=scale, legend={**LEGEND, "columns": 3}),
            "tooltip": tooltip("rows", "step", "loss"),
        },
    }
    words = (
        f"The loss on the subset goes from {curve[0][1]:.3g} to {curve[-1][1]:.3g} nats per token "
        f"in {curve[-1][0]:,} steps."
    )
    for name in sets:
        measured = [(losses[name], step) for step, losses in held_out if name in losses]
        lowest, step = min(measured)
        words += (
            f" On {numbers.name(name)} it is {measured[-1][0]:.3g} at the end, and lowest, "
            f"{lowest:.3g}, after step {step:,}."
        )
    return Chart("target", words, spec, rows)
