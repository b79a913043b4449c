"""The report as one self-contained HTML page, without scripts, links or other files.

Everything that reaches the page is escaped, because rows, names and reasons may be hostile text.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from s2l_ray.report.clusters import ClusterView, cluster_facts, figures, quality
from s2l_ray.report.extensions import ExtensionsView
from s2l_ray.report.selected_examples import SelectedExample
from s2l_ray.report.strata import StratumLine, folded

MAX_EXCERPT = 600
MAX_SETTING = 300


@dataclass(frozen=True)
class StageLine:
    """A finished stage; `summary` holds the counts that the page shows."""

    name: str
    seconds: float
    finished: str
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PoolCounts:
    """Counts of the input rows; `num_duplicates` is None if repeated content was not counted."""

    num_rows: int
    num_kept: int
    num_rejected_by_reason: Mapping[str, int]
    num_tokens: int
    num_duplicates: int | None = None
    num_cut: int = 0
    """Examples that lose the end of a response, because they are longer than data.max_tokens."""


Measured = tuple[float | None, float | None, float | None]
"""A mean and the ends of its interval; None means not measured."""


@dataclass(frozen=True)
class ArmScore:
    """One arm on one set: means with the ends of their intervals; None means not measured."""

    set: str
    arm: str
    num_items: int
    loss_nats: float | None = None
    loss_low: float | None = None
    loss_high: float | None = None
    exact_match: float | None = None
    exact_match_low: float | None = None
    exact_match_high: float | None = None
    num_strata: int = 1
    """If above one, the means are over strata, each of which counts the same."""
    further: Mapping[str, Measured] = field(default_factory=dict)
    """Shares by the names of their metrics."""


@dataclass(frozen=True)
class Comparison:
    """The mean of `arm` minus `baseline` over items, and its interval: of losses, or of shares."""

    set: str
    metric: str
    arm: str
    baseline: str
    difference: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything that the page shows; a part that is None or empty is left out."""

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    stages: Sequence[StageLine] = ()
    counts: PoolCounts | None = None
    clusters: ClusterView | None = None
    strata: Sequence[StratumLine] = ()
    extensions: ExtensionsView | None = None
    evaluation: Sequence[ArmScore] = ()
    comparisons: Sequence[Comparison] = ()
    confidence: float = 0.95
    """The confidence of every interval on the page."""
    examples: Sequence[SelectedExample] = ()


def render(report: ReportData) -> str:
    """Return the page; equal reports give equal bytes."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        count=count, share=share, nats=nats, duration=duration, excerpt=excerpt, summary=summary
    )
    source = resources.files("s2l_ray.report").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        report=report,
        lead=lead(report),
        settings=settings(report.config),
        strata=folded(report.strata),
        figures=figures(report.clusters),
        cluster_facts=cluster_facts(report.clusters),
        quality=quality(report.clusters),
        sets=evaluated_sets(report),
    )


def set_title(name: str, scores: Sequence[ArmScore]) -> str:
    """Return the name of an evaluation set; with several strata, also that they count the same."""
    num_strata = max(score.num_strata for score in scores)
    return (
        f"{name}: means of {num_strata:,} strata, each counting the same"
        if num_strata > 1
        else name
    )


def evaluated_sets(report: ReportData) -> list[tuple[str, list[ArmScore], list[str]]]:
    """Return title, scores and verdicts of each evaluation set, in the order of its first score."""
    sets = []
    for name in dict.fromkeys(score.set for score in report.evaluation):
        scores = [score for score in report.evaluation if score.set == name]
        pairs = [pair for pair in report.comparisons if pair.set == name]
        verdicts = [verdict(pair, report.confidence) for pair in pairs]
        sets.append((set_title(name, scores), scores, verdicts))
    return sets


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
        clauses.append(f"{_plural(arms, 'arm')} evaluated on {_plural(sets, 'held-out set')}")
    sentence = "; ".join(clauses) or "nothing has been measured yet"
    return f"{sentence[0].upper()}{sentence[1:]}."


def verdict(comparison: Comparison, confidence: float) -> str:
    """Say which arm is better on this set, and if the interval of the difference excludes zero."""
    arm, baseline, metric = comparison.arm, comparison.baseline, comparison.metric
    if metric == "loss":
        numbers = [f"{x:+.4f}" for x in (comparison.difference, comparison.low, comparison.high)]
        unit = "nats per token"
    else:
        ends = (comparison.difference, comparison.low, comparison.high)
        numbers = [f"{100 * x:+.1f}" for x in ends]
        unit = "points"
    difference = (
        f"the paired difference ({arm} minus {baseline}) is {numbers[0]} {unit}, and its "
        f"{confidence:.0%} interval, {numbers[1]} to {numbers[2]},"
    )
    if comparison.low <= 0 <= comparison.high:
        return f"{metric[0].upper()}{metric[1:]} shows no better arm: {difference} includes zero."
    arm_wins = (comparison.difference < 0) == (metric == "loss")
    better, worse = (arm, baseline) if arm_wins else (baseline, arm)
    return f"By {metric}, {better} is better than {worse}: {difference} excludes zero."


def settings(config: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return each section with its keys as dotted names; keys without a value are left out."""
    scalars = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    sections = {"run": scalars} | {
        key: value for key, value in config.items() if isinstance(value, Mapping)
    }
    flat = [(name, _flat(section)) for name, section in sections.items()]
    return [(name, rows) for name, rows in flat if rows]


def count(number: int) -> str:
    return f"{number:,}"


def share(part: float, whole: float = 1) -> str:
    """Return `part` of `whole` in per cent: <0.1% for few, and n/a if `whole` is zero."""
    if not whole:
        return "n/a"
    return "<0.1%" if 0 < part / whole < 0.0005 else f"{part / whole:.1%}"


def nats(loss: float) -> str:
    return f"{loss:.4f}"


def duration(seconds: float) -> str:
    """Return a time in at most two units: 0.4 s, 12 s, 3 min 05 s, 1 h 02 min."""
    if round(seconds) < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    if seconds < 3600 - 0.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes:02d} min"


def excerpt(text: str) -> str:
    """Return the beginning of `text`, and the number of characters that are missing."""
    if len(text) <= MAX_EXCERPT:
        return text
    return f"{text[:MAX_EXCERPT]} ... ({len(text) - MAX_EXCERPT:,} more characters)"


def summary(values: Mapping[str, Any]) -> str:
    """Write `num_rows: 1200` as `1,200 rows`, and other values as `key: value`."""
    return ", ".join(_summary_item(key, value) for key, value in values.items())


def _summary_item(key: str, value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else _text(value)
    words = key.removeprefix("num_").replace("_", " ")
    return f"{text} {words}" if key.startswith("num_") else f"{words}: {text}"


def _flat(section: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in section.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        elif value is not None and value != []:
            rows.append((f"{prefix}{key}", _text(value)))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        text = ", ".join(_text(item) for item in value)
    elif isinstance(value, str):
        text = value
    else:
        text = json.dumps(value, default=str)
    return text if len(text) <= MAX_SETTING else f"{text[:MAX_SETTING]} ..."


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
