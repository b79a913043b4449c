"""Stage 2: fine-tune the small model on the whole pool, with checkpoints on the way."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from s2l_ray import collector
from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import Parts
from s2l_ray.config.training import ReferenceConfig, WorkerRange
from s2l_ray.models.model_files import check_checkpoints
from s2l_ray.progress import Progress
from s2l_ray.storage.location import Location
from s2l_ray.training import perturbed, ray_train, schedule
from s2l_ray.training.batches import TrainingPlan
from s2l_ray.training.token_parts import TokenParts


def run(
    config: ReferenceConfig,
    prepared: Parts,
    out: StageDir,
    *,
    seed: int,
    progress: Progress,
    tokenizer: str | None = None,
    base: str | None = None,
) -> dict[str, Any]:
    """Train the reference and write T checkpoints, or refer to existing ones.

    Reads   prepared.files    input_ids, response_starts, response_ends: list<int32>
    Writes  reference/step-*  Hugging Face directories with the weights as trained, in float32
    Returns path (of existing checkpoints; None for those written here), names and steps of the
            checkpoints in numeric order, and the course of the training, or of perturbed copies
            their `noise`.
    Raises  ConfigError if there are fewer steps than checkpoints, ModelError if the model or
            an existing checkpoint cannot be used, or the loss is not finite.

    `tokenizer` is the one that prepared the rows, if it is not the model's own; it is saved with
    every checkpoint. `base` is the model that existing checkpoints are adapters of.
    """
    if config.path is not None:
        return existing(config.path, base)
    if config.perturbations is not None:
        return perturbed.run(config, prepared, out, seed=seed, tokenizer=tokenizer)
    parts = TokenParts.of(prepared.files())
    num_rows = sum(parts.num_rows)
    total_steps = schedule.num_steps(num_rows, config)
    names = planned(config, num_rows)
    assert config.model is not None, "a section with neither model nor path is refused"
    model = ray_train.absolute_model(config.model)
    settings = {
        "num_tokens_of_longest": parts.num_tokens_of_longest,
        "plan": TrainingPlan(parts, config, seed, total_steps),
        "model": model,
        "tokenizer": model if tokenizer is None else ray_train.absolute_model(tokenizer),
        "checkpoint_of_step": {step: out.location / name for step, name in names.items()},
    }
    trained = ray_train.fit(
        _train_on_worker, settings, config, out, total_steps=total_steps, progress=progress
    )
    return {
        "path": None,
        "names": list(names.values()),
        "steps": list(names),
        "num_rows": num_rows,
        "num_steps": total_steps,
        **trained,
    }


def planned(config: ReferenceConfig, num_rows: int) -> dict[int, str]:
    """Return the names of the checkpoints that training on so many rows will leave, by step.

    Raises:
        ConfigError: there are fewer steps than checkpoints.
    """
    total_steps = schedule.num_steps(num_rows, config)
    steps = schedule.checkpoint_steps(total_steps, config.checkpoints)
    return {step: f"step-{step:06d}" for step in steps}


def existing(path: str, base: str | None = None) -> dict[str, Any]:
    """Return path, names and steps of the checkpoints in folder `path`; nothing is copied.

    Args:
        path: the folder.
        base: the model that the checkpoints are adapters of.

    Raises:
        ModelError: there is no checkpoint, or one of them is not whole, or two have the same step.
    """
    folder = Location.of(path)
    listed = check_checkpoints(folder)
    steps, names = [step for step, _ in listed], [name for _, name in listed]
    of_adapters = {} if base is None else {"base": base}
    return {"path": str(folder), "names": names, "steps": steps, **of_adapters}


def _train_on_worker(worker: ray_train.Worker, settings: dict[str, Any]) -> dict[str, Any]:
    """Train on one worker; rank 0 writes the checkpoints."""
    # Models' libraries take seconds to import; the driver of a training does without.
    with collector.paused():
        from s2l_ray.models import causality, checkpoints, dimensions
        from s2l_ray.models.torch_compile import UNCOMPILED
        from s2l_ray.training import loop

    plan: TrainingPlan = settings["plan"]
    config = plan.config
    worker.doing("loading the model")
    with ray_train.shared_errors():
        precision = checkpoints.set_precision(config.precision, worker.device)
        dtype = checkpoints.DTYPES[precision]
        tokenizer = checkpoints.load_tokenizer(settings["tokenizer"])
        model = checkpoints.load_model(settings["model"], seed=plan.seed)
        num_tokens = settings["num_tokens_of_longest"]
        num_ids = dimensions.number_of_ids(tokenizer)
        dimensions.check_rows_fit(model, num_tokens=num_tokens, num_ids=num_ids)
        causality.check_causal(model)
    notes = []
    if worker.device.type == "cuda":
        worker.doing("compiling the model's layers")
        largest = config.micro_batch_size, num_tokens - 1
        reason = loop.compile_to_train(model, largest=largest, device=worker.device, dtype=dtype)
        notes += [f"{UNCOMPILED} ({reason})"] if reason else []
    engine = loop.Replica(
        model, config, device=worker.device, dtype=dtype, num_ranks=worker.num_ranks
    )
    history = ray_train.train(
        worker,
        engine,
        plan,
        state=ray_train.State(engine.save, engine.load, on_every_rank=False),
        after_step=partial(
            _write_if_due, settings["checkpoint_of_step"], worker.rank, model, tokenizer
        ),
    )
    elastic = isinstance(config.workers, WorkerRange)
    return {
        "workers": history.workers if elastic else worker.num_ranks,
        "num_tokens": history.num_tokens,
        "loss_nats": history.loss_nats[-1],
        "curve": history.curve(),
        "precision": precision,
        "device": worker.device.type,
        **({"notes": notes} if notes else {}),
    }


def _write_if_due(
    checkpoint_of_step: Mapping[int, Location], rank: int, model: Any, tokenizer: Any, step: int
) -> None:
    """Write a checkpoint on rank 0 if `step` has one; its errors are raised on every rank."""
    if step in checkpoint_of_step:
        with ray_train.shared_errors():
            if rank == 0:
                _write_checkpoint(model, tokenizer, checkpoint_of_step[step])


def _write_checkpoint(model: Any, tokenizer: Any, directory: Location) -> None:
    from s2l_ray.models import checkpoints

    # A whole checkpoint is never written again by a restart: it may have been scored already.
    if (directory / "config.json").is_file():
        return
    with ray_train.temporary_folder() as folder:
        checkpoints.save_checkpoint(model, tokenizer, folder)
        directory.upload(folder)
