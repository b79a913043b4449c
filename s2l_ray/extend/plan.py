"""New data for a finished run: scored at its checkpoints, placed in its clusters, ranked with it.

Every extension has steps of the same stages as a run, in folders of its own. What they depend on
is read off the run's manifests, so neither the run's data nor its configuration file is needed,
and nothing of the run is written.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from s2l_ray.artifacts import extensions
from s2l_ray.artifacts.extensions import UPDATED, Extension
from s2l_ray.artifacts.inputs import CONTENTS, Contents
from s2l_ray.artifacts.manifest import Parts, StageDir, section_inputs
from s2l_ray.data import staging
from s2l_ray.errors import ConfigError, DataError, first
from s2l_ray.extend import place as placing
from s2l_ray.extend.base_run import Base, base_of, check_losses, check_unchanged, checkpoint_places
from s2l_ray.pipeline import run as pipeline
from s2l_ray.pipeline.steps import Step
from s2l_ray.pipeline.subset import config_of
from s2l_ray.progress import Progress
from s2l_ray.selection import choice
from s2l_ray.selection.methods import METHODS
from s2l_ray.storage import input_files
from s2l_ray.storage.location import Location, absolute, absolute_if_file
from s2l_ray.storage.lock import exclusive

KEPT = ("prepare", "trajectories")
"""Finished work of these stages is never redone for a run that has changed."""


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
        if any(step.stage == "trajectories" for step in todo):
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
    placed = any(step.stage == "clusters" for step in todo)
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
    if given is None or given.summary("prepare") is not None:
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
    builder = _Builder(base, chain, files, moving)
    for extension in chain:
        builder.add(extension)
    if given is not None and given.is_empty:
        builder.add_prepare(given)
    if chain:
        builder.add_selection()
    return builder.made


def refuse_outdated(steps: Sequence[Step]) -> None:
    """Raise ConfigError when finished rows or losses of extensions no longer fit the run."""
    outdated = [
        step
        for step in steps
        if step.stage in KEPT and step.out.manifest() is not None and not step.out.is_current()
    ]
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
        if step.stage == "trajectories":
            # An hour of scoring should not end at a subset that cannot be made.
            _check_strata(base)
        if step.stage == "clusters":
            # Of an earlier extension nothing else would replace it.
            (step.out.location.parent / "selection").remove()
        pipeline.carry_out(step, None, say)
        done.append(step)
        if step.stage == "prepare" and given is not None and given.is_empty:
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
    sizes = Counter(base.summary("prepare")["strata"])
    for item in extensions.of_run(base.run):
        sizes.update(item.strata)
    named = [section.weights, section.minimum, section.maximum]
    elsewhere = {name for bound in named if isinstance(bound, dict) for name in bound}
    choice.check_strata(section, sizes, elsewhere)


@dataclass
class _Builder:
    """Builds the steps in order; each one's fingerprint goes into those after it."""

    base: Base
    chain: list[Extension]
    files: Sequence[input_files.InputFile]
    moving: Extension | None
    made: list[Step] = field(default_factory=list)

    def add(self, extension: Extension) -> None:
        """The steps of one extension up to its clusters."""
        base, earlier = self.base, self._before(extension)
        prepare = self.add_prepare(extension)
        trajectories = self._add(
            extension,
            "trajectories",
            {
                "trajectories of the run": base.fingerprint("trajectories"),
                "prepare": prepare.fingerprint,
            },
            partial(_trajectories, base, extension),
        )
        inputs: dict[str, Any] = {
            "clusters of the run": base.fingerprint("clusters"),
            "trajectories": trajectories.fingerprint,
            "earlier": self._fingerprints("clusters", earlier),
        }
        moves = extension == self.moving or extension.moves_centroids
        if moves:
            inputs[UPDATED] = True
        work = partial(placing.place, base, [*earlier, extension], moves=moves)
        self._add(extension, "clusters", inputs, work)

    def add_prepare(self, extension: Extension) -> StageDir:
        earlier = self._before(extension)
        inputs = {
            "data": list(extension.shas),
            "prepare of the run": self.base.fingerprint("prepare"),
            "earlier": self._fingerprints("prepare", earlier),
        }
        work = partial(_prepare, self.base, earlier, self.files)
        return self._add(extension, "prepare", inputs, work)

    def add_selection(self) -> None:
        """The ranking of the whole pool, in the folder of the last extension."""
        section = self.base.config.selection
        if section is None:
            return
        inputs = {
            **section_inputs("selection", section),
            "seed": self.base.config.seed,
            "prepare of the run": self.base.fingerprint("prepare"),
            "clusters of the run": self.base.fingerprint("clusters"),
            "clusters": self._fingerprints("clusters", self.chain),
        }
        self._add(self.chain[-1], "selection", inputs, partial(_selection, self.base, self.chain))

    def _add(
        self,
        extension: Extension,
        stage: str,
        inputs: dict[str, Any],
        work: Callable[[StageDir, Progress], dict[str, Any]],
    ) -> StageDir:
        out = StageDir(extension.folder(stage), stage, inputs)
        self.made.append(Step(out, partial(work, out), extension.name))
        return out

    def _before(self, extension: Extension) -> list[Extension]:
        return [item for item in self.chain if item.number < extension.number]

    def _fingerprints(self, stage: str, of: Sequence[Extension]) -> list[str]:
        names = {item.name for item in of}
        return [
            step.out.fingerprint for step in self.made if step.stage == stage and step.arm in names
        ]


def _prepare(
    base: Base,
    earlier: Sequence[Extension],
    files: Sequence[input_files.InputFile],
    out: StageDir,
    progress: Progress,
) -> dict[str, Any]:
    """The rows that neither the run nor an earlier extension has."""
    from s2l_ray.data import prepare

    data = base.config.data
    assert data is not None
    data = data.model_copy(update={"template": absolute_if_file(data.template)})
    pool = Parts(base.run / "prepared", more=tuple(item.folder("prepare") for item in earlier))
    tokenizer = base.summary("prepare")["tokenizer"]
    summary = prepare.run(data, files, tokenizer, out, progress=progress, pool=pool)
    rows = Parts(pool.folder, "rows", pool.more)
    notes = (
        staging.check_ids(out.location / "staged", rows, data.fields) if summary["known"] else []
    )
    return {**summary, "notes": notes} if notes else summary


def _trajectories(
    base: Base, extension: Extension, out: StageDir, progress: Progress
) -> dict[str, Any]:
    """Losses at the run's checkpoints, computed in the precision of the run's own."""
    from s2l_ray.trajectories import stage as trajectories

    section = base.config.trajectories
    assert section is not None
    section = section.model_copy(update={"precision": base.summary("trajectories")["precision"]})
    places = zip(base.summary("reference")["steps"], checkpoint_places(base), strict=True)
    checkpoints = [trajectories.Checkpoint(step, place) for step, place in places]
    prepared = Parts(extension.folder("prepare"))
    return trajectories.run(section, prepared, checkpoints, out, progress=progress)


def _selection(
    base: Base, chain: Sequence[Extension], out: StageDir, progress: Progress
) -> dict[str, Any]:
    """Rank old and new rows together."""
    from s2l_ray.selection import stage as selection

    section = base.config.selection
    assert section is not None
    pool = extensions.pool(base.run, list(chain))
    return selection.run(
        section,
        pool.clusters,
        pool.rows,
        out,
        seed=base.config.seed,
        trajectories=pool.trajectories,
    )
