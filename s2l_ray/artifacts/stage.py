"""Declarations of stages, and plans: the steps of a run and of its extensions.

The folder of every stage has a `declaration.py` with its `Stage`; `s2l_ray/stages.py` lists them in
order. The fields of a declaration are all that the program has to know of a stage before it runs.
A declaration imports neither Ray nor torch; the work imports them when it begins.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from s2l_ray.artifacts.amounts import Estimate, Quantities
from s2l_ray.artifacts.extensions import BaseRun, Extension
from s2l_ray.artifacts.inputs import Contents
from s2l_ray.artifacts.manifest import SUPPLEMENT, StageDir, fingerprint
from s2l_ray.artifacts.tables import Parts
from s2l_ray.config.sections import RunConfig, SelectionConfig
from s2l_ray.progress import Progress
from s2l_ray.storage.input_files import InputFile
from s2l_ray.storage.location import Location

REDONE = "redone"
"""The folder, in a run, of results that take the place of finished ones once they are checked."""
Fill = Callable[[StageDir, Progress], dict[str, Any]]
"""A function that fills the folder of a step, and returns the summary for its manifest."""
Early = Callable[[StageDir, Progress], AbstractContextManager[None]]
"""A function that begins a step while an earlier stage runs; it gets that stage's progress.

The step continues in the background until the context that is returned ends.
"""


@dataclass(frozen=True)
class Supplement:
    """A part of a stage's results that can be made again without the rest.

    It changes nothing that later stages read, so its inputs are no part of the fingerprint.

    Attributes:
        inputs: all that shapes it; none where it is not wanted.
        work: makes it, after the rest, and returns entries of the summary. Its `notes` are kept
            apart from those of the stage.
        is_asked_for: whether it is made for results of an older version, too, which had none.
    """

    inputs: dict[str, Any]
    work: Fill
    is_asked_for: bool = False

    def added_to(
        self, summary: dict[str, Any], out: StageDir, progress: Progress
    ) -> dict[str, Any]:
        """Make it in the folder of the stage, and return the summary with its entries."""
        made = dict(self.work(out, progress))
        record = {"fingerprint": fingerprint(self.inputs), "notes": made.pop("notes", [])}
        return {**summary, **made, SUPPLEMENT: record}


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Task:
    """The inputs and the work of one step, whose folder is not decided yet.

    Attributes:
        inputs: all that shapes the result: keys of the configuration, contents of files and
            fingerprints of earlier steps. The step is stale as soon as one of them changes.
        work: does the step.
        early: begins the step while the stage `Stage.starts_during` runs; None if it cannot.
        repeats: whether the same inputs give the same result again, to the last bit. A training on
            a GPU does not.
        is_checked: whether the work shows that the inputs cannot be used, or are too few. Then a
            finished result stays until another one is finished and fits what follows.
        supplement: a part of the results with inputs of its own, or None.
        fits_here: tells, before anything is done, whether the work can be done by threads of this
            process or by processes beside it, without a connection to Ray.
    """

    inputs: dict[str, Any]
    work: Fill
    early: Early | None = None
    repeats: bool = True
    is_checked: bool = False
    supplement: Supplement | None = None
    fits_here: Callable[[], bool] = _never

    def fill(self, out: StageDir, progress: Progress) -> dict[str, Any]:
        """Do the work and make the supplement, if there is one; return the summary."""
        summary = self.work(out, progress)
        return self.supplement.added_to(summary, out, progress) if self.supplement else summary


@dataclass(frozen=True)
class PoolSize:
    """The size of the pool, known as soon as its rows are counted.

    Attributes:
        rows: number of usable examples.
        prepared: the summary of the stage `prepare`; None if that stage is not run.
        new_strata: strata of the rows of extensions.
    """

    rows: int
    prepared: Mapping[str, Any] | None
    new_strata: frozenset[str]


@dataclass(frozen=True)
class Extending:
    """The part of a stage in extending a finished run by new rows.

    Attributes:
        task: returns the task of one extension.
        refuses_redoing: whether the program stops, instead of redoing the step, when the step is
            finished but no longer fits the run.
        ranks_pool: whether there is a single step, in the folder of the last extension.
    """

    task: Callable[["ExtensionPlan", Extension], Task]
    refuses_redoing: bool = False
    ranks_pool: bool = False


def _nothing_to_check(*_: Any) -> None:
    """Accept any configuration and any pool."""


def _no_sizes(*_: Any) -> dict[str, str]:
    """Return no line."""
    return {}


@dataclass(frozen=True, eq=False)
class Stage:
    """A stage of a run.

    Attributes:
        name: its name in manifests, messages and `--from`.
        task: returns the task of one arm ("" is the run's own), after all earlier steps of a plan.
        folder: its folder below the run.
        section: its section of the configuration. A stage whose section is left out is not run.
            A stage without one is always run.
        needs: names of the earlier stages that it reads. Their fingerprints are among its inputs.
        further_folders: further folders below the run that it fills as well.
        results: name -> paths below the run. At the end, the first path that exists is shown.
        per_arm: whether every baseline of a comparison has its own step of this stage.
        is_costly: whether finished work (hours of GPU) is discarded only if the user says so.
        uses_ray: whether its work needs a connection to Ray.
        starts_during: name of the earlier stage during which it can begin; "" if it cannot.
        needed_to_extend: whether extending a run needs its results.
        advice_on_memory: what to change when a worker had too little memory.
        skipped_if_imported: whether it is left out when trajectories are imported.
        check: raises a UserError for what can be seen to fail before anything runs.
        check_also_before: names of earlier stages before which `check` is called as well.
        check_pool: raises a UserError if the pool is too small.
        extending: its part in `s2l extend`; None if it has none.
        sizes: returns the lines of `s2l plan` that say how much it has to do, by name.
        estimate: estimates its cost for `s2l plan`; None if its cost is not estimated.
    """

    name: str
    task: Callable[["RunPlan", str], Task]
    folder: str
    section: str = ""
    needs: tuple[str, ...] = ()
    further_folders: tuple[str, ...] = ()
    results: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    per_arm: bool = False
    is_costly: bool = False
    uses_ray: bool = True
    starts_during: str = ""
    needed_to_extend: bool = False
    advice_on_memory: str = ""
    skipped_if_imported: bool = False
    check: Callable[[RunConfig], None] = _nothing_to_check
    check_also_before: tuple[str, ...] = ()
    check_pool: Callable[[RunConfig, PoolSize], None] = _nothing_to_check
    extending: Extending | None = None
    sizes: Callable[[RunConfig, Quantities], Mapping[str, str]] = _no_sizes
    estimate: Estimate | None = None

    def section_of(self, config: RunConfig) -> Any:
        """Return its section of `config`; None if `config` leaves it out."""
        return getattr(config, self.section) if self.section else None

    def is_wanted(self, config: RunConfig) -> bool:
        """Tell whether `config` asks for this stage."""
        if self.skipped_if_imported and config.imports_trajectories:
            return False
        return not self.section or self.section_of(config) is not None

    def directory(self, parent: Location, inputs: Mapping[str, Any] | None = None) -> StageDir:
        """Return its folder below a run, an arm or an extension."""
        return StageDir(
            parent / self.folder,
            self.name,
            dict(inputs or {}),
            further=self.further_folders,
            advice_on_memory=self.advice_on_memory,
        )


@dataclass(frozen=True)
class Step:
    """One stage in one folder, with its inputs and its work.

    Attributes:
        declaration: the stage.
        out: the folder, with the inputs.
        work: does the step, and returns the summary for its manifest.
        arm: the name of the baseline or extension that it belongs to; "" for the run's own.
        early: begins the step while an earlier stage runs, as `Early` says; None if it cannot.
        repeats: as `Task.repeats` says.
        replacement: the same step in a folder below REDONE, for `Task.is_checked`; None without.
        supplement: a part of the results with inputs of its own, or None.
        fits_here: as `Task.fits_here` says.
    """

    declaration: Stage
    out: StageDir
    work: Callable[[Progress], dict[str, Any]]
    arm: str = ""
    early: Callable[[Progress], AbstractContextManager[None]] | None = None
    repeats: bool = True
    replacement: "Step | None" = None
    supplement: Supplement | None = None
    fits_here: Callable[[], bool] = _never

    @classmethod
    def of(cls, stage: Stage, task: Task, parent: Location, arm: str = "") -> "Step":
        """Return the step of `task` in the stage's folder below `parent`."""
        out = stage.directory(parent, task.inputs).identified()
        replacement = None
        if task.is_checked:
            redone = stage.directory(parent / REDONE, out.inputs)
            replacement = cls._in(stage, replace(task, is_checked=False), redone, arm)
        return cls._in(stage, task, out, arm, replacement)

    @classmethod
    def _in(
        cls, stage: Stage, task: Task, out: StageDir, arm: str, replacement: "Step | None" = None
    ) -> "Step":
        return cls(
            stage,
            out,
            partial(task.fill, out),
            arm,
            partial(task.early, out) if task.early else None,
            task.repeats,
            replacement,
            task.supplement,
            task.fits_here,
        )

    @property
    def stage(self) -> str:
        """Return the name of its stage."""
        return self.declaration.name

    @property
    def label(self) -> str:
        """Return its name in the inputs of later steps and in all output."""
        return label(self.stage, self.arm)

    def depends_on(self, labels: Collection[str]) -> bool:
        """Tell whether it reads the result of one of the steps with these labels."""
        return not self.out.inputs.keys().isdisjoint(labels)


def label(stage: str, arm: str = "") -> str:
    """Return the name of a stage's step in one arm."""
    return f"{stage} ({arm})" if arm else stage


@dataclass(frozen=True)
class RunPlan:
    """All steps of a configuration, in order.

    Attributes:
        config: the configuration of the run.
        run: the folder of the run.
        contents: hashes of input files, and commits of models on the hub.
        stages: the table of all stages.
        arms: the selections to compare, by name of their folder; "" is the run's own.
        steps: the steps planned so far.
    """

    config: RunConfig
    run: Location
    contents: Contents
    stages: Sequence[Stage]
    arms: Mapping[str, SelectionConfig] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def add(self, stage: Stage, arm: str = "") -> None:
        """Add the step of `stage` in `arm` after the steps planned so far."""
        self.steps.append(Step.of(stage, stage.task(self, arm), self.parent(arm), arm))

    def parent(self, arm: str = "") -> Location:
        """Return the folder that holds the stages of an arm."""
        return self.run / "arms" / arm if arm else self.run

    def folder(self, stage: Stage, arm: str = "") -> Location:
        """Return the folder of a stage in an arm."""
        return self.parent(arm) / stage.folder

    def parts(self, stage: Stage, prefix: str = "part") -> Parts:
        """Return the numbered files of the run's own step of a stage."""
        return Parts(self.folder(stage), prefix)

    def summary(self, stage: Stage) -> dict[str, Any]:
        """Return the summary of a finished stage."""
        manifest = stage.directory(self.run).manifest()
        assert manifest is not None, f"{stage.name} is not finished"
        return manifest.summary

    def after(self, stage: Stage, arm: str = "") -> dict[str, str]:
        """Return the fingerprints, by label, of the planned steps that `stage` needs in `arm`."""
        per_arm = {item.name for item in self.stages if item.per_arm}
        labels = {label(name, arm if name in per_arm else "") for name in stage.needs}
        return {step.label: step.out.fingerprint for step in self.steps if step.label in labels}

    def inputs_now(self, step: Step) -> dict[str, Any]:
        """Return the inputs of a step, with the contents that its files have at this moment.

        Raises:
            DataError: an input is no longer there.
        """
        earlier = self.steps[: [item.label for item in self.steps].index(step.label)]
        return step.declaration.task(replace(self, steps=earlier), step.arm).inputs

    def through(self, until: str | None) -> list[Step]:
        """Return the steps up to and with the stage `until`; all for None."""
        names = [stage.name for stage in self.stages]
        last = names.index(until or names[-1])
        return [step for step in self.steps if names.index(step.stage) <= last]


@dataclass(frozen=True)
class ExtensionPlan:
    """The steps of all extensions of a finished run, in order.

    Attributes:
        base: the run.
        chain: the extensions that have new rows, in order.
        files: the input files of the extension that is to be prepared.
        moving: the extension that this command asks to move the centroids, or None.
        steps: the steps planned so far.
    """

    base: BaseRun
    chain: Sequence[Extension]
    files: Sequence[InputFile] = ()
    moving: Extension | None = None
    steps: list[Step] = field(default_factory=list)

    def add(self, stage: Stage, extension: Extension) -> None:
        """Add the step of `stage` for `extension` after the steps planned so far."""
        assert stage.extending is not None, f"{stage.name} has no part in extensions"
        task = stage.extending.task(self, extension)
        self.steps.append(Step.of(stage, task, extension.location, extension.name))

    def before(self, extension: Extension) -> list[Extension]:
        """Return the extensions before `extension`."""
        return [item for item in self.chain if item.number < extension.number]

    def fingerprints(self, stage: Stage, extensions: Sequence[Extension]) -> list[str]:
        """Return the fingerprints of a stage's steps in these extensions, in order."""
        names = {item.name for item in extensions}
        return [
            step.out.fingerprint
            for step in self.steps
            if step.stage == stage.name and step.arm in names
        ]

    def fingerprint_of_run(self, stage: Stage) -> str:
        """Return a hash of the results of a stage of the run."""
        return self.base.fingerprint(stage.name)
