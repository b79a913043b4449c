"""What a run would do, and roughly what it would cost, before anything runs."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import TypeVar

from s2l_ray.artifacts.inputs import Contents
from s2l_ray.artifacts.stage import Step
from s2l_ray.config import budgets
from s2l_ray.config.sections import (
    MOST_CLUSTERS,
    ClustersConfig,
    DataConfig,
    EvaluationConfig,
    ModelSpec,
    RandomModel,
    RunConfig,
    SelectionConfig,
)
from s2l_ray.data.declaration import PREPARE
from s2l_ray.errors import ConfigError, first
from s2l_ray.estimate import costs, sizes
from s2l_ray.estimate.costs import Cost, Hardware, Section, Work
from s2l_ray.estimate.sizes import Amount, Pool, TokenCounter
from s2l_ray.evaluation.declaration import EVALUATION
from s2l_ray.models.flops import Shape
from s2l_ray.models.origins import first_checkpoint, list_checkpoints
from s2l_ray.pipeline import preflight, steps
from s2l_ray.pipeline import run as pipeline
from s2l_ray.progress import LABEL_WIDTH
from s2l_ray.storage.location import Location
from s2l_ray.training import schedule
from s2l_ray.training.declaration import REFERENCE, TARGET
from s2l_ray.trajectories.declaration import TRAJECTORIES

Looked = TypeVar("Looked")


@dataclass(frozen=True)
class Quantities:
    """How much each stage has to do; nothing where the configuration has no such stage."""

    pool: Pool | None = None
    brought: tuple[int, int] | None = None
    """Rows and checkpoints of trajectories that were computed elsewhere."""
    num_checkpoints: int = 0
    num_selected: int = 0
    held_out: Mapping[str, Amount] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """What a subset is selected from."""
        if self.brought is not None:
            return self.brought[0]
        return self.pool.amount.rows if self.pool else 0

    @property
    def counted(self) -> bool:
        return self.brought is not None or (self.pool is not None and self.pool.counted)


def lines(config: RunConfig, tflops: float | None = None) -> list[str]:
    """The plan as text: every step with its state, then sizes, then the cost of what is to do.

    Args:
        tflops: speed of one worker in 10^12 operations per second; None to measure it here.

    Raises:
        UserError: what a run would stumble on, and can be seen before it.
    """
    if tflops is not None and not 0 < tflops < math.inf:
        raise ConfigError(
            f"--tflops {tflops:g}: give the speed of one worker in matrix products, in 10^12 "
            "operations per second and above zero, such as 0.08 for a CPU core; leave it out to "
            "measure this machine."
        )
    run = Location.of(config.run_dir)
    whole_plan = steps.plan(config, run)
    planned = whole_plan.steps
    stale = pipeline.stale(planned, None)
    preflight.check_files(config, stale)
    todo = {id(step) for step in stale}
    shown = [f"run_dir   {config.run_dir}", ""]
    shown += [f"{step.label:<{LABEL_WIDTH}}{_state(step, id(step) in todo)}" for step in planned]
    pinned = _pinned(config, whole_plan.contents)
    found, counting = quantities(pinned, planned, {step.stage for step in stale})
    sized = _sized(config, found)
    shown += ["", *sized] if sized else []
    costly = [step for step in stale if _computes(config, step.stage)]
    if costly:
        estimated, remarks = _costs(pinned, found, costly, tflops)
        shown += ["", *costs.table(estimated), "", *remarks, *counting]
    return shown


def _pinned(config: RunConfig, contents: Contents) -> RunConfig:
    """Models on the hub at their revisions, as runs ask for them: so they lie in the cache."""
    data, sections = config.data, {}
    if data is not None:
        tokenizer = contents.pinned(data.tokenizer)
        sections["data"] = data.model_copy(update={"tokenizer": tokenizer})
    for name in (REFERENCE.section, TARGET.section):
        if (section := getattr(config, name)) is not None:
            model = contents.pinned(section.model)
            sections[name] = section.model_copy(update={"model": model})
    return config.model_copy(update=sections)


def _state(step: Step, is_stale: bool) -> str:
    if not is_stale:
        return "finished"
    if step.out.manifest() is None:
        return "to do"
    return f"to do again: {', '.join(step.out.changed_keys()[:3])} changed"


# --- how much there is --------------------------------------------------------------------------


def quantities(
    config: RunConfig, planned: Sequence[Step], stale: Collection[str]
) -> tuple[Quantities, list[str]]:
    """How much each stage has to do, and remarks on how that was counted.

    Args:
        stale: stages that are to be done; held-out rows are looked at only for those.

    Raises:
        UserError: data cannot be used, or the pool is too small for the budget or the checkpoints.
    """
    summaries = {
        step.stage: manifest.summary
        for step in planned
        if step.stage not in stale and (manifest := step.out.manifest()) is not None
    }
    brought = pool = None
    held_out: dict[str, Amount] = {}
    remarks: list[str] = []
    data = config.data
    if (path := _brought(config)) is not None:
        brought = sizes.brought(path, summaries.get(TRAJECTORIES.name))
    if data is not None:
        evaluated = config.evaluation if EVALUATION.name in stale else None
        prepared = summaries.get(PREPARE.name)
        counter = sizes.by_characters(data)
        if evaluated is not None or prepared is None or not prepared["tokens"]:
            counter, remarks = _counter(config, data)
        pool = sizes.pool(data, prepared, counter)
        if evaluated is not None:
            held_out = {
                name: sizes.held_out(name, data, counter, evaluated.max_items)
                for name in dict.fromkeys(evaluated.sets)
            }
    num_checkpoints = brought[1] if brought else _num_checkpoints(config, pool)
    found = Quantities(pool, brought, num_checkpoints, 0, held_out)
    return replace(found, num_selected=_num_selected(config, found)), remarks


def _brought(config: RunConfig) -> str | None:
    """Where trajectories lie that were computed elsewhere."""
    return config.trajectories.path if config.trajectories else None


def _counter(config: RunConfig, data: DataConfig) -> tuple[TokenCounter, list[str]]:
    """How tokens of rows are counted: by the pool's tokenizer, if it is on this machine."""
    from s2l_ray.models import local_models

    small = None if _brought(config) else _model(config, REFERENCE.name)
    spec = data.tokenizer or small or _model(config, TARGET.name)
    tokenizer = local_models.tokenizer(spec) if spec else None
    if tokenizer is not None:
        return sizes.by_tokenizer(data, tokenizer), []
    missing = f": the tokenizer of {_name(spec)} is not on this machine" if spec else ""
    remark = f"Tokens are characters / {sizes.CHARACTERS_PER_TOKEN:g}{missing}."
    return sizes.by_characters(data), [remark]


def _model(config: RunConfig, stage: str) -> ModelSpec | None:
    """The model of a stage; of existing checkpoints the first."""
    if stage in (TARGET.name, EVALUATION.name):
        return config.target.model if config.target else None
    reference = config.reference
    if reference is None or reference.path is None:
        return reference.model if reference else None
    return f"{reference.path.rstrip('/')}/{first_checkpoint(reference.path)}"


def _name(spec: ModelSpec) -> str:
    return spec.tokenizer if isinstance(spec, RandomModel) else spec


def _num_checkpoints(config: RunConfig, pool: Pool | None) -> int:
    reference = config.reference
    if reference is None or pool is None:
        return 0
    if reference.path is not None:
        return len(list_checkpoints(Location.of(reference.path).names()))
    num_steps = schedule.num_steps(pool.amount.rows, reference)
    try:
        return len(schedule.checkpoint_steps(num_steps, reference.checkpoints))
    except ConfigError:
        if pool.whole:
            raise
        # An estimate is no reason to refuse.
        return 0


def _num_selected(config: RunConfig, found: Quantities) -> int:
    section, known = config.selection, found.num_rows
    if section is None:
        return 0
    if isinstance(section.budget, str):
        return _rows_of_tokens(section.budget, found)
    if isinstance(section.budget, int) and not found.counted:
        known = max(known, section.budget)
    return budgets.budget_rows(section.budget, known)


def _rows_of_tokens(budget: str, found: Quantities) -> int:
    """As many average rows as have the tokens of `budget`."""
    wanted = budgets.num_tokens(budget) or 0
    assert found.pool is not None, "refused by check_files"
    amount = found.pool.amount
    if found.pool.counted and wanted > amount.tokens:
        raise budgets.too_many_tokens(wanted, amount.tokens, f"of {amount.rows:,} examples")
    return max(int(wanted / max(amount.row_tokens, 1)), 1)


def _sized(config: RunConfig, found: Quantities) -> list[str]:
    """One line for the pool, and one for each stage of which there is something to say."""
    pool, reference, target = found.pool, config.reference, config.target
    about = "" if found.pool is None or found.pool.counted else "about "
    shown = []
    if pool is not None:
        amount, where = pool.amount, "" if pool.whole else " among the first rows"
        share = amount.responses / max(amount.tokens, 1)
        tokens = f"{about}{amount.tokens:,} tokens, {share:.0%} of them in responses"
        shown.append(f"pool            {about}{amount.rows:,} rows, {tokens}")
        shown.append(f"strata          {pool.strata:,}{where}")
    if pool and not found.brought and reference is not None and reference.model is not None:
        num_steps = schedule.num_steps(pool.amount.rows, reference)
        shown.append(f"reference       {about}{num_steps:,} steps of {reference.batch_size}")
    if found.brought is not None:
        of = f"{found.brought[0]:,} rows, computed elsewhere"
        shown.append(f"trajectories    {found.num_checkpoints} checkpoints of {of}")
    elif config.trajectories is not None:
        more = ", more than there seem to be steps" if not found.num_checkpoints else ""
        shown.append(f"trajectories    {found.num_checkpoints} checkpoints{more}")
    if config.clusters is not None:
        shown.append(f"clusters        {_clusters(config.clusters, found)}")
    if config.selection is not None:
        shown.append(f"selection       {_selection(config.selection, found)}")
    if target is not None:
        num_steps = schedule.num_steps(found.num_selected, target)
        shown.append(f"target          {about}{num_steps:,} steps of {target.batch_size}")
    if config.evaluation is not None and found.held_out:
        shown.append(f"evaluation      {_evaluation(config.evaluation, found)}")
    return shown


def _clusters(config: ClustersConfig, found: Quantities) -> str:
    number = MOST_CLUSTERS if config.num_clusters == "auto" else config.num_clusters
    told = f"up to {number:,}" if config.num_clusters == "auto" else f"{number:,}"
    if not config.per_stratum:
        return f"{told} over all"
    if found.pool is None or found.brought is not None:
        return f"{told} in each stratum"
    strata = found.pool.strata
    most = min(number * strata, found.num_rows)
    return f"{told} in each of {strata:,} strata, at most {most:,} clusters"


def _selection(config: SelectionConfig, found: Quantities) -> str:
    budget, num_selected = config.budget, found.num_selected
    known = isinstance(budget, int) or (found.counted and isinstance(budget, float))
    shown = f"{'' if known else 'about '}{num_selected:,} examples"
    if isinstance(budget, str):
        shown += f" of average length, {budget}"
    if isinstance(budget, float):
        shown += f", {budget:g} of the pool rounded down"
    if num_selected > found.num_rows:
        shown += ", more than there seem to be"
    if config.baselines:
        shown += f", by each of {1 + len(config.baselines)} methods"
    return shown


def _evaluation(config: EvaluationConfig, found: Quantities) -> str:
    num_items = sum(amount.rows for amount in found.held_out.values())
    names = first(list(found.held_out))
    return f"{num_items:,} rows of {names}; answers of at most {config.max_new_tokens:,} tokens"


# --- what it costs ------------------------------------------------------------------------------


def _computes(config: RunConfig, stage: str) -> bool:
    """Whether a stage passes tokens through a model, rather than take what was brought along."""
    if stage not in costs.SPEEDS:
        return False
    return getattr(getattr(config, stage), "path", None) is None


def _costs(
    config: RunConfig, found: Quantities, costly: Sequence[Step], tflops: float | None
) -> tuple[list[Cost], list[str]]:
    """The cost of every step of `costly`, and remarks on it."""
    from s2l_ray.models import local_models

    stages = {step.stage for step in costly}
    shapes = _of_models(config, stages, local_models.shape)
    samples = _of_models(config, stages, lambda spec: cache(partial(local_models.miniature, spec)))
    of_stage: dict[str, tuple[Work, Hardware]] = {}
    for stage, (section, work) in _works(config, found, shapes).items():
        if stage not in stages:
            continue
        if tflops is not None:
            of_stage[stage] = work, costs.given(section, tflops * 1e12)
        else:
            of_stage[stage] = work, costs.measured(stage, section, work, samples[stage])
    estimated = [
        Cost(step.label, *of_stage[step.stage], costs.seconds(step.stage, *of_stage[step.stage]))
        for step in costly
    ]
    remarks = _unknown(config, of_stage)
    timed = {
        stage: hardware
        for stage, (work, hardware) in of_stage.items()
        if costs.seconds(stage, work, hardware) is not None
    }
    if timed:
        remarks += costs.remarks(timed)
    return estimated, remarks


def _of_models(
    config: RunConfig, stages: Set[str], look: Callable[[ModelSpec], Looked | None]
) -> dict[str, Looked | None]:
    """For every stage what `look` makes of its model, where this machine has what it takes."""
    known: dict[str, Looked | None] = dict.fromkeys(costs.SPEEDS)
    for pair in ((REFERENCE, TRAJECTORIES), (TARGET, EVALUATION)):
        names = [stage.name for stage in pair]
        spec = _model(config, names[0]) if stages & set(names) else None
        known |= dict.fromkeys(names, look(spec) if spec is not None else None)
    return known


def _works(
    config: RunConfig, found: Quantities, shapes: Mapping[str, Shape | None]
) -> dict[str, tuple[Section, Work]]:
    """What each stage of the configuration computes, and the section that says on what."""
    works: dict[str, tuple[Section, Work]] = {}
    if found.pool is None:
        return works
    amount = found.pool.amount
    if (section := config.reference) is not None:
        works[REFERENCE.name] = section, costs.training(section, amount, shapes[REFERENCE.name])
    if (scoring := config.trajectories) is not None:
        work = costs.scoring(scoring, found.pool, found.num_checkpoints, shapes[TRAJECTORIES.name])
        works[TRAJECTORIES.name] = scoring, work
    if (target := config.target) is not None:
        # Average rows, in the pool's tokens; the target's own tokenizer may make fewer or more.
        subset = amount.scaled_to(found.num_selected)
        works[TARGET.name] = target, costs.training(target, subset, shapes[TARGET.name])
    if (evaluated := config.evaluation) is not None and found.held_out:
        sets = list(found.held_out.values())
        works[EVALUATION.name] = (
            evaluated,
            costs.evaluation(evaluated, sets, shapes[EVALUATION.name]),
        )
    return works


def _unknown(config: RunConfig, of_stage: Mapping[str, tuple[Work, Hardware]]) -> list[str]:
    """Why FLOPs or times are not known, and what would tell them."""
    absent, stages_of = list[str](), dict[str, list[str]]()
    for stage, (work, hardware) in of_stage.items():
        spec = _model(config, stage)
        if work.flops is None and spec is not None:
            absent.append(_name(spec))
        elif hardware.unknown:
            stages_of.setdefault(hardware.unknown, []).append(stage)
    remarks = []
    if absent:
        names = " and ".join(dict.fromkeys(absent))
        remarks.append(
            f"FLOPs unknown: not on this machine, and a plan downloads nothing: {names}."
        )
    for reason, stages in stages_of.items():
        remarks.append(
            f"Time of {' and '.join(stages)} unknown: {reason}. Give a speed with --tflops."
        )
    return remarks
