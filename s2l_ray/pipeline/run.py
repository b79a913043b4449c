"""Do the steps of a run that are not done yet.

Before anything runs, stale steps are listed. A run that would discard finished training is refused.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from s2l_ray.artifacts.inputs import CONTENTS
from s2l_ray.artifacts.manifest import check_run, open_run
from s2l_ray.artifacts.stage import Stage, Step
from s2l_ray.config.sections import RunConfig
from s2l_ray.errors import ConfigError, first
from s2l_ray.pipeline import preflight
from s2l_ray.pipeline.steps import plan
from s2l_ray.progress import LABEL_WIDTH, Progress, duration
from s2l_ray.stages import NAMES, STAGES
from s2l_ray.storage.location import Location
from s2l_ray.storage.lock import exclusive

CONFIG = "config.json"
"""The file in a run's folder with the configuration that it was last run with."""


def run(
    config: RunConfig,
    *,
    from_stage: str | None = None,
    until: str | None = None,
    address: str | None = None,
    say: Callable[[str], None] = print,
) -> list[Step]:
    """Do the steps that are not done yet, and return them.

    Args:
        config: the configuration of the run.
        from_stage: redo this stage and all after it.
        until: stop after this stage.
        address: of the Ray cluster to join; None for the default.
        say: takes each line of progress.

    Raises:
        UserError: the user can correct it; nothing of the stage that failed is visible.
    """
    if from_stage and until and NAMES.index(until) < NAMES.index(from_stage):
        raise ConfigError(
            f"--until {until} stops before --from {from_stage}: give a later --until, or none"
        )
    folder = Location.of(config.run_dir)
    check_run(folder)
    planned = plan(config, folder)
    steps = planned.through(until)
    todo = stale(steps, from_stage)
    refuse_discarding(planned.steps, todo, from_stage)
    if not todo:
        return []
    preflight.check_files(config, todo)
    open_run(folder)
    with exclusive(folder):
        # Another run may have finished some of it while this one was waiting or hashing.
        todo = stale(steps, from_stage)
        refuse_discarding(planned.steps, todo, from_stage)
        preflight.check_revisions(planned.contents)
        (folder / CONTENTS).write_json(planned.contents.cache)
        preflight.check_pool(config, {step.stage for step in todo})
        with connected(todo, config, address, say):
            # Old results stay until it is known that the cluster can compute them again.
            (folder / CONFIG).write_json(config.model_dump(mode="json"))
            _discard(planned.steps, todo, from_stage)
            for step, following in zip(todo, [*todo[1:], None], strict=True):
                preflight.check_pool(config)
                carry_out(step, following, say)
    return todo


def stale(steps: Sequence[Step], from_stage: str | None) -> list[Step]:
    """Return the steps to do: those that are not current, and all from `from_stage` on."""
    start = NAMES.index(from_stage) if from_stage else len(STAGES)
    return [step for step in steps if NAMES.index(step.stage) >= start or not step.out.is_current()]


def refuse_discarding(steps: Sequence[Step], todo: Sequence[Step], from_stage: str | None) -> None:
    """Raise ConfigError if a finished costly step would be redone without `--from`."""
    start = NAMES.index(from_stage) if from_stage else len(STAGES)
    for step in todo:
        if not step.declaration.is_costly or NAMES.index(step.stage) >= start:
            continue
        if step.out.manifest() is not None:
            changed = _root_changes(steps, step)
            earliest = min(NAMES.index(item.stage) for item in todo)
            # `--from` discards all of them, also those after `--until`.
            lost = [item for item in steps if NAMES.index(item.stage) >= earliest]
            lost = [item for item in lost if item.declaration.is_costly and item.out.manifest()]
            raise ConfigError(
                f"{step.label} in {step.out.location} is finished, and no longer fits: "
                f"{first(changed)} changed. Redoing it would discard "
                f"{duration(sum(map(_manifest_seconds, lost)))} of work "
                f"({first([item.label for item in lost], 8)}). Either say "
                f"`--from {NAMES[earliest]}` to redo it, or give another run_dir."
            )


def _root_changes(steps: Sequence[Step], step: Step) -> list[str]:
    """Return the changed inputs of `step`, with each changed earlier step replaced by its own."""
    by_name = {item.label: item for item in steps}
    changes: list[str] = []
    for key in step.out.changed_keys():
        earlier = by_name.get(key)
        if earlier is not None and earlier.out.manifest() is not None:
            changes += _root_changes(steps, earlier) or [key]
        else:
            changes.append(key)
    return list(dict.fromkeys(changes))


def _manifest_seconds(step: Step) -> float:
    """Return how long a step took; 0 if it is not finished."""
    manifest = step.out.manifest()
    return manifest.seconds if manifest else 0.0


def _discard(steps: Sequence[Step], todo: Sequence[Step], from_stage: str | None) -> None:
    """Remove the manifests of the steps to redo, and with `--from` their folders.

    All manifests are removed first, beginning with the last step. So an interruption leaves no
    finished step whose inputs are gone. With `--from`, stages after `--until` are removed as well,
    because the stages that they came from are redone.
    """
    start = NAMES.index(from_stage) if from_stage else len(STAGES)
    redone = [step for step in steps if NAMES.index(step.stage) >= start]
    names = {step.label for step in [*redone, *todo]}
    for step in reversed(steps):
        if step.label in names:
            step.out.forget()
    for step in redone:
        step.out.remove()


@contextlib.contextmanager
def connected(
    todo: Sequence[Step], config: RunConfig, address: str | None, say: Callable[[str], None]
) -> Iterator[None]:
    """Connect to Ray inside the block, if a step needs it, and check that it can hold the steps."""
    if not any(step.declaration.uses_ray for step in todo):
        yield
        return
    from s2l_ray.distributed import session

    say("joining the cluster" if session.joins_cluster(address) else "starting Ray")
    with session.cluster(address):
        preflight.check_resources(config, list(dict.fromkeys(step.declaration for step in todo)))
        yield


def carry_out(step: Step, following: Step | None, say: Callable[[str], None]) -> None:
    """Do `step`, and begin the following one meanwhile if it can start during `step`."""
    started = time.monotonic()
    early = [stage for stage in STAGES if stage.starts_during == step.stage]
    if early and step.out.is_new():
        _forget_early_work(step, early)
    step.out.begin()
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress(step.label))
        if following is not None and following.declaration.starts_during == step.stage:
            stack.enter_context(following.early(progress) if following.early else nullcontext())
        summary = step.work(progress)
    manifest = step.out.finish(summary, time.monotonic() - started)
    say(f"  {step.label:<{LABEL_WIDTH}}{duration(manifest.seconds):>8}   {headline(summary)}")
    for note in summary.get("notes", []):
        say(f"    {note}")


def _forget_early_work(step: Step, stages: Sequence[Stage]) -> None:
    """Remove unfinished work of `stages`, which start during `step`.

    An interrupted run began it from results of `step` that no longer exist.
    """
    for stage in stages:
        early = stage.directory(step.out.location.parent)
        if early.manifest() is None:
            early.remove()


def headline(summary: Mapping[str, Any]) -> str:
    """Return the first four numbers of a summary as text."""
    shown = []
    for key, value in summary.items():
        name = key.removeprefix("num_").replace("_", " ")
        if isinstance(value, int) and not isinstance(value, bool):
            shown.append(f"{value:,} {name.removesuffix('s') if value == 1 else name}")
        elif isinstance(value, float):
            shown.append(f"{name} {value:,.4g}")
    return ", ".join(shown[:4])
