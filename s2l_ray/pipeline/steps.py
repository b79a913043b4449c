"""The steps that a configuration asks for, each with its inputs and how it is done.

A step is a stage in a folder; the baselines of a comparison are further steps of the same stages
under `arms/`. Every step's inputs (configuration keys, contents of files, fingerprints of earlier
steps) are known before anything runs. Stages are imported when they run: to find out that there is
nothing to do takes neither torch nor Ray.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from s2l_ray import __version__
from s2l_ray.artifacts.inputs import Contents
from s2l_ray.artifacts.manifest import Parts, StageDir, section_inputs
from s2l_ray.config import budgets
from s2l_ray.config.sections import RandomModel, RunConfig, SelectionConfig, WorkerRange
from s2l_ray.models.origins import first_checkpoint
from s2l_ray.progress import Progress
from s2l_ray.storage import input_files
from s2l_ray.storage.location import Location, absolute, absolute_if_file
from s2l_ray.trajectories import queries

STAGES = (
    "prepare",
    "reference",
    "trajectories",
    "clusters",
    "selection",
    "target",
    "evaluation",
    "report",
)
FOLDERS = {"prepare": "prepared"}

Work = Callable[[Progress], dict[str, Any]]
Ahead = Callable[[Progress], AbstractContextManager[None]]


@dataclass(frozen=True)
class Step:
    """One stage in one folder: what it depends on, and how it is done."""

    out: StageDir
    work: Work
    arm: str = ""
    ahead: Ahead | None = None
    """Inside it this step is begun, on results of the step before, whose progress is given."""

    @property
    def stage(self) -> str:
        return self.out.stage

    @property
    def label(self) -> str:
        return f"{self.stage} ({self.arm})" if self.arm else self.stage


@dataclass(frozen=True)
class Plan:
    """All steps of a configuration in order, and the hashed contents they were planned with."""

    run: Location
    steps: list[Step]
    contents: "Contents"

    def through(self, until: str | None) -> list[Step]:
        last = STAGES.index(until or STAGES[-1])
        return [step for step in self.steps if STAGES.index(step.stage) <= last]


def plan(config: RunConfig, run: Location) -> Plan:
    """Every step that `config` asks for, with its inputs; reads contents, writes nothing.

    Raises:
        DataError: an input is missing, or a pattern matches nothing.
    """
    contents = Contents.of_run(run)
    builder = _Builder(config, run, contents)
    return Plan(run, list(builder.steps()), contents)


@dataclass
class _Builder:
    """Builds the steps in order; each one's fingerprint goes into those after it."""

    config: RunConfig
    run: Location
    contents: Contents
    made: list[Step] = field(default_factory=list)

    def steps(self) -> Iterator[Step]:
        config = self.config
        if config.data is not None:
            self._add("prepare", self._prepare())
        if config.reference is not None and not self._brought():
            self._add("reference", self._reference())
        if config.trajectories is not None:
            self._add("trajectories", self._trajectories(), ahead=self._ahead())
        if config.clusters is not None:
            self._add("clusters", self._clusters())
        arms = _arms(config)
        for name, selection in arms.items():
            self._add("selection", self._selection(selection, name), name)
        if config.target is not None:
            for name in arms:
                self._add("target", self._target(arms[name], name), name)
        if config.evaluation is not None:
            for name in arms:
                self._add("evaluation", self._evaluation(name), name)
        self._add("report", self._report())
        yield from self.made

    def _add(
        self,
        stage: str,
        made: tuple[dict[str, Any], Callable[..., Any]],
        arm: str = "",
        ahead: Callable[..., AbstractContextManager[None]] | None = None,
    ) -> None:
        inputs, work = made
        out = StageDir(self._folder(stage, arm), stage, inputs)
        begun = partial(ahead, out) if ahead else None
        self.made.append(Step(out, partial(work, out), arm, begun))

    def _brought(self) -> bool:
        """Whether trajectories were computed elsewhere, so that nothing is scored here."""
        section = self.config.trajectories
        return section is not None and section.path is not None

    def _folder(self, stage: str, arm: str = "") -> Location:
        parent = self.run / "arms" / arm if arm else self.run
        return parent / FOLDERS.get(stage, stage)

    def _summary(self, stage: str) -> dict[str, Any]:
        """What a finished stage says of itself."""
        manifest = StageDir(self._folder(stage), stage, {}).manifest()
        assert manifest is not None
        return manifest.summary

    def _after(self, *labels: str) -> dict[str, str]:
        """Fingerprints of earlier steps, those that this configuration has."""
        return {step.label: step.out.fingerprint for step in self.made if step.label in labels}

    def _prepare(self) -> tuple[dict[str, Any], Callable[..., Any]]:
        data = self.config.data
        assert data is not None
        files = input_files.expand([absolute(pattern) for pattern in data.train], "data.train")
        tokenizer = self._tokenizer()
        inputs = {
            **section_inputs("data", data),
            "data.fields": data.fields.model_dump(exclude={"answer"}),
            "data.train": self.contents.shas(files),
            "data.tokenizer": tokenizer,
            **self.contents.of_model("data.tokenizer contents", tokenizer),
            **self.contents.of_template(data.template),
        }

        def work(out: StageDir, progress: Progress) -> dict[str, Any]:
            from s2l_ray.data import prepare

            absolute = data.model_copy(update={"template": absolute_if_file(data.template)})
            located = absolute_if_file(self.contents.pinned(tokenizer))
            return prepare.run(absolute, files, located, out, progress=progress)

        return inputs, work

    def _tokenizer(self) -> str | None:
        """Whose tokens `prepared/` holds; None when nothing will be scored."""
        data, reference = self.config.data, self.config.reference
        assert data is not None
        if data.tokenizer is not None:
            return data.tokenizer
        if reference is None or self._brought():
            return None
        if reference.path is not None:
            return f"{reference.path.rstrip('/')}/{first_checkpoint(reference.path)}"
        model = reference.model
        return model.tokenizer if isinstance(model, RandomModel) else model

    def _reference(self) -> tuple[dict[str, Any], Callable[..., Any]]:
        section = self.config.reference
        assert section is not None
        if section.path is not None:
            first_checkpoint(section.path)
        inputs = {
            **section_inputs("reference", section),
            **self.contents.of_model("reference.model contents", section.model),
            **self.contents.of_model("reference.path contents", section.path),
        }
        if section.path is None:
            inputs |= {"seed": self.config.seed, **self._after("prepare")}

        def work(out: StageDir, progress: Progress) -> dict[str, Any]:
            from s2l_ray.training import reference

            return reference.run(
                section.model_copy(update={"model": self.contents.pinned(section.model)}),
                Parts(self._folder("prepare")),
                out,
                seed=self.config.seed,
                progress=progress,
                tokenizer=self.contents.pinned(self._tokenizer()),
            )

        return inputs, work

    def _trajectories(self) -> tuple[dict[str, Any], Callable[..., Any]]:
        section = self.config.trajectories
        assert section is not None
        if section.path is not None:
            files = input_files.expand([absolute(section.path)], "trajectories.path")

            def bring(out: StageDir, progress: Progress) -> dict[str, Any]:
                from s2l_ray.trajectories import import_existing

                return import_existing.run([file.uri for file in files], out, progress=progress)

            return {"trajectories.path": self.contents.shas(files)}, bring

        asked = input_files.expand([absolute(name) for name in section.queries], queries.KEY)

        def work(out: StageDir, progress: Progress) -> dict[str, Any]:
            from s2l_ray.trajectories import stage as trajectories

            reference = self._summary("reference")
            place = Location(reference["path"]) if reference["path"] else self._folder("reference")
            names = zip(reference["steps"], reference["names"], strict=True)
            checkpoints = [trajectories.Checkpoint(step, place / name) for step, name in names]
            prepared, rows = Parts(self._folder("prepare")), self._queries(asked)
            return trajectories.run(
                section, prepared, checkpoints, out, progress=progress, queries=rows
            )

        inputs = section_inputs("trajectories", section) | self._after("prepare", "reference")
        return {**inputs, queries.KEY: self.contents.shas(asked) or None}, work

    def _queries(self, files: list[input_files.InputFile]) -> queries.Queries | None:
        """Files of query rows, which are read and tokenised as the pool is."""
        data, tokenizer = self.config.data, self.contents.pinned(self._tokenizer())
        if data is None or not files:
            return None
        data = data.model_copy(update={"template": absolute_if_file(data.template)})
        return queries.Queries(files, data, absolute_if_file(tokenizer))

    def _ahead(self) -> Callable[..., AbstractContextManager[None]] | None:
        """Scores checkpoints of a reference that trains here, on as many workers to the end.

        An elastic training would lose to it what it may grow by.
        """
        section, reference = self.config.trajectories, self.config.reference
        if section is None or reference is None or self._brought():
            return None
        if reference.path is not None or isinstance(reference.workers, WorkerRange):
            return None

        def ahead(out: StageDir, progress: Progress) -> AbstractContextManager[None]:
            from s2l_ray.training.reference import planned
            from s2l_ray.trajectories import stage as trajectories

            place = self._folder("reference")
            names = planned(reference, self._summary("prepare")["kept"])
            checkpoints = [trajectories.Checkpoint(step, place / names[step]) for step in names]
            prepared = Parts(self._folder("prepare"))
            return trajectories.ahead(
                section, prepared, checkpoints, out, reached=lambda: progress.reached
            )

        return ahead

    def _clusters(self) -> tuple[dict[str, Any], Callable[..., Any]]:
        section = self.config.clusters
        assert section is not None

        def work(out: StageDir, progress: Progress) -> dict[str, Any]:
            from s2l_ray.clusters import stage as clusters

            return clusters.run(
                section,
                Parts(self._folder("trajectories")),
                out,
                seed=self.config.seed,
                progress=progress,
            )

        inputs = {
            **section_inputs("clusters", section),
            "seed": self.config.seed,
            **self._after("trajectories"),
        }
        return inputs, work

    def _selection(
        self, section: SelectionConfig, arm: str
    ) -> tuple[dict[str, Any], Callable[..., Any]]:
        def work(out: StageDir, progress: Progress) -> dict[str, Any]:
            from s2l_ray.artifacts import extensions
            from s2l_ray.selection import stage as selection

            rows = Parts(self._folder("prepare"), "rows") if self.config.data else None
            return selection.run(
                section,
                Parts(self._folder("clusters")),
                rows,
                out,
                seed=self.config.seed,
                trajectories=Parts(self._folder("trajectories")),
                elsewhere=extensions.strata(self.run),
            )

        inputs = {
            **section_inputs("selection", section),
            "seed": self.config.seed,
            **self._after("prepare", "clusters"),
        }
        return inputs, work

    def _target(
        self, selection: SelectionConfig, arm: str
    ) -> tuple[dict[str, Any], Callable[..., Any]]:
        section, data = self.config.target, self.config.data
        assert section is not None and data is not None

        def work(out: StageDir, progress: Progress) -> dict[str, Any]:
            from s2l_ray.training import target

            absolute = data.model_copy(update={"template": absolute_if_file(data.template)})
            return target.run(
                section.model_copy(update={"model": self.contents.pinned(section.model)}),
                absolute,
                self._folder("selection", arm) / f"selected.{selection.format}",
                out,
                seed=self.config.seed,
                progress=progress,
            )

        label = f"selection ({arm})" if arm else "selection"
        inputs = {
            **section_inputs("target", section),
            **self.contents.of_model("target.model contents", section.model),
            "data.template": data.template,
            "data.max_tokens": data.max_tokens,
            **self.contents.of_template(data.template),
            "seed": self.config.seed,
            **self._after(label),
        }
        return inputs, work

    def _evaluation(self, arm: str) -> tuple[dict[str, Any], Callable[..., Any]]:
        section, data = self.config.evaluation, self.config.data
        assert section is not None and data is not None
        sets = {
            name: input_files.expand([absolute(data.eval[name])], f"data.eval.{name}")
            for name in section.sets
        }

        def work(out: StageDir, progress: Progress) -> dict[str, Any]:
            from s2l_ray.evaluation import stage as evaluation

            absolute = data.model_copy(update={"template": absolute_if_file(data.template)})
            model = self._folder("target", arm) / "model"
            return evaluation.run(section, absolute, sets, model, out, progress=progress)

        label = f"target ({arm})" if arm else "target"
        inputs: dict[str, Any] = {
            **section_inputs("evaluation", section),
            **{f"data.eval.{name}": self.contents.shas(files) for name, files in sets.items()},
            "data.fields": data.fields.model_dump(),
            "data.template": data.template,
            "data.max_tokens": data.max_tokens,
            **self.contents.of_template(data.template),
            **self._after(label),
        }
        return inputs, work

    def _report(self) -> tuple[dict[str, Any], Callable[..., Any]]:
        def work(out: StageDir, progress: Progress) -> dict[str, Any]:
            from s2l_ray.report import stage as report

            return report.run(self.run, self.config, out)

        inputs = {step.label: step.out.fingerprint for step in self.made}
        return {"version": __version__, **inputs}, work


def arm_name(method: str, budget: budgets.Budget, seed: int) -> str:
    return f"{method}-{budgets.slug(budget)}-{seed}"


def _arms(config: RunConfig) -> dict[str, SelectionConfig]:
    """The run's own selection under the name "", and each baseline under its folder's name."""
    section = config.selection
    if section is None:
        return {}
    arms = {"": section}
    for method in section.baselines:
        name = arm_name(method, section.budget, config.seed)
        arms[name] = section.with_method(method)
    return arms
