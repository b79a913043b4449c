"""Do the steps of a run that are not done yet.

Before anything runs, stale steps are listed. A run that would discard finished training is refused.
Nothing finished is removed before all that can be known of its replacement has been checked.
"""

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from s2l_ray import collector, interrupts
from s2l_ray.artifacts.extensions import LOSSES_BEFORE
from s2l_ray.artifacts.inputs import CONTENTS
from s2l_ray.artifacts.manifest import Manifest, check_run, open_run
from s2l_ray.artifacts.stage import REDONE, RunPlan, Stage, Step
from s2l_ray.artifacts.tables import PLACES
from s2l_ray.config.paths import inputs_of, paths_in, stored_tree
from s2l_ray.config.sections import RunConfig
from s2l_ray.data import kept_templates
from s2l_ray.distributed import cluster_watch, session, shared_paths, waiting
from s2l_ray.errors import ConfigError
from s2l_ray.monitoring import logged
from s2l_ray.pipeline import preflight
from s2l_ray.pipeline.staleness import is_redone, outdate, refuse_discarding, stale
from s2l_ray.pipeline.steps import plan
from s2l_ray.pipeline.supplements import complete, incomplete
from s2l_ray.progress import Progress, duration, label_column
from s2l_ray.stages import NAMES, STAGES
from s2l_ray.storage import small_files
from s2l_ray.storage.location import Location
from s2l_ray.storage.lock import exclusive
from s2l_ray.trajectories.declaration import TRAJECTORIES

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
    with small_files.read_once(folder):  # what another run changes meanwhile is seen below
        with Progress("looking at the run"):  # a store may not answer
            check_run(folder)
        with Progress("reading the inputs"):
            planned = plan(config, folder)
            steps = planned.through(until)
            todo = stale(steps, from_stage)
        if not todo and not incomplete(steps):
            _store_what_moved(planned)
            return []
        with Progress("checking the configuration"), collector.paused():  # it loads libraries
            preflight.check(planned, todo, from_stage)
        open_run(folder)
    with (
        exclusive(folder),
        small_files.read_once(folder),
        logged(folder, config.tracking, session.secrets()),
    ):
        # Another run may have finished some of it while this one was waiting or hashing.
        todo = stale(steps, from_stage)
        refuse_discarding(planned.steps, todo, from_stage)
        planned.contents.check_revisions()
        small_files.write(folder / CONTENTS, planned.contents.cache)
        preflight.check_pool(config, {step.stage for step in todo})
        lacking = [step for step in incomplete(steps) if step not in todo]
        with connected([*lacking, *todo], config, address, say):
            # Old results stay until it is known that the cluster can compute them again.
            for step in lacking:
                complete(step, say)
            if not stale(planned.steps, None):
                store(config, folder)
            do_steps(planned, todo, from_stage, say)
    return [*lacking, *todo]


def store(config: RunConfig, folder: Location) -> None:
    """Write the configuration with which others read the results of a run."""
    small_files.write(folder / CONFIG, stored_tree(config))


def _store_what_moved(planned: RunPlan) -> None:
    """Store the configuration if a path in it is another now, and all results are of it."""
    file, tree = planned.run / CONFIG, stored_tree(planned.config)
    before = small_files.read(file)
    results = [step.out for step in planned.steps if step.declaration.section]
    others = [out for out in results if out.manifest() is not None and not out.is_current()]
    if (before is not None and paths_in(before) == paths_in(tree)) or others:
        return
    with exclusive(planned.run):
        if planned.config.data is not None:  # older versions kept no templates
            kept_templates.keep(planned.config.data, planned.run)
        small_files.write(file, tree)


def do_steps(
    planned: RunPlan, todo: Sequence[Step], from_stage: str | None, say: Callable[[str], None]
) -> None:
    """Do the steps `todo` in order, each with the checks that belong before and after it."""
    redone = {step.label for step in planned.steps if is_redone(step, from_stage)}
    for number, step in enumerate(todo):
        following = todo[number + 1] if number + 1 < len(todo) else None
        carry_out(step, following, say, _RunChecks(planned, todo[number:], redone))
    small_files.remove(planned.run / REDONE)


def needs_ray(todo: Sequence[Step], address: str | None) -> bool:
    """Tell whether a step needs a connection to Ray: all do on a cluster that is joined."""
    using = [step for step in todo if step.declaration.uses_ray]
    if not using or session.joins_cluster(address):
        return bool(using)
    with Progress("checking what fits this process"):
        return not all(step.fits_here() for step in using)


@contextlib.contextmanager
def connected(
    todo: Sequence[Step], config: RunConfig, address: str | None, say: Callable[[str], None]
) -> Iterator[None]:
    """Connect to Ray inside the block, if a step needs it, and check that it can hold the steps."""
    if not needs_ray(todo, address):
        yield
        return
    with contextlib.ExitStack() as stack:
        connect(address, config.resources.wait, stack, say)
        check_shared(todo[0].out.location.parent, config, {step.stage for step in todo}, address)
        preflight.check_resources(config, list(dict.fromkeys(step.declaration for step in todo)))
        yield


def connect(
    address: str | None,
    wait_seconds: float,
    stack: contextlib.ExitStack,
    say: Callable[[str], None],
) -> None:
    """Connect to Ray until `stack` closes; say so, unless this process is connected already."""
    doing = "joining the cluster" if session.joins_cluster(address) else "starting Ray"
    if not cluster_watch.is_connected():
        say(doing)
    with Progress(doing):
        stack.enter_context(session.cluster(address))
    from s2l_ray.distributed import executions  # loads Ray, with what `cluster` has set

    stack.enter_context(executions.noted())
    stack.enter_context(cluster_watch.watched(executions.give_up))
    stack.enter_context(waiting.limited_to(wait_seconds))


def check_shared(
    run: Location, config: RunConfig, stages: Collection[str], address: str | None
) -> None:
    """Refuse a cluster that was joined, if a node does not share `run` or what `stages` read.

    Raises:
        ConfigError: naming the key and the nodes.
    """
    if session.joins_cluster(address):
        with Progress("checking what the nodes share"):
            shared_paths.check(run, paths_read(run, config, stages))


def paths_read(
    run: Location, config: RunConfig, stages: Collection[str]
) -> dict[str, Sequence[str]]:
    """Return the paths of a configuration that `stages` will read, by key.

    Losses that a finished import has copied into the run are not read where they came from.
    """
    paths = inputs_of(config, stages)
    folder = run / TRAJECTORIES.folder
    if TRAJECTORIES.name in stages or (folder / PLACES).is_file():
        return paths
    return {key: value for key, value in paths.items() if key != "trajectories.path"}


class Checks:
    """What is checked before, during and after a step. This class checks nothing."""

    def unchanged(self) -> None:
        """Refuse inputs that are no longer those that the step was planned with."""

    def replacing(self, summary: Mapping[str, Any] | None) -> None:
        """Refuse to replace an old result; if none is refused, note what no longer counts.

        Args:
            summary: of the result that is to take its place; None if it is not there yet.
        """


@dataclass(frozen=True)
class _RunChecks(Checks):
    """The checks of a step of a run.

    Attributes:
        plan: all steps.
        todo: the step, and those that this run does after it.
        redone: labels of all steps that `--from` redoes.
    """

    plan: RunPlan
    todo: Sequence[Step]
    redone: Collection[str]

    def unchanged(self) -> None:
        preflight.check_unchanged(self.plan, self.todo[0])

    def replacing(self, summary: Mapping[str, Any] | None) -> None:
        step = self.todo[0]
        new = {} if summary is None else {step.stage: summary}
        config = self.plan.config
        preflight.check_pool(config, {item.stage for item in self.todo}, new)
        # Until here all results are of the stored configuration, with which others read them.
        store(config, self.plan.run)
        outdate(self.plan.steps, step, {*self.redone, *(item.label for item in self.todo)})


def carry_out(
    step: Step, following: Step | None, say: Callable[[str], None], checks: Checks | None = None
) -> None:
    """Do `step`, and begin the following one meanwhile if it can start during `step`."""
    checks = checks or Checks()
    checks.unchanged()
    if step.replacement is not None and _has_result(step):
        manifest = step.replacement.out.manifest()
        if not step.replacement.out.is_current() or manifest is None:
            manifest = _do(step.replacement, None, checks)
        checks.replacing(manifest.summary)
        step.out.replace_by(step.replacement.out)
    else:
        checks.replacing(None)
        manifest = _do(step, following, checks)
    summary = manifest.summary
    say(f"  {label_column(step.label)}{duration(manifest.seconds):>8}   {headline(summary)}")
    for note in manifest.notes:
        say(f"    {note}")


def _has_result(step: Step) -> bool:
    """Tell whether a finished result of `step` is in place, or on the way to it."""
    assert step.replacement is not None
    return step.out.manifest() is not None or step.replacement.out.is_current()


def _do(step: Step, following: Step | None, checks: Checks) -> Manifest:
    """Do the work of `step` in its folder, and return the manifest."""
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
    checks.unchanged()
    manifest = step.out.finish(summary, time.monotonic() - started)
    if progress.is_to_stop:
        interrupts.takes_time.clear()  # set since Ctrl-C, so that the result could be finished
        raise KeyboardInterrupt
    return manifest


def _forget_early_work(step: Step, stages: Sequence[Stage]) -> None:
    """Remove unfinished work of `stages`, which start during `step`.

    An interrupted run began it from results of `step` that no longer exist.
    """
    for stage in stages:
        early = stage.directory(step.out.location.parent)
        if early.manifest() is None:
            early.remove()


def headline(summary: Mapping[str, Any]) -> str:
    """Return the first four numbers of a summary as text, and what was cut."""
    shown, most = [], 4 + bool(summary.get("cut"))
    for key, value in summary.items():
        if key == LOSSES_BEFORE or (key == "cut" and not value):
            continue
        name = key.removeprefix("num_").replace("_", " ")
        if isinstance(value, int) and not isinstance(value, bool):
            shown.append(f"{value:,} {name.removesuffix('s') if value == 1 else name}")
        elif isinstance(value, float):
            shown.append(f"{name} {value:,.4g}")
    return ", ".join(shown[:most])
