"""Trials in one pool of workers, each of which trains and evaluates in one process."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace

from s2l_ray.artifacts.manifest import fingerprint
from s2l_ray.comparison.records import TRIALS, Ended, Trial
from s2l_ray.comparison.trial import TrialRunner
from s2l_ray.config.data import DataConfig
from s2l_ray.config.sections import EvaluationConfig
from s2l_ray.config.training import TargetConfig
from s2l_ray.distributed import resources
from s2l_ray.distributed.map_units import map_units
from s2l_ray.evaluation.evaluation_sets import staged_units
from s2l_ray.progress import Progress
from s2l_ray.storage.input_files import InputFile
from s2l_ray.storage.location import Location

ADVICE = (
    "Lower comparison.trials_per_gpu, target.micro_batch_size or evaluation.rows_per_batch, or "
    "give each worker more memory. A target that one process cannot hold needs more than one of "
    "target.workers."
)


def done(
    todo: Sequence[Trial],
    *,
    target: TargetConfig,
    data: DataConfig,
    evaluation: EvaluationConfig,
    sets: Mapping[str, Sequence[InputFile]],
    folder: Location,
    per_gpu: int,
    progress: Progress,
) -> Iterator[Ended]:
    """Yield the end of every trial: its result is in its folder, or it failed.

    Args:
        todo: the trials.
        target: the model, which trains in one process.
        data: how rows become tokens.
        evaluation: how the target is evaluated.
        sets: the files of each held-out set.
        folder: of the comparison.
        per_gpu: trials that share a GPU, where there is one.
        progress: shows the number of trials.

    Raises:
        UserError: the workers cannot go on, or die too often.
    """
    one = resources.workers(
        "comparison", 1, cpus=target.cpus_per_worker, gpus=target.gpus_per_worker, advice=ADVICE
    )
    wanted = resources.as_many_as_fit(replace(one, gpus=one.gpus / per_gpu))
    contents = {name: [[file.uri, file.size, file.modified] for file in files]
                for name, files in sets.items()}  # fmt: skip
    asked = {"sets": contents, "evaluation": evaluation.model_dump(mode="json")}
    staged = folder / "staged" / fingerprint({**asked, "data": data.model_dump(mode="json")})
    progress.doing("reading the held-out rows")
    staged_units(evaluation, data, sets, staged)
    progress.doing("loading libraries and the model, then training the first trials")
    for result in map_units(
        TrialRunner,
        # The label comes first: messages show the beginning of a unit.
        [{"label": trial.label, **asdict(trial)} for trial in todo],
        wanted,
        folder / "attempts",
        target=target,
        data=data,
        evaluation=evaluation,
        staged=staged,
        folder=folder / TRIALS,
        gpus=wanted.gpus,
    ):
        progress.update(1)
        yield Ended(**result)
    (folder / "staged").remove()
    (folder / "attempts").remove()
