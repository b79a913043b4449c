"""Stages as they declare themselves, and plans: the steps of a run, and of its extensions.

Every stage has a `declaration.py` in its own folder, with one `Stage`; `s2l_ray/stages.py` lists
them in order. Whatever the program has to know of a stage before it runs it is a field here, so a
declaration imports neither Ray nor torch; the work imports them when it begins.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from s2l_ray.artifacts.extensions import Base, Extension
from s2l_ray.artifacts.inputs import Contents
from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import Parts
from s2l_ray.config.sections import RunConfig, SelectionConfig
from s2l_ray.progress import Progress
from s2l_ray.storage.input_files import InputFile
from s2l_ray.storage.location import Location

Work = Callable[[StageDir, Progress], dict[str, Any]]
"""Fills the folder of a step, and returns the summary for its manifest."""
Early = Callable[[StageDir, Progress], AbstractContextManager[None]]
"""Begins a step while an earlier stage runs, whose progress is given."""


@dataclass(frozen=True)
class Task:
    """One step before it has a folder.

    Attributes:
        inputs: all that shapes the result: keys of the configuration, contents of files,
            fingerprints of earlier steps. A change of any makes the step stale.
        work: does it.
        early: begins it while the stage `Stage.starts_during` runs; None where it cannot.
    """

    inputs: dict[str, Any]
    work: Work
    early: Early | None = None


@dataclass(frozen=True)
class PoolSize:
    """The pool as soon as it is counted.

    Attributes:
        rows: usable examples.
        prepared: the summary of the stage `prepare`; None where trajectories are imported.
        new_strata: strata that only extensions of the run have.
    """

    rows: int
    prepared: Mapping[str, Any] | None
    new_strata: frozenset[str]


@dataclass(frozen=True)
class Speed:
    """Measured constants with which `s2l plan` turns operations into seconds.

    Attributes:
        of_product: share of a given speed in matrix products that a worker reaches on average.
            From two runs on two CPU cores in fp32; a GPU has reached more in scoring, narrow
            models in bf16 reach less.
        of_trial: share of a speed measured in passes of a small model. A stage also has optimizer
            steps, other workers and rows of unequal length. From two runs of docs/experiments.md
            on another pair of CPU cores, one in fp32 and one in bf16.
        start_seconds: from the beginning of the stage to its first computation, mostly imports;
            from the latter runs.
        start_seconds_on_gpu: the same with CUDA's start and the compilation of layers; from runs
            on one H200, where 41 of the reference's 65 seconds are compilation, measured apart.
    """

    of_product: float
    of_trial: float
    start_seconds: float
    start_seconds_on_gpu: float


@dataclass(frozen=True)
class Extending:
    """What a stage does when new rows extend a finished run.

    Attributes:
        task: the step of one extension.
        keeps: whether finished work of it is refused, not redone, when the run has changed.
        ranks_pool: whether it takes place once, in the folder of the last extension.
    """

    task: Callable[["ExtensionPlan", Extension], Task]
    keeps: bool = False
    ranks_pool: bool = False


def _nothing_to_check(*_: Any) -> None:
    """Accept anything."""


@dataclass(frozen=True, eq=False)
class Stage:
    """A stage of a run.

    Attributes:
        name: as manifests, messages and `--from` have it.
        task: plans the step of one arm ("" is the run's own) after all earlier steps.
        folder: below the run.
        section: its section of the configuration; a stage whose section is left out is not run.
        needs: names of the earlier stages that it reads, whose fingerprints are inputs of it.
        further_folders: folders beside its own that it fills as well.
        results: name -> paths below the run, the first of which that exists is shown at the end.
        per_arm: whether every baseline of a comparison has a step of it.
        is_costly: whether finished work, hours of GPU, is discarded only when the user says so.
        uses_ray: whether its work needs a connection to Ray.
        starts_during: name of the earlier stage during which it can begin.
        needed_to_extend: whether new rows are computed from what it left.
        advice_on_memory: what to change when a worker had too little memory.
        skipped_if_imported: whether it has nothing to do where trajectories are imported.
        check: refuses, with a UserError, what can be seen before anything runs.
        check_also_before: names of earlier stages before which that is checked as well.
        check_pool: refuses, with a UserError, what the pool is too small for.
        extending: its part in `s2l extend`; None where it has none.
        speed: constants of its costs; None where its time is not estimated.
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
    speed: Speed | None = None

    def section_of(self, config: RunConfig) -> Any:
        """Return its section, or None where the configuration has none."""
        return getattr(config, self.section) if self.section else None

    def is_wanted(self, config: RunConfig) -> bool:
        """Tell whether `config` asks for it."""
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
    """One stage in one folder: what it depends on, and how it is done.

    Attributes:
        declaration: the stage.
        out: the folder, with the inputs.
        work: does it.
        arm: the baseline or the extension that it belongs to; "" for the run's own.
        early: inside it the step is begun, while the stage runs whose progress is given.
    """

    declaration: Stage
    out: StageDir
    work: Callable[[Progress], dict[str, Any]]
    arm: str = ""
    early: Callable[[Progress], AbstractContextManager[None]] | None = None

    @classmethod
    def of(cls, stage: Stage, task: Task, parent: Location, arm: str = "") -> "Step":
        """Return the step of `task` in the stage's folder below `parent`."""
        out = stage.directory(parent, task.inputs)
        early = partial(task.early, out) if task.early else None
        return cls(stage, out, partial(task.work, out), arm, early)

    @property
    def stage(self) -> str:
        """The name of its stage."""
        return self.declaration.name

    @property
    def label(self) -> str:
        """As the inputs of later steps and all output call it."""
        return label(self.stage, self.arm)


def label(stage: str, arm: str = "") -> str:
    """Return the name of a stage's step in one arm."""
    return f"{stage} ({arm})" if arm else stage


@dataclass(frozen=True)
class RunPlan:
    """All steps of a configuration in order, and the hashed contents they are planned with.

    Attributes:
        config: of the run.
        run: its folder.
        contents: hashes of input files and revisions of models on the hub.
        stages: the table of all stages.
        arms: the selections to compare: "" is the run's own, others are named after their folder.
        steps: those planned so far.
    """

    config: RunConfig
    run: Location
    contents: Contents
    stages: Sequence[Stage]
    arms: Mapping[str, SelectionConfig] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def add(self, stage: Stage, arm: str = "") -> None:
        """Plan the step of `stage` in `arm`, after all those that are there."""
        self.steps.append(Step.of(stage, stage.task(self, arm), self.parent(arm), arm))

    def parent(self, arm: str = "") -> Location:
        """Return the folder that the stages of an arm lie in."""
        return self.run / "arms" / arm if arm else self.run

    def folder(self, stage: Stage, arm: str = "") -> Location:
        """Return the folder of a stage."""
        return self.parent(arm) / stage.folder

    def parts(self, stage: Stage, prefix: str = "part") -> Parts:
        """Return the numbered files of a stage."""
        return Parts(self.folder(stage), prefix)

    def summary(self, stage: Stage) -> dict[str, Any]:
        """Return what a finished stage says of itself."""
        manifest = stage.directory(self.run).manifest()
        assert manifest is not None, f"{stage.name} is not finished"
        return manifest.summary

    def after(self, stage: Stage, arm: str = "") -> dict[str, str]:
        """Return the fingerprints, by label, of what `stage` needs and this configuration has."""
        per_arm = {item.name for item in self.stages if item.per_arm}
        labels = {label(name, arm if name in per_arm else "") for name in stage.needs}
        return {step.label: step.out.fingerprint for step in self.steps if step.label in labels}

    def through(self, until: str | None) -> list[Step]:
        """Return the steps up to the stage `until`, or all."""
        names = [stage.name for stage in self.stages]
        last = names.index(until or names[-1])
        return [step for step in self.steps if names.index(step.stage) <= last]


@dataclass(frozen=True)
class ExtensionPlan:
    """The steps of all extensions of a finished run in order.

    Attributes:
        base: the run, as its manifests describe it.
        chain: the extensions with new rows, in order.
        files: the input files of the extension that is to be prepared.
        moving: the extension that is asked to move the centroids; None where no one was asked now.
        steps: those planned so far.
    """

    base: Base
    chain: Sequence[Extension]
    files: Sequence[InputFile] = ()
    moving: Extension | None = None
    steps: list[Step] = field(default_factory=list)

    def add(self, stage: Stage, extension: Extension) -> None:
        """Plan the step of `stage` for `extension`, after all those that are there."""
        assert stage.extending is not None, f"{stage.name} has no part in extensions"
        task = stage.extending.task(self, extension)
        self.steps.append(Step.of(stage, task, extension.location, extension.name))

    def before(self, extension: Extension) -> list[Extension]:
        """Return the extensions that came earlier."""
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
        """Return a hash of what a stage of the run came out as."""
        return self.base.fingerprint(stage.name)
