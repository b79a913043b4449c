"""Arms of a run: the targets that can be compared, their scores and their paired differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from s2l_ray.artifacts.finished import Finished
from s2l_ray.artifacts.identity import identity
from s2l_ray.config import budgets
from s2l_ray.config.sections import RunConfig
from s2l_ray.evaluation.comparison import KEYS, compare
from s2l_ray.evaluation.declaration import EVALUATION
from s2l_ray.evaluation.metrics import EXACT_MATCH, LOSS, METRICS
from s2l_ray.report.contents import ArmScore, Comparison
from s2l_ray.training.declaration import TARGET


@dataclass(frozen=True)
class EvaluatedArm:
    """An evaluated arm under the name that tables give it; the run's own arm comes first."""

    name: str
    stages: dict[str, Finished]
    metrics: dict[str, Any]

    @property
    def is_own(self) -> bool:
        return self.stages[EVALUATION.name].arm == ""

    def items(self) -> pa.Table:
        """Return the columns of items.parquet that a comparison reads."""
        file = self.stages[EVALUATION.name].folder / "items.parquet"
        sets = self.metrics["sets"].values()
        measured = [m.column for m in METRICS if any(m.key in of_set for of_set in sets)]
        return file.read_table([*KEYS, "stratum", *measured])


def comparable_arms(finished: Mapping[str, Finished], config: RunConfig) -> list[EvaluatedArm]:
    """Return the evaluated arms that were trained and evaluated with the settings of the first."""
    by_arm: dict[str, dict[str, Finished]] = {}
    for item in finished.values():
        by_arm.setdefault(item.arm, {})[item.stage] = item
    evaluated = [
        EvaluatedArm(
            arm_title(arm, config),
            stages,
            (stages[EVALUATION.name].folder / "metrics.json").read_json(),
        )
        for arm, stages in by_arm.items()
        if EVALUATION.name in stages
    ]
    return [arm for arm in evaluated if _settings(arm) == _settings(evaluated[0])]


def arm_title(arm: str, config: RunConfig) -> str:
    """Return the method of an arm with the run's own budget and seed; else its folder's name."""
    selection = config.selection
    if selection is None:
        return arm or "selection"
    title = arm.removesuffix(f"-{budgets.slug(selection.budget)}-{config.seed}")
    return arm if arm and title == selection.method else title or selection.method


def arm_scores(arms: Sequence[EvaluatedArm]) -> list[ArmScore]:
    """Return one line for every set and arm."""
    return [
        _score(arm.name, name, of_set)
        for arm in arms
        for name, of_set in arm.metrics["sets"].items()
    ]


def paired_differences(arms: Sequence[EvaluatedArm]) -> list[Comparison]:
    """Return the run's own arm minus each of the others, on the items that both share.

    A difference without an interval is left out.
    """
    if len(arms) < 2 or not arms[0].is_own:
        return []
    own, items = arms[0], arms[0].items()
    over = {
        name: "strata" if _has_strata(of_set) else "items"
        for name, of_set in own.metrics["sets"].items()
    }
    return [
        Comparison(
            pair.set, pair.metric, own.name, other.name, pair.difference, pair.low, pair.high
        )
        for other in arms[1:]
        for pair in compare(items, other.items())
        if pair.over == over[pair.set] and pair.low is not None and pair.high is not None
    ]


def _settings(arm: EvaluatedArm) -> dict[str, Any]:
    """Return the settings that must be equal for a comparison to show the effect of selection."""
    return {
        key: value
        for stage in (TARGET.name, EVALUATION.name)
        if stage in arm.stages
        for key, value in identity(arm.stages[stage].manifest.inputs).items()
        if key.startswith((f"{stage}.", "data."))
    }


def _score(arm: str, name: str, of_set: Mapping[str, Any]) -> ArmScore:
    numbers = of_set["macro"] if _has_strata(of_set) else of_set
    loss, rate = numbers["loss_nats"], numbers.get("exact_match", {})
    further = {m.name: m for m in METRICS if m not in (LOSS, EXACT_MATCH) and m.key in numbers}
    return ArmScore(
        set=name,
        arm=arm,
        num_items=of_set["items"],
        loss_nats=loss["mean"],
        loss_low=loss["low"],
        loss_high=loss["high"],
        exact_match=rate.get("rate"),
        exact_match_low=rate.get("low"),
        exact_match_high=rate.get("high"),
        further={
            name: tuple(numbers[m.key][part] for part in (m.statistic, "low", "high"))
            for name, m in further.items()
        },
        num_strata=len(of_set["strata"]),
    )


def _has_strata(of_set: Mapping[str, Any]) -> bool:
    """Return True if strata, not items, count equally in the numbers that are shown."""
    return len(of_set["strata"]) > 1
