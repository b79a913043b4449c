"""Which steps of a run are still to be done, and doing them.

What is stale is decided, and refused where it would cost finished training, before anything runs.
"""

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from s2l_ray.artifacts import extensions
from s2l_ray.artifacts.inputs import CONTENTS, Contents
from s2l_ray.artifacts.manifest import MANIFEST, QUERIES, Manifest, StageDir, check_run, open_run
from s2l_ray.config import budgets
from s2l_ray.config.sections import RunConfig, SelectionConfig
from s2l_ray.errors import ConfigError, DataError, ModelError, first
from s2l_ray.pipeline.steps import FOLDERS, STAGES, Step, plan
from s2l_ray.progress import LABEL_WIDTH, Progress, duration
from s2l_ray.selection import choice, columns
from s2l_ray.selection.methods import METHODS
from s2l_ray.storage.location import Location
from s2l_ray.storage.lock import exclusive
from s2l_ray.training.schedule import checkpoint_steps, num_steps

COSTLY = ("reference", "trajectories", "target")
"""Finished work of these stages, hours of GPU, is discarded only when the user says so."""
WITHOUT_RAY = ("selection", "report")
CONFIG = "config.json"


def run(
    config: RunConfig,
    *,
    from_stage: str | None = None,
    until: str | None = None,
    address: str | None = None,
    say: Callable[[str], None] = print,
) -> list[Step]:
    """Do what is not yet done; the steps that ran.

    Raises:
        UserError: whatever the user can change; nothing of the stage that failed is visible.
    """
    if from_stage and until and STAGES.index(until) < STAGES.index(from_stage):
        raise ConfigError(
            f"--until {until} stops before --from {from_stage}: give a later --until, or none"
        )
    place = Location.of(config.run_dir)
    check_run(place)
    planned = plan(config, place)
    steps = planned.through(until)
    todo = stale(steps, from_stage)
    refuse_discarding(planned.steps, todo, from_stage)
    if not todo:
        return []
    check_files(config, todo)
    open_run(place)
    with exclusive(place):
        # Another run may have finished some of it while this one was waiting or hashing.
        todo = stale(steps, from_stage)
        refuse_discarding(planned.steps, todo, from_stage)
        _check_revisions(planned.contents)
        (place / CONTENTS).write_json(planned.contents.cache)
        _check_sizes(config, {step.stage for step in todo})
        with connected(todo, config, address, say):
            # Not before it is known that the cluster can do them again.
            (place / CONFIG).write_json(config.model_dump(mode="json"))
            _discard(planned.steps, todo, from_stage)
            for step, following in zip(todo, [*todo[1:], None], strict=True):
                _check_sizes(config)
                carry_out(step, following, say)
    return todo


def stale(steps: Sequence[Step], from_stage: str | None) -> list[Step]:
    """The steps that are to be done: not current, or from `from_stage` on."""
    start = STAGES.index(from_stage) if from_stage else len(STAGES)
    return [
        step for step in steps if STAGES.index(step.stage) >= start or not step.out.is_current()
    ]


def refuse_discarding(steps: Sequence[Step], todo: Sequence[Step], from_stage: str | None) -> None:
    """Raise ConfigError when a finished costly step would be redone without `--from`."""
    start = STAGES.index(from_stage) if from_stage else len(STAGES)
    for step in todo:
        if step.stage not in COSTLY or STAGES.index(step.stage) >= start:
            continue
        if step.out.manifest() is not None:
            changed = _root_changes(steps, step)
            earliest = min(STAGES.index(item.stage) for item in todo)
            # All of them go with `--from`, also those after `--until`.
            lost = [item for item in steps if STAGES.index(item.stage) >= earliest]
            lost = [item for item in lost if item.stage in COSTLY and item.out.manifest()]
            raise ConfigError(
                f"{step.label} in {step.out.location} is finished, and no longer fits: "
                f"{first(changed)} changed. Redoing it would discard "
                f"{duration(sum(map(_manifest_seconds, lost)))} of work "
                f"({first([item.label for item in lost], 8)}). Either say "
                f"`--from {STAGES[earliest]}` to redo it, or give another run_dir."
            )


def _root_changes(steps: Sequence[Step], step: Step) -> list[str]:
    """The keys that changed, followed up through earlier stages to where they come from."""
    by_name = {item.label: item for item in steps}
    found: list[str] = []
    for key in step.out.changed_keys():
        earlier = by_name.get(key)
        if earlier is not None and earlier.out.manifest() is not None:
            found += _root_changes(steps, earlier) or [key]
        else:
            found.append(key)
    return list(dict.fromkeys(found))


def _manifest_seconds(step: Step) -> float:
    manifest = step.out.manifest()
    return manifest.seconds if manifest else 0.0


def _discard(steps: Sequence[Step], todo: Sequence[Step], from_stage: str | None) -> None:
    """Nothing that is to be redone counts as finished any more, and `--from` removes it.

    All manifests go first, the last one first: whenever this is interrupted, what is left is
    unfinished. With `--from`, stages after `--until` go as well: what they came from is redone.
    """
    start = STAGES.index(from_stage) if from_stage else len(STAGES)
    redone = [step for step in steps if STAGES.index(step.stage) >= start]
    names = {step.label for step in [*redone, *todo]}
    for step in reversed(steps):
        if step.label in names:
            (step.out.location / MANIFEST).remove()
    for step in redone:
        step.out.location.remove()


@contextlib.contextmanager
def connected(
    todo: Sequence[Step], config: RunConfig, address: str | None, say: Callable[[str], None]
) -> Iterator[None]:
    """Ray is connected inside, if a step needs it, and can hold what the steps ask for."""
    stages = {step.stage for step in todo}
    if stages <= set(WITHOUT_RAY):
        yield
        return
    from s2l_ray.distributed import resources, session

    say("joining the cluster" if session.joins_cluster(address) else "starting Ray")
    with session.cluster(address):
        resources.check_sections(config, stages)
        yield


def carry_out(step: Step, following: Step | None, say: Callable[[str], None]) -> None:
    """Do `step`, and of what follows what can be begun while the reference trains."""
    started = time.monotonic()
    if step.stage == "reference" and step.out.is_new():
        _forget_losses(step.out.location.parent)
    step.out.begin()
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress(step.label))
        if step.stage == "reference" and following is not None and following.ahead is not None:
            stack.enter_context(following.ahead(progress))
        summary = step.work(progress)
    manifest = step.out.finish(summary, time.monotonic() - started)
    say(f"  {step.label:<{LABEL_WIDTH}}{duration(manifest.seconds):>8}   {headline(summary)}")
    for note in summary.get("notes", []):
        say(f"    {note}")


def _forget_losses(run: Location) -> None:
    """What an interrupted run has scored is of checkpoints that are no more."""
    scored = StageDir(run / "trajectories", "trajectories", {})
    if scored.manifest() is None:
        scored.location.remove()


def headline(summary: Mapping[str, Any]) -> str:
    """The first few plain numbers of a summary."""
    shown = []
    for key, value in summary.items():
        name = key.removeprefix("num_").replace("_", " ")
        if isinstance(value, int) and not isinstance(value, bool):
            shown.append(f"{value:,} {name.removesuffix('s') if value == 1 else name}")
        elif isinstance(value, float):
            shown.append(f"{name} {value:,.4g}")
    return ", ".join(shown[:4])


def _counted_by(config: RunConfig) -> str:
    """The stage that knows how many examples the pool has."""
    brought = config.trajectories is not None and config.trajectories.path is not None
    return "trajectories" if brought else "prepare"


def _check_sizes(config: RunConfig, outdated: Collection[str] = ()) -> None:
    """Refuse what the pool is too small for, as soon as its size is known.

    Args:
        outdated: stages that are to be redone, and whose manifests may still be there.
    """
    run, stage = Location.of(config.run_dir), _counted_by(config)
    manifest = _manifest(run, stage, outdated)
    if manifest is None:
        return
    num_rows = manifest.summary["kept" if stage == "prepare" else "rows"]
    if config.selection is not None:
        _check_budget(config.selection, num_rows, _manifest(run, "prepare", outdated))
        if stage == "prepare" and (strata := manifest.summary["strata"]):
            choice.check_strata(config.selection, strata, extensions.strata(run))
    reference = config.reference
    if stage == "prepare" and reference is not None and reference.model is not None:
        checkpoint_steps(num_steps(num_rows, reference), reference.checkpoints)


def _manifest(run: Location, stage: str, outdated: Collection[str]) -> Manifest | None:
    folder = run / FOLDERS.get(stage, stage)
    return None if stage in outdated else StageDir(folder, stage, {}).manifest()


def _check_budget(section: SelectionConfig, num_rows: int, prepared: Manifest | None) -> None:
    if isinstance(section.budget, int) and section.budget > num_rows:
        raise DataError(
            f"selection.budget: {section.budget:,} examples are more than the pool has "
            f"({num_rows:,}). Lower it, or give a fraction such as 0.5."
        )
    wanted = budgets.num_tokens(section.budget)
    if prepared is not None and wanted is not None and wanted > prepared.summary["tokens"]:
        of = f"of {prepared.summary['kept']:,} examples"
        raise budgets.too_many_tokens(wanted, prepared.summary["tokens"], of)


def _check_revisions(contents: Contents) -> None:
    """Refuse a model whose version would be left open: the run could not be repeated or resumed."""
    if contents.unknown:
        names = sorted(contents.unknown)
        raise ModelError(
            f"{len(names)} model(s) can only be on the hub, which does not answer, and are not in "
            f"this machine's cache (first: {first(names)}). Try again, name a commit "
            f"({names[0].partition('@')[0]}@<40 hexadecimal digits>), or give a directory."
        )


def check_files(config: RunConfig, todo: Sequence[Step]) -> None:
    """Look at the models and the template of `todo` before any work is done for them.

    Raises:
        UserError: what can be seen without a network is missing, damaged or unknown.
    """
    stages = {step.stage for step in todo}
    if config.data is not None and stages & {"prepare", "target", "evaluation"}:
        from s2l_ray.data.tokenise import load_template

        load_template(config.data.template)
    sections = {"reference": config.reference, "target": config.target}
    used = [section for name, section in sections.items() if section and name in stages]
    models = [section.model for section in used if section.model is not None]
    if models:
        from s2l_ray.models.checkpoints import check_model

        for model in models:
            check_model(model)
    # What scoring leaves is looked at before hours of it, however far this run is to go.
    if config.selection is not None and stages & {"trajectories", "selection"}:
        _check_counted(config, config.selection)
        _check_left(config, config.selection)


def _check_counted(config: RunConfig, section: SelectionConfig) -> None:
    """Refuse a selection that needs numbers of tokens where nothing will count them."""
    if not choice.counts_tokens(section):
        return
    if config.data is None:
        raise columns.no_counts("there is no `data`")
    scored = config.trajectories is not None and config.trajectories.path is None
    if config.data.tokenizer is None and not scored:
        raise columns.no_counts("`data.tokenizer` is not given")


def _check_left(config: RunConfig, section: SelectionConfig) -> None:
    """Refuse a selection that looks at embeddings or error norms which no stage will leave."""
    methods = [section.method, *section.baselines]
    comparing = [method for method in methods if METHODS[method].compares]
    _check_switch(config, comparing, "embeddings", "compares embeddings")
    weighing = [method for method in methods if columns.ERROR_NORM in METHODS[method].needs]
    _check_switch(config, weighing, "error_norms", "looks at error norms")
    asking = [method for method in comparing if QUERIES in METHODS[method].compares]
    if asking and config.trajectories and not config.trajectories.queries:
        raise ConfigError(
            f"selection: {first(asking)} compares examples with queries. Name files of rows like "
            "those that are wanted in `trajectories.queries`; where losses are there already, redo "
            "them with `--from trajectories`."
        )


def _check_switch(config: RunConfig, methods: Sequence[str], key: str, does: str) -> None:
    """Refuse methods that need what scoring leaves only with the switch `key`."""
    if not methods:
        return
    assert config.trajectories is not None, "a selection needs clusters, and these need them"
    if config.trajectories.path is not None:
        raise ConfigError(
            f"selection: {first(methods)} {does}, which come with scoring; the "
            "trajectories of `trajectories.path` have none. Choose another method."
        )
    if not getattr(config.trajectories, key):
        raise ConfigError(
            f"selection: {first(methods)} {does} of examples. Set "
            f"`trajectories.{key}: true`; where losses are there already, redo them with "
            "`--from trajectories`."
        )
