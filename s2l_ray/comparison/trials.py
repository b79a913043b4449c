"""The trials of the arms of a comparison, and what is known of them before anything runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from s2l_ray.artifacts.identity import identity
from s2l_ray.artifacts.manifest import fingerprint
from s2l_ray.artifacts.stage import RunPlan, Step
from s2l_ray.clusters.declaration import CLUSTERS
from s2l_ray.comparison import records
from s2l_ray.comparison.arms import ALL_DATA, NO_TRAINING, Arm, Cost, Selector, name_of
from s2l_ray.comparison.records import FOLDER, RESULT, TRIALS, Trial
from s2l_ray.comparison.variants import Variant
from s2l_ray.config import budgets
from s2l_ray.config.comparison import ComparisonConfig
from s2l_ray.config.training import RandomModel, TargetConfig
from s2l_ray.data.declaration import PREPARE
from s2l_ray.evaluation.declaration import EVALUATION
from s2l_ray.training import schedule
from s2l_ray.training.declaration import TARGET

NOT_SELECTED = "not selected yet: "
"""The beginning of the subset of an arm whose rows nobody knows: no trial is named after it."""


@dataclass(frozen=True)
class State:
    """How far the trials of a configuration are.

    Attributes:
        done: what each finished trial has left in its result.
        todo: the arm of each other one, and its optimizer steps.
    """

    done: Sequence[Mapping[str, Any]]
    todo: Sequence[tuple[Arm, int]]


def state(plan: RunPlan, compared: Sequence[Variant], stale: Sequence[Step]) -> State | None:
    """Return which trials are finished, and which are to do; None before the clusters are finished.

    Arms whose subsets are not known yet count as one trial each: some may turn out to be the same.

    Args:
        plan: the steps of the run.
        compared: the methods.
        stale: the steps that are to do.
    """
    if {step.label for step in plan.through(CLUSTERS.name)} & {step.label for step in stale}:
        return None
    folder = plan.run / FOLDER
    selector = Selector(plan, folder, Cost(0.0, 0.0))
    arms = list(_foreseen(plan, compared, selector))
    trials = trials_of(plan, arms, selector)
    found = {trial.name: (arm, trial.steps) for arm, trial in zip(arms, trials, strict=True)}
    done = [name for name in found if records.is_done(folder / TRIALS, name)]
    return State(
        [(folder / TRIALS / name / RESULT).read_json() for name in done],
        [todo for name, todo in found.items() if name not in done],
    )


def _foreseen(plan: RunPlan, compared: Sequence[Variant], selector: Selector) -> Iterator[Arm]:
    """Yield every arm; one whose subset is not recorded has the rows that its budget stands for."""
    section = _section(plan)
    for variant in compared:
        for seed in section.seeds:
            for budget in section.budgets:
                known = selector.recorded(variant, seed, budget)
                if known is None:
                    name = name_of(budget)
                    subset = f"{NOT_SELECTED}{variant.label}, {name}"
                    rows = _rows_of(plan, budget)
                    known = Arm(variant.label, variant.method, {}, name, seed, "", subset, rows)
                yield known
    for seed in section.seeds:
        if section.all_data:
            rows = plan.summary(PREPARE)["kept"]
            whole = selector.recorded_pool() or {"subset": NOT_SELECTED, "num_rows": rows}
            yield Arm(ALL_DATA, ALL_DATA, {}, "", seed, **whole)
        yield Arm(NO_TRAINING, NO_TRAINING, {}, "", seed)


def _rows_of(plan: RunPlan, budget: budgets.Budget) -> int:
    """Return the rows of a budget; of one in tokens, as many rows of mean length."""
    pool, tokens = plan.summary(PREPARE), budgets.num_tokens(budget)
    if tokens is not None:
        return round(tokens * pool["kept"] / pool["tokens"])
    assert not isinstance(budget, str)
    return budgets.budget_rows(budget, pool["kept"])


def trials_of(plan: RunPlan, arms: Sequence[Arm], selector: Selector) -> list[Trial]:
    """Return the trial of every arm; arms with the same rows and seed share one."""
    shared, begun = shared_inputs(plan), set((selector.folder / TRIALS).names())
    found = []
    for arm in arms:
        steps, seed = _steps(plan, arm, arms), _seed(plan, arm)
        inputs = {**shared, "subset": arm.subset, "seed": seed, "steps": steps}
        rows = str(selector.rows_file(arm.key)) if arm.subset else ""
        # Older versions named a trial after the spelling of paths, too.
        names = fingerprint(identity(inputs)), fingerprint(inputs)
        name = next((name for name in names if name in begun), names[0])
        found.append(Trial(name, rows, seed, steps, arm.name))
    return found


def shared_inputs(plan: RunPlan) -> dict[str, Any]:
    """Return all that shapes every trial: target, held-out sets, template, evaluation."""
    # How many steps a trial has is among its own inputs.
    target = _target(plan).model_copy(update={"max_steps": None, "epochs": 1.0})
    bare = replace(
        plan, config=plan.config.model_copy(update={"target": target}), steps=[], arms={}
    )
    inputs = {**TARGET.task(bare, "").inputs, **EVALUATION.task(bare, "").inputs}
    return {key: value for key, value in inputs.items() if key != "seed"}


def _seed(plan: RunPlan, arm: Arm) -> int:
    """Return the seed of an arm's trial; 0 if no seed changes it: stored weights, untrained."""
    return arm.seed if arm.subset or isinstance(_target(plan).model, RandomModel) else 0


def _steps(plan: RunPlan, arm: Arm, arms: Sequence[Arm]) -> int:
    """Return the optimizer steps of an arm."""
    if not arm.subset:
        return 0
    target = _target(plan)
    if _section(plan).steps == "epochs":
        return schedule.num_steps(arm.num_rows, target.model_copy(update={"max_steps": None}))
    return schedule.num_steps(_rows_of_largest_budget(plan, arms), target)


def _rows_of_largest_budget(plan: RunPlan, arms: Sequence[Arm]) -> int:
    """Return its rows; of a budget in tokens, those of rows of mean length.

    How many rows such a budget really gives depends on method and seed, and a further one must
    not change the steps of all others.
    """
    in_tokens = {name_of(b): b for b in _section(plan).budgets if isinstance(b, str)}
    rows = [arm.num_rows for arm in arms if arm.budget and arm.budget not in in_tokens]
    return max(*rows, *(_rows_of(plan, budget) for budget in in_tokens.values()), 1)


def _section(plan: RunPlan) -> ComparisonConfig:
    assert plan.config.comparison is not None
    return plan.config.comparison


def _target(plan: RunPlan) -> TargetConfig:
    assert plan.config.target is not None
    return plan.config.target
