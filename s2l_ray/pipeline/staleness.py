"""Which steps of a plan are to do, and which finished results no longer count once they are done.

A finished result is removed only when the work that replaces it begins, or for a step that checks
its inputs by its work, when the new result is finished. Until then it stays usable: with the
configuration and the data that it came from, it is current.
"""

from collections.abc import Collection, Sequence
from typing import get_args

from s2l_ray.artifacts.stage import Step
from s2l_ray.config.section import Section
from s2l_ray.config.sections import RunConfig
from s2l_ray.errors import ConfigError, first
from s2l_ray.progress import duration
from s2l_ray.stages import NAMES


def stale(steps: Sequence[Step], from_stage: str | None) -> list[Step]:
    """Return the steps to do: those that are not current, and all from `from_stage` on.

    A step is not current either if it came from a result that is to be made again and may differ.
    """
    redone = [step for step in steps if is_redone(step, from_stage) or not step.out.is_current()]
    return with_lost(steps, redone)


def with_lost(steps: Sequence[Step], todo: Sequence[Step]) -> list[Step]:
    """Return `todo`, and those of `steps` whose results no longer count when `todo` is done.

    These may be steps after the end of a run.
    """
    labels = {step.label for step in todo} | _lost(steps, todo)
    return [step for step in steps if step.label in labels]


def refuse_discarding(steps: Sequence[Step], todo: Sequence[Step], from_stage: str | None) -> None:
    """Raise ConfigError if a finished costly step would be redone without `--from`."""
    todo = with_lost(steps, todo)
    for step in todo:
        if not step.declaration.is_costly or is_redone(step, from_stage):
            continue
        if step.out.manifest() is not None and not step.out.is_outdated():
            earliest = min(NAMES.index(item.stage) for item in todo)
            # `--from` discards all of them, also those after `--until`.
            lost = [item for item in steps if NAMES.index(item.stage) >= earliest]
            lost = [item for item in lost if item.declaration.is_costly and item.out.manifest()]
            raise ConfigError(
                f"{step.label} in {step.out.location} is finished, and no longer fits: "
                f"{reason(steps, todo, step)}. Redoing it would discard "
                f"{duration(sum(map(_manifest_seconds, lost)))} of work "
                f"({first([item.label for item in lost], 8)}). Either say "
                f"`--from {NAMES[earliest]}` to redo it, or give another run_dir."
            )


def reason(steps: Sequence[Step], todo: Sequence[Step], step: Step) -> str:
    """Return why a finished step is to be done again."""
    if changed := _root_changes(steps, step):
        return f"{first(changed)} changed{_as_it_was(changed, steps)}"
    earlier = [item.label for item in todo if item.label in step.out.inputs]
    if earlier:
        return f"{first(earlier)} will be done again"
    return "an earlier stage was done again" if step.out.is_outdated() else "asked for by --from"


def outdate(steps: Sequence[Step], step: Step, redone: Collection[str]) -> None:
    """Note, before the result of `step` is replaced, which finished results then do not count.

    An interrupted run leaves no result that counts, but came from one that is gone. Results of
    other configurations stay, where `step` gives the same result again.

    Args:
        steps: all steps of the plan.
        step: the step.
        redone: labels of the steps that this run, or a later one, is to do.
    """
    after, lost = _dependents(steps, {step.label}), _lost(steps, [step])
    # The last one goes first: whatever counts still has all that it came from.
    for item in reversed(steps):
        manifest = item.out.manifest()
        if manifest is None or item.label not in after:
            continue
        if item.label in lost:
            item.out.outdate({item.out.fingerprint, manifest.fingerprint})
        elif item.label in redone:
            item.out.outdate({item.out.fingerprint})


def is_redone(step: Step, from_stage: str | None) -> bool:
    """Tell whether the user asks to redo a step, finished or not."""
    return from_stage is not None and NAMES.index(step.stage) >= NAMES.index(from_stage)


def _dependents(steps: Sequence[Step], labels: Collection[str]) -> set[str]:
    """Return `labels` and the labels of all later steps that come from theirs."""
    reached = set(labels)
    for step in steps:
        if step.depends_on(reached):
            reached.add(step.label)
    return reached


def _lost(steps: Sequence[Step], todo: Sequence[Step]) -> set[str]:
    """Return the labels of steps whose results do not count once `todo` is done.

    They come from results that may differ when they are made again.
    """
    labels = {step.label for step in todo if not step.repeats}
    return _dependents(steps, labels) - labels


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


def _as_it_was(changed: Sequence[str], steps: Sequence[Step]) -> str:
    """Return the values of changed keys that older versions had not, with which nothing changes."""
    known = {key for step in steps if (manifest := step.out.manifest()) for key in manifest.inputs}
    values = {
        f"{name}.{key}": value
        for name, field in RunConfig.model_fields.items()
        for kind in get_args(field.annotation)
        if isinstance(kind, type) and issubclass(kind, Section)
        for key, value in kind.as_before.items()
    }
    new = [f"`{key}: {values[key]}`" for key in changed if key in values and key not in known]
    return f" (results of older versions stay with {first(new)})" if new else ""


def _manifest_seconds(step: Step) -> float:
    """Return how long a step took; 0 if it is not finished."""
    manifest = step.out.manifest()
    return manifest.seconds if manifest else 0.0
