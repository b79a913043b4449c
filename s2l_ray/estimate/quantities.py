"""The amounts that the stages of a configuration work on, counted or estimated."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from s2l_ray.artifacts.amounts import Amount, Pool, Quantities
from s2l_ray.artifacts.stage import Step
from s2l_ray.config import budgets
from s2l_ray.config.data import DataConfig
from s2l_ray.config.sections import RunConfig
from s2l_ray.config.training import ModelSpec, RandomModel
from s2l_ray.data.declaration import PREPARE, pool_files
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.estimate import sizes
from s2l_ray.estimate.sizes import TokenCounter
from s2l_ray.evaluation.declaration import EVALUATION
from s2l_ray.models.origins import list_checkpoints
from s2l_ray.storage.location import Location
from s2l_ray.training import schedule
from s2l_ray.training.declaration import TARGET, reference_model, target_model
from s2l_ray.trajectories.declaration import TRAJECTORIES


def quantities(
    config: RunConfig, planned: Sequence[Step], stale: Collection[str]
) -> tuple[Quantities, list[str]]:
    """Return the amounts of every stage, and remarks on how they were counted.

    Args:
        config: the configuration.
        planned: all its steps.
        stale: names of the stages to do. Held-out rows are read only if these measure them.

    Raises:
        UserError: data cannot be used, or the pool is too small for the budget or the checkpoints.
    """
    summaries = {
        step.stage: manifest.summary
        for step in planned
        if step.stage not in stale and (manifest := step.out.manifest()) is not None
    }
    path = config.trajectories.path if config.trajectories else None
    imported = sizes.imported(path, summaries.get(TRAJECTORIES.name)) if path is not None else None
    sets = dict[str, int | None]()
    if TARGET.name in stale:
        sets |= config.held_out_sets
    if config.evaluation is not None and EVALUATION.name in stale:
        sets |= dict.fromkeys(config.evaluation.sets, config.evaluation.max_items)
    pool, held_out, remarks = _rows(config, summaries.get(PREPARE.name), sets)
    if imported is not None and pool is not None:
        assert config.data is not None, "there is a pool"
        _check_losses(imported[0], pool, config.data.max_rejected)
    num_checkpoints = imported[1] if imported else _num_checkpoints(config, pool)
    amounts = Quantities(pool, imported, num_checkpoints, 0, held_out)
    return replace(amounts, num_selected=_num_selected(config, amounts)), remarks


def _check_losses(num_losses: int, pool: Pool, max_rejected: float) -> None:
    """Refuse brought trajectories that are fewer than the rows of a pool that was read whole.

    Some of the rows that were read may still be rejected.
    """
    num_rows = pool.amount.rows
    least = num_rows if pool.counted else math.ceil(num_rows * (1 - max_rejected))
    if (pool.counted or pool.whole) and num_losses < least:
        raise DataError(
            f"trajectories.path: there are {num_losses:,} losses for {num_rows:,} rows of the pool."
            " Bring the losses of all rows, or take the rows without one out of data.train."
        )


def tokenizer_of(spec: ModelSpec) -> str:
    """Return the name of a model, or the tokenizer of one that is initialised at random."""
    return spec.tokenizer if isinstance(spec, RandomModel) else spec


def _rows(
    config: RunConfig, prepared: Mapping[str, Any] | None, sets: Mapping[str, int | None]
) -> tuple[Pool | None, dict[str, Amount], list[str]]:
    """Return the pool, the held-out sets, and remarks.

    Args:
        config: the configuration.
        prepared: the summary of the prepared pool, or None.
        sets: the held-out sets to read, and most rows of each.
    """
    data, remarks = config.data, list[str]()
    if data is None:
        return None, {}, remarks
    counter = sizes.by_characters(data)
    if sets or prepared is None or not prepared["tokens"]:
        counter, remarks = _counter(config, data)
    run = Location.of(config.run_dir)
    pool = sizes.pool(data, prepared, counter, run)
    remarks = [*pool_files(data, run).notes, *remarks]
    held_out = {name: sizes.held_out(name, data, counter, most, run) for name, most in sets.items()}
    return pool, held_out, remarks


def _counter(config: RunConfig, data: DataConfig) -> tuple[TokenCounter, list[str]]:
    """Return a counter of tokens, and a remark if the pool's tokenizer is not on this machine."""
    from s2l_ray.models import local_models

    small = None if config.imports_trajectories else reference_model(config)
    spec = data.tokenizer or small or target_model(config)
    tokenizer = local_models.tokenizer(spec) if spec else None
    if tokenizer is not None:
        return sizes.by_tokenizer(data, tokenizer), []
    missing = f": the tokenizer of {tokenizer_of(spec)} is not on this machine" if spec else ""
    remark = f"Tokens are characters / {sizes.CHARACTERS_PER_TOKEN:g}{missing}."
    return sizes.by_characters(data), [remark]


def _num_checkpoints(config: RunConfig, pool: Pool | None) -> int:
    """Return the number of checkpoints of the reference; 0 if the estimated pool is too small."""
    reference = config.reference
    if reference is None or pool is None:
        return 0
    if reference.path is not None:
        return len(list_checkpoints(Location.of(reference.path).names()))
    if reference.perturbations is not None:
        return 1 + reference.perturbations
    num_steps = schedule.num_steps(pool.amount.rows, reference)
    try:
        return len(schedule.checkpoint_steps(num_steps, reference.checkpoints))
    except ConfigError:
        if pool.whole:
            raise
        # An estimate is no reason to refuse.
        return 0


def _num_selected(config: RunConfig, amounts: Quantities) -> int:
    """Return the number of rows that the budget selects."""
    section, num_rows = config.selection, amounts.num_rows
    if section is None:
        return 0
    if isinstance(section.budget, str):
        return _rows_of_tokens(section.budget, amounts)
    if isinstance(section.budget, int) and not amounts.counted:
        num_rows = max(num_rows, section.budget)
    return budgets.budget_rows(section.budget, num_rows)


def _rows_of_tokens(budget: str, amounts: Quantities) -> int:
    """Return the number of rows of mean length that have the tokens of `budget`."""
    wanted = budgets.num_tokens(budget) or 0
    assert amounts.pool is not None, "refused by check_files"
    amount = amounts.pool.amount
    if amounts.pool.counted and wanted > amount.tokens:
        raise budgets.too_many_tokens(wanted, amount.tokens, f"of {amount.rows:,} examples")
    return max(int(wanted / max(amount.row_tokens, 1)), 1)
