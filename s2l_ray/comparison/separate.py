"""Trials one after the other, for a target that one process does not hold.

Each is trained by the stage `target`, with DeepSpeed ZeRO on several workers, and evaluated by the
stage `evaluation`. The trained model is removed once it is evaluated.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from s2l_ray import interrupts
from s2l_ray.artifacts.amounts import Amount
from s2l_ray.comparison.records import ITEMS, RESULT, TRIALS, Ended, Trial, failure
from s2l_ray.comparison.trial import NOTHING_TRAINED
from s2l_ray.config.data import DataConfig
from s2l_ray.config.sections import EvaluationConfig
from s2l_ray.config.training import RandomModel, TargetConfig
from s2l_ray.errors import DataError, ModelError
from s2l_ray.evaluation import stage as evaluation_stage
from s2l_ray.evaluation.declaration import EVALUATION
from s2l_ray.models import checkpoints, local_models
from s2l_ray.progress import Progress
from s2l_ray.storage.input_files import InputFile
from s2l_ray.storage.location import Location
from s2l_ray.training import target as target_stage
from s2l_ray.training.declaration import TARGET
from s2l_ray.training.work import training_work


def is_needed(target: TargetConfig) -> bool:
    """Tell whether trials of this target need several processes, or DeepSpeed's memory savings."""
    return target.workers > 1 or target.cpu_offload or target.zero_stage == 3


def done(
    todo: Sequence[Trial],
    *,
    target: TargetConfig,
    data: DataConfig,
    evaluation: EvaluationConfig,
    sets: Mapping[str, Sequence[InputFile]],
    folder: Location,
    progress: Progress,
) -> Iterator[Ended]:
    """Yield the end of every trial; see `pool.done`."""
    for trial in todo:
        out = folder / TRIALS / trial.name
        try:
            result = _trained(trial, out, target, data) if trial.steps else NOTHING_TRAINED
            started = time.monotonic()
            _evaluate(trial, out, target, data, evaluation, sets)
            seconds = time.monotonic() - started
        except (DataError, ModelError) as error:
            yield Ended(trial.name, failure(trial, error))
            continue
        settings = {"seed": trial.seed, "steps": trial.steps, "seconds_evaluating": seconds}
        (out / RESULT).write_json({**result, **settings})
        for stage in (TARGET, EVALUATION):
            (out / stage.folder).remove()
        progress.update(1)
        yield Ended(trial.name)


def _evaluate(
    trial: Trial,
    out: Location,
    target: TargetConfig,
    data: DataConfig,
    evaluation: EvaluationConfig,
    sets: Mapping[str, Sequence[InputFile]],
) -> None:
    """Write the items of all sets to the folder of a trial that is trained."""
    evaluated = EVALUATION.directory(out, {"trial": trial.name})
    trained = out / TARGET.folder / target_stage.MODEL
    model = trained if trial.steps else _untrained(trial, out, target)
    evaluated.begin()
    with Progress(f"evaluation of trial {trial.name}") as shown:
        evaluation_stage.run(evaluation, data, sets, model, evaluated, progress=shown)
    (out / ITEMS).write_table((evaluated.location / ITEMS).read_table())


def _untrained(trial: Trial, out: Location, target: TargetConfig) -> Any:
    """Return the target as it begins; random weights, which the seed decides, are written."""
    if not isinstance(target.model, RandomModel):
        return target.model
    folder = out / TARGET.folder / target_stage.MODEL
    if not (folder / "config.json").is_file():  # it is written last
        with tempfile.TemporaryDirectory(prefix="s2l-") as temporary:
            checkpoints.load_model(target.model, seed=trial.seed).save_pretrained(temporary)
            checkpoints.load_tokenizer(target.model).save_pretrained(temporary)
            folder.upload(Path(temporary))
    return folder


def _trained(trial: Trial, out: Location, target: TargetConfig, data: DataConfig) -> dict[str, Any]:
    """Train the target in the folder of the trial, if it is not there, and return what it cost."""
    config = target.model_copy(update={"max_steps": trial.steps})
    folder = TARGET.directory(out, {"trial": trial.name})
    manifest, subset = folder.manifest(), Location(trial.rows)
    if manifest is None:
        started = time.monotonic()
        folder.begin()
        with Progress(f"target of trial {trial.name}") as shown:
            summary = target_stage.run(
                config, data, subset, folder, seed=trial.seed, progress=shown
            )
        manifest = folder.finish(summary, time.monotonic() - started)
        if shown.is_to_stop:
            interrupts.takes_time.clear()
            raise KeyboardInterrupt
    summary = manifest.summary
    # Rows and tokens of all steps; which of them are responses, the stage does not count.
    trained = Amount(summary["num_rows"], summary["num_tokens"], summary["num_tokens"])
    shape = local_models.shape(config.model)
    work = training_work(config, trained, shape)
    return {
        "rows": summary["num_rows"],
        "rejected": summary["num_rejected"],
        "training_tokens": summary["num_tokens"],
        "seconds_training": manifest.seconds,
        "flops_training": (work.flops or 0.0) * summary["num_tokens"] / max(work.tokens, 1),
        "loss_nats": summary["loss_nats"],
        "precision": summary["precision"],
        "device": summary["device"],
    }
