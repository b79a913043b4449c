"""The stage `trajectories`: compute the loss of every example at every checkpoint."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from s2l_ray.artifacts.amounts import Estimate, Quantities, Speed, Work
from s2l_ray.artifacts.extensions import Extension
from s2l_ray.artifacts.manifest import EMBEDDINGS, NORMS, QUERIES, StageDir, section_inputs
from s2l_ray.artifacts.stage import Extending, ExtensionPlan, RunPlan, Stage, Task
from s2l_ray.artifacts.tables import Parts
from s2l_ray.config.sections import RunConfig
from s2l_ray.config.training import WorkerRange
from s2l_ray.data import kept_templates
from s2l_ray.data.declaration import PREPARE, pool_tokenizer
from s2l_ray.errors import UserError
from s2l_ray.models.flops import Shape
from s2l_ray.progress import Progress
from s2l_ray.storage.input_files import InputFile, list_files
from s2l_ray.storage.location import Location, absolute, absolute_if_file
from s2l_ray.training.declaration import (
    REFERENCE,
    adapted_model,
    adapted_model_of,
    reference_checkpoints,
    reference_model,
    reference_path,
)
from s2l_ray.trajectories.work import scoring_work

if TYPE_CHECKING:
    from s2l_ray.trajectories.part_scorer import Checkpoint

QUERIES_KEY = "trajectories.queries"


def _task(plan: RunPlan, _: str) -> Task:
    section = plan.config.trajectories
    assert section is not None
    if section.path is not None:
        files = list_files([absolute(section.path)], "trajectories.path", run=plan.run).files
        inputs: dict[str, Any] = {"trajectories.path": plan.contents.file_hashes(files)}
        if plan.config.data is not None and _lack_strata(files):
            inputs["strata of the pool"] = plan.after(TRAJECTORIES)[PREPARE.name]
        return Task(
            inputs,
            partial(_import, plan, files),
            is_checked=True,
            fits_here=partial(_fits_here, files),
        )
    patterns = [absolute(name) for name in section.queries]
    queries = list_files(patterns, QUERIES_KEY, run=plan.run).files
    inputs = {
        **section_inputs("trajectories", section),
        **plan.after(TRAJECTORIES),
        QUERIES_KEY: plan.contents.file_hashes(queries) or None,
    }
    early = partial(_score_early, plan) if _can_begin_early(plan.config) else None
    return Task(
        inputs,
        partial(_score, plan, queries),
        early,
        repeats=False,
        fits_here=partial(_is_scored_here, plan),
    )


def trajectory_files(plan: RunPlan) -> list[InputFile]:
    """Return the files that the trajectories of a run are in: those to import, or its parts."""
    section = plan.config.trajectories
    assert section is not None
    if section.path is None:
        return plan.parts(TRAJECTORIES).stored()
    return list_files([absolute(section.path)], "trajectories.path", run=plan.run).files


def _lack_strata(files: Sequence[InputFile]) -> bool:
    """Tell whether a file has no column `stratum`; False if the import will refuse a file."""
    from s2l_ray.trajectories import footers

    try:
        return any(not footer.has_stratum for footer in footers.read(files))
    except UserError:
        return False


def _fits_here(files: Sequence[InputFile]) -> bool:
    from s2l_ray.distributed import resources
    from s2l_ray.trajectories.footers import loss_bytes

    return resources.fits_here(partial(loss_bytes, files))


def _is_scored_here(plan: RunPlan) -> bool:
    """Tell whether the pool and the checkpoints, if both are there to stay, fit this process."""
    from s2l_ray.trajectories import small_scoring

    section = plan.config.trajectories
    assert section is not None
    if not all(step.out.is_current() for step in plan.steps if step.stage in TRAJECTORIES.needs):
        return False
    checkpoints = checkpoints_of(plan)
    return small_scoring.fits_here(section, plan.parts(PREPARE), checkpoints)


def _import(
    plan: RunPlan, files: Sequence[InputFile], out: StageDir, progress: Progress
) -> dict[str, Any]:
    from s2l_ray.trajectories import import_existing

    pool = plan.parts(PREPARE) if plan.config.data is not None else None
    return import_existing.run(files, out, progress=progress, pool=pool)


def _score(
    plan: RunPlan, queries: Sequence[InputFile], out: StageDir, progress: Progress
) -> dict[str, Any]:
    from s2l_ray.trajectories import stage
    from s2l_ray.trajectories.queries import Queries

    section, data = plan.config.trajectories, plan.config.data
    assert section is not None and data is not None
    rows = None
    if queries:
        tokenizer = absolute_if_file(plan.contents.pinned(pool_tokenizer(plan.config)))
        rows = Queries(queries, kept_templates.keep(data, plan.run), tokenizer)
    checkpoints = checkpoints_of(plan)
    return stage.run(
        section, plan.parts(PREPARE), checkpoints, out, progress=progress, queries=rows
    )


def checkpoints_of(plan: RunPlan) -> list["Checkpoint"]:
    """Return the checkpoints of the finished reference of a run."""
    assert plan.config.reference is not None
    reference, path = plan.summary(REFERENCE), plan.config.reference.path
    return _checkpoints(plan.run, reference, path, adapted_model(reference, path))


def _checkpoints(
    run: Location, reference: Mapping[str, Any], path: str | None, base: str | None = None
) -> list["Checkpoint"]:
    """Return the checkpoints of a finished reference.

    Args:
        run: the folder of the run.
        reference: the summary of the stage.
        path: where existing checkpoints are now; None for those of the run.
        base: the model that they are adapters of; None for whole models.
    """
    from s2l_ray.models.perturbation import Noise
    from s2l_ray.trajectories.part_scorer import Checkpoint

    folders, noise = reference_checkpoints(run, reference, path), reference.get("noise")
    last = max(folders)
    return [
        Checkpoint(
            step,
            folder,
            base,
            None if noise is None or step == last else Noise(**noise, number=step),
        )
        for step, folder in folders.items()
    ]


def _can_begin_early(config: RunConfig) -> bool:
    """Tell whether a reference is trained on a fixed number of workers.

    With an elastic number, scoring would take the machines that training could grow by.
    """
    reference = config.reference
    if reference is None or not reference.is_trained:
        return False
    return not isinstance(reference.workers, WorkerRange)


def _score_early(plan: RunPlan, out: StageDir, progress: Progress) -> AbstractContextManager[None]:
    """Score the checkpoints of the reference while it trains, each as soon as it is saved."""
    from s2l_ray.training.reference import planned
    from s2l_ray.trajectories import stage

    section, reference = plan.config.trajectories, plan.config.reference
    assert section is not None and reference is not None
    names = planned(reference, plan.summary(PREPARE)["kept"])
    folder = plan.folder(REFERENCE)
    return stage.score_while_training(
        section,
        plan.parts(PREPARE),
        [stage.Checkpoint(step, folder / name) for step, name in names.items()],
        out,
        steps_done=lambda: progress.reached,
    )


def _extension_task(plan: ExtensionPlan, extension: Extension) -> Task:
    (prepared,) = plan.fingerprints(PREPARE, [extension])
    inputs = {
        "trajectories of the run": plan.fingerprint_of_run(TRAJECTORIES),
        "prepare": prepared,
    }
    return Task(inputs, partial(_score_new, plan, extension))


def _score_new(
    plan: ExtensionPlan, extension: Extension, out: StageDir, progress: Progress
) -> dict[str, Any]:
    """Score new rows at the run's checkpoints, in the precision of the run's own scoring."""
    from s2l_ray.trajectories import stage

    base = plan.base
    assert base.config.trajectories is not None
    precision = base.summary(TRAJECTORIES.name)["precision"]
    section = base.config.trajectories.model_copy(update={"precision": precision})
    checkpoints = _checkpoints(
        base.run, base.summary(REFERENCE.name), reference_path(base), adapted_model_of(base)
    )
    rows = Parts(extension.folder(PREPARE.folder))
    return stage.run(section, rows, checkpoints, out, progress=progress)


def _sizes(_: RunConfig, quantities: Quantities) -> dict[str, str]:
    number, imported = quantities.num_checkpoints, quantities.imported
    if imported is not None:
        text = f"{number} checkpoints of {imported[0]:,} rows, computed elsewhere"
    elif number:
        text = f"{number} checkpoints"
    else:
        text = "0 checkpoints, more than there seem to be steps"
    return {"trajectories": text}


def _work(config: RunConfig, quantities: Quantities, shape: Shape | None) -> Work:
    section, pool = config.trajectories, quantities.pool
    assert section is not None and pool is not None
    return scoring_work(section, pool, quantities.num_checkpoints, shape)


TRAJECTORIES = Stage(
    name="trajectories",
    task=_task,
    folder="trajectories",
    section="trajectories",
    needs=(PREPARE.name, REFERENCE.name),
    is_costly=True,
    further_folders=(EMBEDDINGS, NORMS, QUERIES),
    starts_during=REFERENCE.name,
    needed_to_extend=True,
    advice_on_memory="Lower trajectories.tokens_per_batch, or give each worker more memory.",
    extending=Extending(_extension_task, refuses_redoing=True),
    sizes=_sizes,
    estimate=Estimate(reference_model, _work, Speed(0.31, 0.75, 4.0, 32.0)),
)
