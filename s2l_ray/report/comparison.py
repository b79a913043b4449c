"""The table of `s2l compare`, if the run has one."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s2l_ray.errors import DataError
from s2l_ray.report import numbers
from s2l_ray.storage.location import Location

COMPARISON = "comparison"
TABLE, RESULTS = "table.csv", "results.parquet"
ALL_DATA, NO_TRAINING = "all-data", "no-training"
"""Methods of the two rows that belong to every budget."""
RANDOM = "random"
LOSSES = ("macro-loss", "loss")
"""Metrics of which less is better; all others are shares or scores."""
_TITLES = {
    "exact match": "exact match, share of items",
    "exact-match": "exact match, share of items",
    "macro-exact-match": "exact match, mean over strata",
    "loss": "held-out loss, nats per token",
    "macro-loss": "held-out loss, mean over strata, nats per token",
}
_NUMBERS = (
    "seeds", "examples", "training_tokens", "mean", "low", "high", "difference", "difference_low",
    "difference_high", "p", "seconds_selecting", "seconds_training", "flops",
)  # fmt: skip


@dataclass(frozen=True)
class ComparedArm:
    """One line of the table; None means not known."""

    set: str
    metric: str
    budget: str
    label: str
    method: str = ""
    is_default: bool = True
    """The method carries no settings of its own."""
    seeds: float | None = None
    examples: float | None = None
    training_tokens: float | None = None
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    """The mean minus that of random subsets of the same budget, paired by seed and item."""
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None
    seconds_selecting: float | None = None
    seconds_training: float | None = None
    flops: float | None = None

    @property
    def has_less_is_better(self) -> bool:
        return self.metric in LOSSES

    @property
    def seconds(self) -> float | None:
        """Return the seconds of selecting and training together."""
        known = [s for s in (self.seconds_selecting, self.seconds_training) if s is not None]
        return sum(known) if known else None


@dataclass(frozen=True)
class ComparisonView:
    """All lines of the table, and the line of the run's own arm in its first set and metric."""

    arms: Sequence[ComparedArm]
    own: ComparedArm | None = None

    def beside(self, arm: ComparedArm) -> list[ComparedArm]:
        """Return the lines with the set and the metric of `arm`, of its budget or of none."""
        return [
            other
            for other in self.arms
            if (other.set, other.metric) == (arm.set, arm.metric)
            and other.budget in (arm.budget, "")
        ]


def comparison_view(run: Location, method: str, budget: str) -> ComparisonView | None:
    """Return the comparison in `run`; None if there is none.

    Args:
        method, budget: of the run's own selection. If they were not compared, the first method of
            the table that is no baseline takes their place.

    Raises:
        DataError: the table cannot be read.
    """
    file = run / COMPARISON / TABLE
    if not file.is_file():
        return None
    methods = _methods(run / COMPARISON / RESULTS)
    lines = csv.DictReader(io.StringIO(file.read_bytes().decode("utf-8", "replace")))
    arms = [_arm(line, methods, file) for line in lines]
    return ComparisonView(arms, _own(arms, method, budget)) if arms else None


def metric_title(metric: str) -> str:
    """Return what a metric is called in a sentence or on an axis."""
    return _TITLES.get(metric, numbers.name(metric))


def _methods(results: Location) -> dict[str, tuple[str, str]]:
    """Return method and settings of each label."""
    if not results.is_file():
        return {}
    table = results.read_table(["label", "method", "settings"])
    return {row["label"]: (row["method"], row["settings"]) for row in table.to_pylist()}


def _arm(
    line: Mapping[str, Any], methods: Mapping[str, tuple[str, str]], file: Location
) -> ComparedArm:
    try:
        known = {key: float(line[key]) for key in _NUMBERS if line.get(key)}
        label = line["label"]
        method, settings = methods.get(label, (label, "{}"))
        return ComparedArm(
            line["set"], line["metric"], line["budget"] or "", label, method,
            settings in ("", "{}"), **known,
        )  # fmt: skip
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"{file} has a line that cannot be read ({error!r}): {dict(line)}. Run `s2l compare` "
            "again; it writes the table anew."
        ) from None


def _own(arms: Sequence[ComparedArm], method: str, budget: str) -> ComparedArm | None:
    """Return the line that the page begins with."""
    names = [arm.metric for arm in arms if arm.set == arms[0].set]
    metric = next((name for name in LOSSES if name in names), names[0])
    first = [arm for arm in arms if (arm.set, arm.metric) == (arms[0].set, metric)]
    ranked = sorted(
        (arm for arm in first if arm.method not in (RANDOM, ALL_DATA, NO_TRAINING)),
        key=lambda arm: (
            arm.method != method,
            arm.budget != budget,
            "random" in arm.method,
            not arm.is_default,
        ),
    )
    return ranked[0] if ranked else None
