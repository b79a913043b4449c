"""The plan of a run: the state, size and estimated cost of every step, before anything runs."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, TypeVar

from s2l_ray.artifacts.amounts import Estimate, Quantities, Work
from s2l_ray.artifacts.inputs import Contents
from s2l_ray.artifacts.stage import Stage, Step
from s2l_ray.comparison import run as comparison
from s2l_ray.comparison import trials
from s2l_ray.comparison.variants import Variant
from s2l_ray.config.sections import RunConfig
from s2l_ray.config.training import ModelSpec
from s2l_ray.data.declaration import PREPARE
from s2l_ray.errors import ConfigError
from s2l_ray.estimate import brought, costs, planned_trials
from s2l_ray.estimate.costs import Cost, Hardware
from s2l_ray.estimate.quantities import quantities, tokenizer_of
from s2l_ray.pipeline import preflight, staleness, steps
from s2l_ray.pipeline.supplements import lacks_supplement
from s2l_ray.progress import doing, label_column
from s2l_ray.stages import STAGES
from s2l_ray.storage.location import Location
from s2l_ray.training.declaration import REFERENCE, TARGET
from s2l_ray.trajectories.declaration import TRAJECTORIES

T = TypeVar("T")


def lines(
    config: RunConfig,
    tflops: float | None = None,
    *,
    from_stage: str | None = None,
    dollars_per_cpu_hour: float | None = None,
) -> list[str]:
    """Return the plan as text: the state of every step, sizes, and the cost of what is to do.

    Args:
        config: the configuration.
        tflops: speed of one worker in 10^12 operations per second; None to measure it here.
        from_stage: plan to redo this stage and all after it.
        dollars_per_cpu_hour: price of a CPU of the cluster that clusters and ranks brought losses.

    Raises:
        UserError: a run would fail for a reason that can be seen before it, or a speed or a price
            is none.
    """
    if tflops is not None and not 0 < tflops < math.inf:
        raise ConfigError(
            f"--tflops {tflops:g}: give the speed of one worker in matrix products, in 10^12 "
            "operations per second and above zero, such as 0.08 for a CPU core; leave it out to "
            "measure this machine."
        )
    brought.check_price(config, dollars_per_cpu_hour)
    doing("reading the inputs")
    run_plan = steps.plan(config, Location.of(config.run_dir))
    stale = staleness.stale(run_plan.steps, from_stage)
    doing("checking the configuration")
    preflight.check(run_plan, stale, from_stage)
    compared = comparison.check(config) if config.comparison is not None else []
    shown = [f"run_dir   {config.run_dir}", ""]
    shown += [
        f"{label_column(step.label)}{_state(run_plan.steps, stale, step)}"
        for step in run_plan.steps
    ]
    pinned = _with_pinned_models(config, run_plan.contents)
    doing("counting rows and tokens")
    amounts, counting = quantities(pinned, run_plan.steps, {step.stage for step in stale})
    # Without a tokenizer, tokens are guesses, and rows may be refused by the template.
    _check_pool(config, compared, amounts, stale, exact=not counting)
    state = trials.state(run_plan, compared, stale) if compared else None
    size_lines = [*_size_lines(config, amounts), *planned_trials.lines(pinned, amounts, state)]
    shown += ["", *size_lines] if size_lines else []
    costly = [step for step in stale if _computes(config, step.declaration)]
    if costly:
        estimated, remarks = _costs(pinned, amounts, costly, tflops)
        shown += ["", *costs.table(estimated), "", *remarks, *counting]
    if config.imports_trajectories:
        names = {step.stage for step in stale}
        shown += brought.lines(config, names, dollars_per_cpu_hour)
    return shown


def _check_pool(
    config: RunConfig,
    compared: Sequence[Variant],
    amounts: Quantities,
    stale: Sequence[Step],
    *,
    exact: bool,
) -> None:
    """Refuse what a run would refuse once it has counted the pool, if all of it was read here.

    Raises:
        UserError: the pool is too small for a budget, the checkpoints or bounds of strata.
    """
    pool, new = amounts.pool, dict[str, dict[str, Any]]()
    if pool is not None and pool.size_by_stratum is not None and exact:
        amount = pool.amount
        strata = dict(pool.size_by_stratum)
        new[PREPARE.name] = {"kept": amount.rows, "tokens": amount.tokens, "strata": strata}
    elif pool is not None and pool.whole and not pool.counted:
        assert config.data is not None, "there is a pool"
        # A run keeps no more: with more rejected rows than are allowed it stops.
        share = 1 - config.data.max_rejected if pool.rejected else 1.0
        most = math.floor(pool.amount.rows / share) if share else sys.maxsize
        new[PREPARE.name] = {"kept": most, "tokens": math.inf, "strata": {}}
    if amounts.imported is not None:
        new[TRAJECTORIES.name] = {"rows": amounts.imported[0]}
    names = {step.stage for step in stale}
    preflight.check_pool(config, names, new)
    comparison.check_budgets(compared, names, new)


def _with_pinned_models(config: RunConfig, contents: Contents) -> RunConfig:
    """Return the configuration with models of the hub at the commits that runs load.

    The cache of this machine has them under these commits.
    """
    data, sections = config.data, {}
    if data is not None:
        tokenizer = contents.pinned(data.tokenizer)
        sections["data"] = data.model_copy(update={"tokenizer": tokenizer})
    for name in (REFERENCE.section, TARGET.section):
        if (section := getattr(config, name)) is not None:
            model = contents.pinned(section.model)
            sections[name] = section.model_copy(update={"model": model})
    return config.model_copy(update=sections)


def _state(steps: Sequence[Step], todo: Sequence[Step], step: Step) -> str:
    """Return the state of a step as text."""
    if step.label not in {item.label for item in todo}:
        return "finished; its lists are to do" if lacks_supplement(step) else "finished"
    if step.out.manifest() is None:
        return "to do"
    changed = step.out.changed_keys()
    why = f"{', '.join(changed[:3])} changed" if changed else staleness.reason(steps, todo, step)
    return f"to do again: {why}"


def _size_lines(config: RunConfig, amounts: Quantities) -> list[str]:
    """Return the lines of all stages that say how much there is to do."""
    return [
        f"{name:<16}{text}"
        for stage in STAGES
        if stage.is_wanted(config)
        for name, text in stage.sizes(config, amounts).items()
    ]


def _computes(config: RunConfig, stage: Stage) -> bool:
    """Tell whether a stage computes with a model; it does not if its results are given."""
    section = stage.section_of(config)
    is_given = getattr(section, "path", None) is not None
    is_copied = getattr(section, "perturbations", None) is not None
    return stage.estimate is not None and not is_given and not is_copied


def _costs(
    config: RunConfig, amounts: Quantities, costly: Sequence[Step], tflops: float | None
) -> tuple[list[Cost], list[str]]:
    """Return the cost of every step of `costly`, and remarks on it."""
    from s2l_ray.models import local_models

    estimates = {
        step.stage: step.declaration.estimate for step in costly if step.declaration.estimate
    }
    shapes = _for_models(config, estimates, local_models.shape)
    samples = _for_models(config, estimates, partial(_sampler, local_models.miniature))
    by_stage: dict[str, tuple[Work, Hardware]] = {}
    for step in costly:
        stage, section = step.stage, step.declaration.section_of(config)
        if stage in by_stage:
            continue
        work = estimates[stage].work(config, amounts, shapes[stage])
        if tflops is not None:
            by_stage[stage] = work, costs.given(section, tflops * 1e12)
        else:
            doing(f"measuring the speed of {stage} on this machine")
            by_stage[stage] = work, costs.measured(stage, section, work, samples[stage])
    seconds = {stage: costs.seconds(stage, *pair) for stage, pair in by_stage.items()}
    estimated = [Cost(step.label, *by_stage[step.stage], seconds[step.stage]) for step in costly]
    models = {stage: estimate.model(config) for stage, estimate in estimates.items()}
    remarks = _unknown(models, by_stage)
    timed = {
        stage: hardware for stage, (_, hardware) in by_stage.items() if seconds[stage] is not None
    }
    if timed:
        remarks += costs.remarks(timed)
    return estimated, remarks


def _sampler(sample: Callable[[ModelSpec], T], spec: ModelSpec) -> Callable[[], T]:
    """Return a function that makes the small model of `spec` once, when it is first called."""
    return cache(partial(sample, spec))


def _for_models(
    config: RunConfig, estimates: Mapping[str, Estimate], make: Callable[[ModelSpec], T | None]
) -> dict[str, T | None]:
    """Return stage -> the result of `make` for its model; None without a model.

    Stages with the same model share one result.
    """
    made: dict[Callable[[RunConfig], ModelSpec | None], T | None] = {}
    for estimate in estimates.values():
        if estimate.model not in made:
            spec = estimate.model(config)
            made[estimate.model] = make(spec) if spec is not None else None
    return {stage: made[estimate.model] for stage, estimate in estimates.items()}


def _unknown(
    models: Mapping[str, ModelSpec | None], by_stage: Mapping[str, tuple[Work, Hardware]]
) -> list[str]:
    """Return lines that say why operations or times are unknown, and the remedy."""
    absent, stages_by_reason = list[str](), dict[str, list[str]]()
    for stage, (work, hardware) in by_stage.items():
        spec = models[stage]
        if work.flops is None and spec is not None:
            absent.append(tokenizer_of(spec))
        elif hardware.unknown:
            stages_by_reason.setdefault(hardware.unknown, []).append(stage)
    remarks = []
    if absent:
        names = " and ".join(dict.fromkeys(absent))
        remarks.append(
            f"FLOPs unknown: not on this machine, and a plan downloads nothing: {names}."
        )
    for reason, stages in stages_by_reason.items():
        remarks.append(
            f"Time of {' and '.join(stages)} unknown: {reason}. Give a speed with --tflops."
        )
    return remarks
