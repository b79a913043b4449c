"""Extend a finished run: score new data, assign it to the clusters, rank it with the old data.

An extension has steps of the same stages as a run, in folders of its own. Their inputs come from
the run's manifests, so neither the run's data nor its configuration file is needed. Nothing of the
run is written.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from s2l_ray.artifacts import extensions
from s2l_ray.artifacts.extensions import UPDATED, BaseRun, Extension
from s2l_ray.artifacts.inputs import CONTENTS, Contents
from s2l_ray.artifacts.manifest import read_manifest
from s2l_ray.artifacts.stage import ExtensionPlan, Step
from s2l_ray.artifacts.tables import Parts
from s2l_ray.clusters.declaration import CLUSTERS
from s2l_ray.data.declaration import PREPARE
from s2l_ray.distributed import session
from s2l_ray.errors import ConfigError, DataError, first
from s2l_ray.extend.base_run import check_losses, check_unchanged, load_base_run
from s2l_ray.monitoring import journal
from s2l_ray.pipeline import run as pipeline
from s2l_ray.pipeline.staleness import stale
from s2l_ray.pipeline.subset import config_of
from s2l_ray.pipeline.supplements import complete, incomplete
from s2l_ray.selection import checks as selection_checks
from s2l_ray.selection import quotas
from s2l_ray.selection.declaration import SELECTION
from s2l_ray.selection.methods import METHODS
from s2l_ray.stages import STAGES
from s2l_ray.storage import input_files, small_files
from s2l_ray.storage.location import Location, absolute
from s2l_ray.storage.lock import exclusive
from s2l_ray.trajectories.declaration import TRAJECTORIES


@dataclass(frozen=True)
class ExtendResult:
    """The result of extending a run.

    Attributes:
        done: the steps that ran.
        extension: the extension to report on: that of the given data, else the one that was asked
            to move the centroids, else the last one if any was assigned to clusters again.
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
) -> ExtendResult:
    """Do what is not yet done for new data and for earlier extensions.

    If the run's clusters have changed, extensions are assigned to them again. If its selection has
    changed, they are ranked again. Both happen without new data as well.

    Args:
        run: the folder of the run.
        patterns: the new data: files, globs, directories or URIs; may be empty.
        update_centroids: whether the extension of the new data, or else the last one, moves the
            stored centroids until they fit all rows up to its own, and labels these rows anew. It
            does so again whenever it is assigned to clusters again.
        address: of the Ray cluster to join; None for the default.
        say: takes each line of progress.

    Raises:
        UserError: the user can correct it; nothing of the stage that failed is visible.
    """
    patterns = [absolute(name) for name in patterns]
    files = _listed(run, patterns, say)  # before the lock, which would write into no run
    with exclusive(run), small_files.read_once(run), journal.kept(run, session.secrets()):
        base = load_base_run(run)
        contents = cached_contents(run)
        check_unchanged(base, contents)
        hashes = {file: contents.file_hash(file) for file in files}
        given = extension_of(run, hashes.values()) if files else None
        moving = (given or _last(run)) if update_centroids else None
        files = sorted(files, key=lambda file: (hashes[file], file.uri))
        steps = plan(base, given, files, moving=moving)
        refuse_outdated(steps)
        todo, lacking = stale(steps, None), incomplete(steps)
        if any(UPDATED in step.out.inputs for step in todo):
            check_losses(run, extensions.list_prepared(run))
        if any(step.declaration is TRAJECTORIES for step in todo):
            check_strata(base)
        if todo:
            remove_unprepared(run, given, say)
            small_files.write(run / extensions.FOLDER / CONTENTS, contents.cache)
        if moving is not None and not moving.is_empty:
            moving.keep_moving()
        if todo or lacking:
            with pipeline.connected([*lacking, *todo], base.config, address, say):
                checks = _Unchanged(base, contents, patterns, given)
                for step in lacking:
                    complete(step, say)
                todo = [*lacking, *carry_out(base, todo, given, say, checks)]
        if moving is not None and moving.is_empty:
            moving.stop_moving()
            say("no row of the data is new: the centroids stay as they are")
    assigned = any(step.declaration is CLUSTERS for step in todo)
    return ExtendResult(todo, given or moving or (_last(run) if assigned else None))


def _listed(
    run: Location, patterns: Sequence[str], say: Callable[[str], None]
) -> Sequence[input_files.InputFile]:
    """Return the files of the new data, and say what was noticed."""
    data = config_of(run).data
    split = data.split if data is not None else None
    listing = input_files.list_files(patterns, "DATA", run=run, split=split)
    for note in listing.notes:
        say(note)
    return listing.files


def cached_contents(run: Location) -> Contents:
    """Return the hashes cached for the run and for its extensions."""
    own = Contents.load(run / extensions.FOLDER)
    return Contents({**Contents.load(run).cache, **own.cache})


def extension_of(run: Location, file_hashes: Iterable[str]) -> Extension:
    """Return the prepared extension of these contents, in any order; else a new one.

    A new extension has the number after the last one.
    """
    ordered = tuple(sorted(file_hashes))
    prepared = extensions.list_prepared(run)
    same = [item for item in prepared if item.file_hashes == ordered]
    if same:
        return same[0]
    number = 1 + max((item.number for item in prepared), default=0)
    return Extension(run, number, ordered)


def _last(run: Location) -> Extension | None:
    """Return the last extension that has new rows, or None."""
    return next(
        (item for item in reversed(extensions.list_prepared(run)) if not item.is_empty), None
    )


def remove_unprepared(run: Location, given: Extension | None, say: Callable[[str], None]) -> None:
    """Remove extensions of other data that were begun, but never prepared.

    This happens only if `given` is not prepared either. It takes the number of such an extension,
    and the rows of the other data may then no longer be new.
    """
    if given is None or given.summary(PREPARE.folder) is not None:
        return
    for name in (run / extensions.FOLDER).names():
        begun = extensions.is_name(name) and name != given.name
        # It is asked for by its name: no list that a store gives decides what is removed.
        if begun and read_manifest(run / extensions.FOLDER / name / PREPARE.folder) is None:
            say(f"removing extensions/{name}: begun with other data, its rows never prepared")
            small_files.remove(run / extensions.FOLDER / name)


def plan(
    base: BaseRun,
    given: Extension | None,
    files: Sequence[input_files.InputFile] = (),
    *,
    moving: Extension | None = None,
) -> list[Step]:
    """Return the steps of every extension in order, and last the new selection.

    Args:
        base: the run.
        given: the extension of the new data, which gets steps too; None without new data.
        files: the new data.
        moving: an extension that moves the centroids from now on. Those whose settings say so move
            them as well.

    Raises:
        DataError: there is no extension.
    """
    chain = [
        item for item in extensions.list_prepared(base.run) if item != given and not item.is_empty
    ]
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
    """Raise ConfigError if finished rows or losses of extensions no longer fit the run."""
    outdated = [
        step
        for step in steps
        if (part := step.declaration.extending) and part.refuses_redoing
        if step.out.manifest() and not step.out.is_current()
    ]
    if outdated:
        step = outdated[0]
        folder = step.out.location.parent.parent
        raise ConfigError(
            f"{len(outdated)} finished stage(s) of extensions no longer fit the run: "
            f"{first(step.out.changed_keys())} changed (first: {step.label}). Remove {folder}, "
            "and extend the run with its data again."
        )


@dataclass(frozen=True)
class _Unchanged(pipeline.Checks):
    """Checks that new rows, and what reads them, stay as they were when the command began.

    Attributes:
        base: the run.
        contents: hashes of files.
        patterns: the new data.
        given: its extension; None without new data.
    """

    base: BaseRun
    contents: Contents
    patterns: Sequence[str]
    given: Extension | None

    def unchanged(self) -> None:
        check_unchanged(self.base, self.contents)
        if self.given is None or self.given.summary(PREPARE.folder) is not None:
            return
        files = input_files.expand([absolute(name) for name in self.patterns], "DATA")
        if tuple(sorted(self.contents.file_hashes(files))) != self.given.file_hashes:
            raise DataError(
                f"DATA changed while it was read ({first([file.uri for file in files])}), so no "
                "row of it is added. Run the same command again."
            )


def carry_out(
    base: BaseRun,
    todo: Sequence[Step],
    given: Extension | None,
    say: Callable[[str], None],
    checks: pipeline.Checks | None = None,
) -> list[Step]:
    """Do the steps `todo`, and return those that were done.

    If preparing `given` shows that none of its rows is new, its further steps are left out.
    """
    done = []
    for step in todo:
        if step.declaration is TRAJECTORIES:
            # Before an hour of scoring, refuse a subset that cannot be made.
            check_strata(base)
            check_selection(base)
        if step.declaration is CLUSTERS:
            # A ranking by the old clusters; in an earlier extension no other would replace it.
            SELECTION.directory(step.out.location.parent).remove()
        pipeline.carry_out(step, None, say, checks)
        done.append(step)
        if step.declaration is PREPARE and given is not None and given.is_empty:
            if all(item.is_empty for item in extensions.list_prepared(base.run)):
                return done
            rest = stale(plan(base, None), None)
            return done + carry_out(base, rest, None, say, checks)
    return done


def check_selection(base: BaseRun) -> None:
    """Refuse a condition and scores that do not fit all rows prepared so far."""
    more = [item.folder(PREPARE.folder) for item in extensions.list_prepared(base.run)]
    selection_checks.check_prepared(base.config, Parts(base.run / PREPARE.folder, more=tuple(more)))


def check_strata(base: BaseRun) -> None:
    """Refuse bounds of strata that the pool, with all rows prepared so far, does not allow.

    Unknown names of strata are accepted here, as a later extension may have them. The ranking
    refuses them.
    """
    section = base.config.selection
    if section is None or METHODS[section.method].ignores_strata:
        return
    if base.config.clusters is not None and base.config.clusters.strata == "auto":
        return  # how many rows of each there are shows when they are placed
    sizes = Counter(base.summary(PREPARE.name)["strata"])
    for item in extensions.list_prepared(base.run):
        sizes.update(item.strata)
    named = [section.weights, section.minimum, section.maximum]
    new_strata = {name for bound in named if isinstance(bound, dict) for name in bound}
    quotas.check_strata(section, sizes, new_strata)
