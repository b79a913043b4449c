"""The stages `reference` and `target`: fine-tune the small model, and the large model."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from s2l_ray.artifacts.amounts import Amount, Estimate, Quantities, Speed, Work
from s2l_ray.artifacts.extensions import BaseRun
from s2l_ray.artifacts.inputs import base_key
from s2l_ray.artifacts.manifest import StageDir, section_inputs, subset_file
from s2l_ray.artifacts.stage import PoolSize, RunPlan, Stage, Task
from s2l_ray.config.data import DataConfig
from s2l_ray.config.sections import RunConfig
from s2l_ray.config.training import ModelSpec
from s2l_ray.data import kept_templates
from s2l_ray.data.cleaning import held_out_files
from s2l_ray.data.declaration import (
    PREPARE,
    check_template,
    pool_files,
    pool_tokenizer,
    template_inputs,
)
from s2l_ray.data.first_rows import check_held_out
from s2l_ray.errors import ModelError
from s2l_ray.models.adapters import adapter_of, base_of_checkpoints, check_peft
from s2l_ray.models.flops import Shape
from s2l_ray.models.model_files import check_checkpoints, first_checkpoint, has_tokenizer
from s2l_ray.models.origins import is_hub_name, local_path
from s2l_ray.progress import Progress
from s2l_ray.storage.input_files import InputFile
from s2l_ray.storage.location import Location, absolute, is_uri
from s2l_ray.training.schedule import checkpoint_steps, num_measurements, num_steps
from s2l_ray.training.work import training_work, with_measurements


def reference_checkpoints(
    run: Location, summary: Mapping[str, Any], path: str | None
) -> dict[int, Location]:
    """Return optimizer step -> folder for every checkpoint of a finished reference.

    Args:
        run: the folder of the run.
        summary: the summary of the stage.
        path: where existing checkpoints are now; None for those of the run.
    """
    folder = run / REFERENCE.folder if path is None else Location.of(path)
    return {
        step: folder / name for step, name in zip(summary["steps"], summary["names"], strict=True)
    }


def reference_path(base: BaseRun) -> str | None:
    """Return where the existing checkpoints of a finished run are; None if it made its own.

    The configurations of older runs have paths relative to a directory that is not known.
    """
    recorded: str | None = base.summary(REFERENCE.name)["path"]
    path = base.config.reference.path if base.config.reference else None
    return path if path is not None and absolute(path) == path else recorded


def adapted_model(summary: Mapping[str, Any], path: str | None) -> str | None:
    """Return the model that the checkpoints of a finished reference are adapters of, or None.

    Of a folder, the contents have been compared with those of the one that the checkpoints name
    today. The recorded one may have others by now: the project may be a copy.

    Args:
        summary: the summary of the stage.
        path: where existing checkpoints are now; None for those of the run.
    """
    recorded: str | None = summary.get("base")
    if recorded is None or path is None or is_hub_name(recorded):
        return recorded
    return reference_base(path)


def adapted_model_of(base: BaseRun) -> str | None:
    """Return the same of a finished run; if the project was moved, where the model is now.

    What the checkpoints name may start at a directory that is not known, so it comes second.
    """
    summary = base.summary(REFERENCE.name)
    recorded: str | None = summary.get("base")
    if recorded is None or is_uri(recorded) or local_path(recorded).exists():
        return recorded
    return adapted_model(summary, reference_path(base))


def check_reference_path(path: str, *, needs_tokenizer: bool) -> None:
    """Refuse a folder of checkpoints that cannot all be scored with.

    Args:
        path: the folder.
        needs_tokenizer: whether the rows are tokenised by the tokenizer of the first checkpoint.

    Raises:
        ModelError: checkpoints are missing, incomplete or of different models, or the first one
            has no tokenizer.
        ConfigError: they are adapters, and peft is not installed.
    """
    folder = Location.of(path)
    name = check_checkpoints(folder)[0][1]
    adapter = adapter_of(f"{folder}/{name}")
    if adapter is not None:
        check_peft(f"the LoRA adapter {adapter.folder}")
    if needs_tokenizer and adapter is None and not has_tokenizer(folder / name):
        raise ModelError(
            f"reference.path: {folder}/{name} has no tokenizer. Name that of the model that was "
            f"trained in data.tokenizer."
        )


def reference_base(path: str) -> str | None:
    """Return the base of the adapters in a folder of checkpoints; None if these are models.

    Raises:
        DataError: there are no checkpoints in the folder `path`.
    """
    return base_of_checkpoints(path, first_checkpoint(path))


def reference_model(config: RunConfig) -> ModelSpec | None:
    """Return the model of the reference; of existing checkpoints, the first."""
    reference = config.reference
    if reference is None or reference.path is None:
        return reference.model if reference else None
    return f"{reference.path.rstrip('/')}/{first_checkpoint(reference.path)}"


def target_model(config: RunConfig) -> ModelSpec | None:
    """Return the model that the target starts from."""
    return config.target.model if config.target else None


def _reference_task(plan: RunPlan, _: str) -> Task:
    section = plan.config.reference
    assert section is not None
    if section.path is not None:
        first_checkpoint(section.path)
    inputs = {
        **section_inputs("reference", section),
        **plan.contents.model_inputs("reference.model contents", section.model),
        **plan.contents.model_inputs("reference.path contents", section.path),
    }
    if section.path is None:
        inputs |= {"seed": plan.config.seed, **plan.after(REFERENCE)}
    elif (base := reference_base(section.path)) is not None:
        inputs |= plan.contents.model_inputs(base_key("reference.path contents"), base)
    return Task(inputs, partial(_train_reference, plan), repeats=not section.is_trained)


def _train_reference(plan: RunPlan, out: StageDir, progress: Progress) -> dict[str, Any]:
    from s2l_ray.training import reference

    section = plan.config.reference
    assert section is not None
    return reference.run(
        section.model_copy(update={"model": plan.contents.loadable(section.model)}),
        plan.parts(PREPARE),
        out,
        seed=plan.config.seed,
        progress=progress,
        tokenizer=plan.contents.pinned(pool_tokenizer(plan.config)),
        base=plan.contents.pinned(reference_base(section.path)) if section.path else None,
    )


def _check_reference(config: RunConfig) -> None:
    """Refuse a reference whose model or checkpoints cannot be used."""
    section, data = config.reference, config.data
    if section is None:
        return
    from s2l_ray.models.checkpoints import check_model
    from s2l_ray.models.local_models import check_causal

    own = data is None or data.tokenizer is None
    if section.path is not None:
        check_reference_path(section.path, needs_tokenizer=own)
    elif section.model is not None:
        check_model(section.model, needs_tokenizer=own)
    model, tokenizer = reference_model(config), pool_tokenizer(config)
    if model is not None:
        check_causal(model)
    if model is not None and tokenizer is not None and data is not None:
        files = pool_files(data, Location.of(config.run_dir)).files
        check_first_rows(model, tokenizer, data, files)


def check_first_rows(
    model: ModelSpec, tokenised_by: ModelSpec, data: DataConfig, files: Sequence[InputFile]
) -> None:
    """Refuse a model that cannot read the first rows of the pool.

    Args:
        model: the model. One that is not on this machine is not refused.
        tokenised_by: the model or tokenizer whose tokens it reads.
        data: the section of the configuration.
        files: the files of the pool.

    Raises:
        UserError: none of the rows can be tokenised, or the model has too few embeddings or
            positions for them.
    """
    from s2l_ray.data.tried_rows import try_rows
    from s2l_ray.models import local_models
    from s2l_ray.models.suitability import check_reads

    tokenizer = local_models.tokenizer(tokenised_by)
    if tokenizer is not None:
        rows = try_rows(files, data.of_pool, tokenizer, "data.train")
        check_reads(model, tokenizer, num_tokens=rows.longest)


def _check_longest(config: RunConfig, pool: PoolSize) -> None:
    """Refuse a target with fewer positions than the longest row has tokens.

    The row was counted by the tokenizer of the pool. Under another one it may be shorter.
    """
    section, prepared = config.target, pool.prepared
    longest = (prepared or {}).get("longest_tokens", 0)
    if section is None or not longest:
        return
    from s2l_ray.models import local_models
    from s2l_ray.models.suitability import check_reads

    counted = local_models.tokenizer(pool_tokenizer(config) or section.model)
    own = local_models.tokenizer(section.model)
    if counted is not None and own is not None and counted.get_vocab() == own.get_vocab():
        check_reads(section.model, None, num_tokens=longest)


def _check_steps(config: RunConfig, pool: PoolSize) -> None:
    """Refuse fewer optimizer steps than checkpoints."""
    section = config.reference
    if section is not None and section.is_trained and pool.prepared is not None:
        checkpoint_steps(num_steps(pool.rows, section), section.checkpoints)


def _reference_sizes(config: RunConfig, quantities: Quantities) -> dict[str, str]:
    section, pool = config.reference, quantities.pool
    if section is None or section.model is None or pool is None:
        return {}
    if section.perturbations is not None:
        copies = "copy" if section.perturbations == 1 else "copies"
        return {"reference": f"the model and {section.perturbations:,} perturbed {copies} of it"}
    steps = num_steps(pool.amount.rows, section)
    return {"reference": f"{quantities.about}{steps:,} steps of {section.batch_size}"}


def _reference_work(config: RunConfig, quantities: Quantities, shape: Shape | None) -> Work:
    assert config.reference is not None and quantities.pool is not None
    if config.reference.perturbations is not None:
        return Work(0, 0.0, quantities.pool.amount.scaled_to(1), None)
    return training_work(config.reference, quantities.pool.amount, shape)


REFERENCE = Stage(
    name="reference",
    task=_reference_task,
    folder="reference",
    section="reference",
    needs=(PREPARE.name,),
    is_costly=True,
    needed_to_extend=True,
    skipped_if_imported=True,
    check=_check_reference,
    check_pool=_check_steps,
    sizes=_reference_sizes,
    estimate=Estimate(reference_model, _reference_work, Speed(0.20, 0.54, 12.0, 65.0)),
)


def _target_task(plan: RunPlan, arm: str) -> Task:
    section, data = plan.config.target, plan.config.data
    assert section is not None and data is not None
    inputs = {
        **section_inputs("target", section),
        **plan.contents.model_inputs("target.model contents", section.model),
        **template_inputs(data, plan.contents),
        "seed": plan.config.seed,
        **plan.after(TARGET, arm),
    }
    return Task(inputs, partial(_train_target, plan, arm), repeats=False)


def _train_target(plan: RunPlan, arm: str, out: StageDir, progress: Progress) -> dict[str, Any]:
    from s2l_ray.data.held_out_rows import choose
    from s2l_ray.training import target

    section, data = plan.config.target, plan.config.data
    assert section is not None and data is not None
    held_out = {
        name: choose(name, data, held_out_files(data, name, plan.run).files, most)
        for name, most in plan.config.held_out_sets.items()
    }
    return target.run(
        section.model_copy(update={"model": plan.contents.loadable(section.model)}),
        kept_templates.keep(data, plan.run),
        subset_file(plan.parent(arm), plan.arms[arm].format),
        out,
        seed=plan.config.seed,
        progress=progress,
        held_out=held_out,
    )


def _check_target(config: RunConfig) -> None:
    """Refuse a target whose template or model cannot be used."""
    check_template(config)
    section, data = config.target, config.data
    if section is None:
        return
    from s2l_ray.models.checkpoints import check_model
    from s2l_ray.models.local_models import check_causal

    check_model(section.model)
    if section.lora is not None:
        check_peft("target.lora")
    if data is not None:
        files = pool_files(data, Location.of(config.run_dir)).files
        check_first_rows(section.model, section.model, data, files)
        for name in config.held_out_sets:
            files = held_out_files(data, name, Location.of(config.run_dir)).files
            check_held_out(name, data, files)
    check_causal(section.model)


def _target_sizes(config: RunConfig, quantities: Quantities) -> dict[str, str]:
    section = config.target
    assert section is not None
    steps = num_steps(quantities.num_selected, section)
    text = f"{quantities.about}{steps:,} steps of {section.batch_size}"
    measured = _measured_rows(config, quantities)
    if measured.rows:
        times = num_measurements(steps, section)
        text += f"; loss of {measured.rows:,} held-out rows, {times:,} time{'s' * (times > 1)}"
    return {"target": text}


def _measured_rows(config: RunConfig, quantities: Quantities) -> Amount:
    """Return the held-out rows whose loss is measured while the target trains."""
    limits = config.held_out_sets
    sets = [
        amount.scaled_to(min(amount.rows, limits[name] or amount.rows))
        for name, amount in quantities.held_out.items()
        if name in limits
    ]
    return sum(sets, Amount(0, 0, 0))


def _target_work(config: RunConfig, quantities: Quantities, shape: Shape | None) -> Work:
    assert config.target is not None and quantities.pool is not None
    # Tokens are those of the pool; the target's own tokenizer may make fewer or more.
    subset = quantities.pool.amount.scaled_to(quantities.num_selected)
    work = training_work(config.target, subset, shape)
    measured = _measured_rows(config, quantities)
    times = num_measurements(num_steps(quantities.num_selected, config.target), config.target)
    return with_measurements(work, measured, times, shape)


TARGET = Stage(
    name="target",
    task=_target_task,
    folder="target",
    section="target",
    needs=("selection",),
    results={"model": ("target/model",)},
    per_arm=True,
    is_costly=True,
    check=_check_target,
    check_pool=_check_longest,
    sizes=_target_sizes,
    estimate=Estimate(target_model, _target_work, Speed(0.20, 0.32, 10.0, 25.0)),
)
