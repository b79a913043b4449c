"""What the page says in words: its first sentences, and which arm is better."""

from s2l_ray.notation import flops
from s2l_ray.report import numbers
from s2l_ray.report.comparison import RANDOM, ComparedArm, metric_title
from s2l_ray.report.contents import Comparison, ReportData
from s2l_ray.report.numbers import counted, duration

SELECTING = ("prepare", "reference", "trajectories", "clusters", "selection")
"""Stages whose seconds are the cost of a selection."""
SIGNIFICANT = 0.05
"""The p-value below which an arm of a comparison is called better or worse."""


def lead(report: ReportData) -> str:
    """Describe the run in one sentence, from the parts that are known."""
    clauses = []
    if report.counts:
        counts = report.counts
        clauses.append(f"of {counts.num_rows:,} rows read, {counts.num_kept:,} became examples")
    clusters = report.clusters
    if clusters:
        num_strata = len(set(clusters.stratum_K))
        inside = f" inside {num_strata:,} strata" if num_strata > 1 else ""
        clauses.append(
            f"the loss trajectories of {clusters.size_K.sum():,} examples over "
            f"{clusters.centroid_KT.shape[1]} checkpoints form {len(clusters.size_K):,} "
            f"clusters{inside}"
        )
    if clusters and clusters.selected_K is not None:
        num_selected = int(clusters.selected_K.sum())
        clauses.append(f"{num_selected:,} ({num_selected / clusters.size_K.sum():.1%}) are chosen")
    if report.evaluation:
        arms = len({score.arm for score in report.evaluation})
        sets = len({score.set for score in report.evaluation})
        clauses.append(f"{counted(arms, 'arm')} evaluated on {counted(sets, 'held-out set')}")
    sentence = "; ".join(clauses) or "nothing has been measured yet"
    return f"{sentence[0].upper()}{sentence[1:]}."


def result(report: ReportData) -> str:
    """Say how the run's own subset compares with a random one; empty if nothing was compared."""
    if report.comparison and report.comparison.own:
        own = report.comparison.own
        return compared_with_random(own, report.comparison.beside(own), report.confidence)
    pairs = [pair for pair in report.comparisons if pair.baseline == RANDOM]
    if pairs:
        return paired_with_random(pairs[0], report.confidence)
    if report.evaluation:
        return (
            "No random subset was trained beside it, so nothing shows what the selection is worth."
        )
    return ""


def compared_with_random(own: ComparedArm, beside: list[ComparedArm], confidence: float) -> str:
    """Say by how much `own` differs from random subsets of the same budget."""
    label, title = numbers.name(own.label), metric_title(own.metric)
    random = next((arm for arm in beside if arm.method == RANDOM), None)
    if own.mean is None:
        return f"{label} was not scored on {numbers.name(own.set)}."
    mean = f"On {numbers.name(own.set)}, {label} scores {own.mean:.4g}"
    if random is None or random.mean is None or own.difference is None:
        return f"{mean} ({title}); no random subset was trained beside it."
    first = f"{mean} and a random subset of the same budget {random.mean:.4g} ({title})."
    difference = f"The difference is {own.difference:+.4g}"
    low, high = own.difference_low, own.difference_high
    if low is None or high is None:
        return f"{first} {difference}; it has no interval."
    seeds = f", {counted(round(own.seeds), 'seed')}" if own.seeds else ""
    ends = f"{confidence:.0%} interval {low:+.4g} to {high:+.4g}{seeds}"
    if low <= 0 <= high:
        return f"{first} {difference} ({ends}), which includes zero: neither is shown to be better."
    if own.p is not None and own.p >= SIGNIFICANT:
        reason = f"p is {own.p:.2g}, as several methods are compared (Holm)"
        return f"{first} {difference} ({ends}), but {reason}: neither is shown to be better."
    is_better = (own.difference < 0) == own.has_less_is_better
    return f"{first} {difference} ({ends}): {label} is {'better' if is_better else 'worse'}."


def paired_with_random(pair: Comparison, confidence: float) -> str:
    """Say by how much an arm differs from random rows, over the items of one set."""
    arm, in_points = numbers.name(pair.arm), pair.metric != "loss"
    shown = [
        f"{100 * x:+.1f}" if in_points else f"{x:+.3f}"
        for x in (pair.difference, pair.low, pair.high)
    ]
    unit = "points" if in_points else "nats per token"
    start = (
        f"On {numbers.name(pair.set)}, {pair.metric} after training on the rows of {arm} minus "
        f"after random rows is {shown[0]} {unit} ({confidence:.0%} interval {shown[1]} to "
        f"{shown[2]})"
    )
    if pair.low <= 0 <= pair.high:
        return f"{start}, which includes zero: neither is shown to be better."
    is_better = (pair.difference < 0) != in_points
    return f"{start}: {arm} is {'better' if is_better else 'worse'} than random."


def cost(report: ReportData) -> list[tuple[str, str]]:
    """Return what the selection and the training cost, each as a number and a name."""
    own = report.comparison.own if report.comparison else None
    seconds = {stage.name: stage.seconds for stage in report.stages}
    selecting = sum(seconds.get(name, 0.0) for name in SELECTING) or None
    training = seconds.get("target")
    if own is not None:
        selecting = own.seconds_selecting if own.seconds_selecting is not None else selecting
        training = own.seconds_training if own.seconds_training is not None else training
    lines = []
    if selecting is not None:
        lines.append((duration(selecting), "to select"))
    if training is not None:
        lines.append((duration(training), "to train on the subset"))
    if own is not None and own.flops:
        lines.append((flops(own.flops), "selecting and training"))
    return lines


def verdict(comparison: Comparison, confidence: float) -> str:
    """Say which arm is better on this set, and if the interval of the difference excludes zero."""
    arm, baseline, metric = comparison.arm, comparison.baseline, comparison.metric
    if metric == "loss":
        shown = [f"{x:+.4f}" for x in (comparison.difference, comparison.low, comparison.high)]
        unit = "nats per token"
    else:
        ends = (comparison.difference, comparison.low, comparison.high)
        shown = [f"{100 * x:+.1f}" for x in ends]
        unit = "points"
    difference = (
        f"the paired difference ({arm} minus {baseline}) is {shown[0]} {unit}, and its "
        f"{confidence:.0%} interval, {shown[1]} to {shown[2]},"
    )
    if comparison.low <= 0 <= comparison.high:
        return f"{metric[0].upper()}{metric[1:]} shows no better arm: {difference} includes zero."
    arm_wins = (comparison.difference < 0) == (metric == "loss")
    better, worse = (arm, baseline) if arm_wins else (baseline, arm)
    return f"By {metric}, {better} is better than {worse}: {difference} excludes zero."
