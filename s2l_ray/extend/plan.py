"""New data for a finished run: scored at its checkpoints, placed in its clusters, ranked with it.

Every extension has steps of the same stages as a run, in folders of its own. What they depend on
is read off the run's manifests, so neither the run's data nor its configuration file is needed,
and nothing of the run is written.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from s2l_ray.artifacts import extensions
from s2l_ray.artifacts.extensions import UPDATED, Base, Extension
from s2l_ray.artifacts.inputs import CONTENTS, Contents
from s2l_ray.artifacts.stage import ExtensionPlan, Step
from s2l_ray.clusters.declaration import CLUSTERS
from s2l_ray.data.declaration import PREPARE
from s2l_ray.errors import ConfigError, DataError, first
from s2l_ray.extend.base_run import base_of, check_losses, check_unchanged
from s2l_ray.pipeline import run as pipeline
from s2l_ray.pipeline.subset import config_of
from s2l_ray.selection import quotas
from s2l_ray.selection.declaration import SELECTION
from s2l_ray.selection.methods import METHODS
from s2l_ray.stages import STAGES
from s2l_ray.storage import input_files
from s2l_ray.storage.location import Location, absolute
from s2l_ray.storage.lock import exclusive
from s2l_ray.trajectories.declaration import TRAJECTORIES


@dataclass(frozen=True)
class Outcome:
    """What has been done, and the extension to speak of.

    It is that of the given data, or the one told to move, or the last one if any was placed again.
    """

    done: list[Step]
    extension: Extension | None


def extend(
    run: Location,
    patterns: Sequence[str],
    *,
    update_centroids: bool = False,
    address: str | None = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Do what is not yet done for the new data in `patterns`, and for earlier extensions.

    Without patterns, extensions are placed again where the run's clusters have changed, and ranked
    again where its selection has.

    Args:
        update_centroids: the extension of the given data, or else the last one, moves the stored
            centroids until they fit all rows up to its own, and labels these anew. It goes on to
            do so whenever it is placed again.

    Raises:
        UserError: whatever the user can change; nothing of the stage that failed is visible.
    """
    # A folder without a run gets no lock.
    config_of(run)
    files = input_files.expand([absolute(name) for name in patterns], "DATA") if patterns else []
    with exclusive(run):
        base = base_of(run)
        contents = _contents(run)
        check_unchanged(base, contents)
        shas = {file: contents.sha(file) for file in files}
        given = _given(run, tuple(sorted(shas.values()))) if files else None
        moving = (given or _last(run)) if update_centroids else None
        files = sorted(files, key=lambda file: (shas[file], file.uri))
        steps = plan(base, given, files, moving=moving)
        refuse_outdated(steps)
        todo = pipeline.stale(steps, None)
        if any(UPDATED in step.out.inputs for step in todo):
            check_losses(run, extensions.of_run(run))
        if any(step.declaration is TRAJECTORIES for step in todo):
            _check_strata(base)
        if todo:
            _remove_unprepared(run, given, say)
            (run / extensions.FOLDER / CONTENTS).write_json(contents.cache)
        if moving is not None and not moving.is_empty:
            moving.keep_moving()
        if todo:
            with pipeline.connected(todo, base.config, address, say):
                todo = _carry_out(base, todo, given, say)
        if moving is not None and moving.is_empty:
            moving.stop_moving()
            say("no row of the data is new: centroids stay where they are")
    placed = any(step.declaration is CLUSTERS for step in todo)
    return Outcome(todo, given or moving or (_last(run) if placed else None))


def _contents(run: Location) -> Contents:
    """Hashes known of the run and of extensions; only the latter are written again."""
    own = Contents.of_run(run / extensions.FOLDER)
    return Contents({**Contents.of_run(run).cache, **own.cache})


def _given(run: Location, shas: tuple[str, ...]) -> Extension:
    """The extension of these files' content: the one that is there, else the next."""
    known = extensions.of_run(run)
    same = [item for item in known if item.shas == shas]
    if same:
        return same[0]
    number = 1 + max((item.number for item in known), default=0)
    return Extension(run, number, shas)


def _last(run: Location) -> Extension | None:
    """The last extension that has rows."""
    return next((item for item in reversed(extensions.of_run(run)) if not item.is_empty), None)


def _remove_unprepared(run: Location, given: Extension | None, say: Callable[[str], None]) -> None:
    """What was begun with other data, and not as far as its rows, makes way for a new extension.

    Its number is the new one's, and its rows may no longer all be new.
    """
    if given is None or given.summary(PREPARE.folder) is not None:
        return
    kept = {item.name for item in [*extensions.of_run(run), given]}
    for name in (run / extensions.FOLDER).names():
        if name not in kept and extensions.is_name(name):
            say(f"removing extensions/{name}: begun with other data, its rows never prepared")
            (run / extensions.FOLDER / name).remove()


def plan(
    base: Base,
    given: Extension | None,
    files: Sequence[input_files.InputFile] = (),
    *,
    moving: Extension | None = None,
) -> list[Step]:
    """The steps of every extension in order, the given one among them, and the new selection.

    Args:
        moving: this one moves the centroids, as those do that have been told so before.

    Raises:
        DataError: there is no extension.
    """
    chain = [item for item in extensions.of_run(base.run) if item != given and not item.is_empty]
    if given is None and not chain:
        raise DataError(f"{base.run} has no extensions yet: name new data.")
    if given is not None and not given.is_empty:
        chain = sorted([*chain, given], key=lambda item: item.number)
    planned = ExtensionPlan(base, chain, files, moving)
    for extension in chain:
        for stage in STAGES:
            part = stage.extending if stage.is_wanted(base.config) else None
            if part is not None and (extension == chain[-1] or not part.ranks_pool):
                planned.add(stage, extension)
    if given is not None and given.is_empty:
        planned.add(PREPARE, given)
    return planned.steps


def refuse_outdated(steps: Sequence[Step]) -> None:
    """Raise ConfigError when finished rows or losses of extensions no longer fit the run."""
    kept = [step for step in steps if (part := step.declaration.extending) and part.keeps]
    outdated = [step for step in kept if step.out.manifest() and not step.out.is_current()]
    if outdated:
        step = outdated[0]
        folder = step.out.location.parent.parent
        raise ConfigError(
            f"{len(outdated)} finished stage(s) of extensions no longer fit the run: "
            f"{first(step.out.changed_keys())} changed (first: {step.label}). Remove {folder}, "
            "and extend the run with its data again."
        )


def _carry_out(
    base: Base, todo: Sequence[Step], given: Extension | None, say: Callable[[str], None]
) -> list[Step]:
    """Do these steps; without those of the given rows, once it turns out that none is new."""
    done = []
    for step in todo:
        if step.declaration is TRAJECTORIES:
            # An hour of scoring should not end at a subset that cannot be made.
            _check_strata(base)
        if step.declaration is CLUSTERS:
            # Of an earlier extension nothing else would replace it.
            SELECTION.directory(step.out.location.parent).remove()
        pipeline.carry_out(step, None, say)
        done.append(step)
        if step.declaration is PREPARE and given is not None and given.is_empty:
            left = extensions.of_run(base.run)
            if all(item.is_empty for item in left):
                return done
            rest = pipeline.stale(plan(base, None), None)
            return done + _carry_out(base, rest, None, say)
    return done


def _check_strata(base: Base) -> None:
    """Refuse bounds that the pool with all rows prepared so far does not allow.

    Names are for the ranking to refuse: a stratum may come with an extension that comes later.
    """
    section = base.config.selection
    if section is None or METHODS[section.method].ignores_strata:
        return
    sizes = Counter(base.summary(PREPARE.name)["strata"])
    for item in extensions.of_run(base.run):
        sizes.update(item.strata)
    named = [section.weights, section.minimum, section.maximum]
    new_strata = {name for bound in named if isinstance(bound, dict) for name in bound}
    quotas.check_strata(section, sizes, new_strata)
