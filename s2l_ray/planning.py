"""What a run would do, and roughly what it would cost, before anything runs."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from s2l_ray import pipeline, sources, steps
from s2l_ray.artifacts import StageDir
from s2l_ray.config import DataConfig, RunConfig, Training
from s2l_ray.modelling import schedule
from s2l_ray.storage import Location

SAMPLED_ROWS = 1_000
CHARACTERS_PER_TOKEN = 4.0


@dataclass(frozen=True)
class PoolSize:
    """Rows and tokens of the pool: counted once prepared, else scaled up from the first rows."""

    rows: int
    tokens: int
    counted: bool


def lines(config: RunConfig) -> list[str]:
    """The plan as text: every step with its state, then rows, tokens and compute."""
    run = Location.of(config.run_dir)
    planned = steps.plan(config, run).steps
    todo = {id(step) for step in pipeline.stale(planned, None)}
    shown = [f"run_dir   {config.run_dir}", ""]
    shown += [f"{step.label:<36}{_state(step, id(step) in todo)}" for step in planned]
    if config.data is not None:
        size = pool_size(config, config.data)
        shown += ["", *_cost(config, size)]
    return shown


def _state(step: steps.Step, is_stale: bool) -> str:
    if not is_stale:
        return "finished"
    if step.out.manifest() is None:
        return "to do"
    return f"to do again: {', '.join(step.out.changed_keys()[:3])} changed"


def pool_size(config: RunConfig, data: DataConfig) -> PoolSize:
    manifest = StageDir(
        Location.of(config.run_dir) / steps.FOLDERS["prepare"], "prepare", {}
    ).manifest()
    if manifest is not None:
        return PoolSize(manifest.summary["kept"], manifest.summary["tokens"], True)
    rows = tokens = 0
    for file in sources.expand(data.train, "data.train"):
        sample = list(itertools.islice(sources.read_rows(file), SAMPLED_ROWS))
        texts = [row.fields for row in sample if row.fields is not None]
        if not sample:
            continue
        estimated = len(sample)
        if len(sample) == SAMPLED_ROWS and file.size > 0:
            estimated = sources.estimated_rows(file, texts)
        per_row = min(_text_characters(texts) / CHARACTERS_PER_TOKEN + 30, data.max_tokens)
        rows, tokens = rows + estimated, tokens + round(estimated * per_row)
    return PoolSize(rows, tokens, False)


def _text_characters(texts: Sequence[dict[str, Any]]) -> float:
    """Characters of text in a row, on average; the template's own words are added apart."""
    total = sum(len(value) for row in texts for value in row.values() if isinstance(value, str))
    return total / max(len(texts), 1)


def _cost(config: RunConfig, size: PoolSize) -> list[str]:
    about = "" if size.counted else "about "
    shown = [f"pool            {about}{size.rows:,} rows, {about}{size.tokens:,} tokens"]
    reference, target = config.reference, config.target
    num_checkpoints = 0
    if reference is not None and reference.path is None:
        num_steps = schedule.num_steps(size.rows, reference)
        shown.append(_training_line("reference", num_steps, size, reference))
        num_checkpoints = len(schedule.checkpoint_steps(num_steps, reference.checkpoints))
    if num_checkpoints and config.trajectories is not None:
        scored = size.tokens * num_checkpoints
        shown.append(f"trajectories    {about}{scored:,} tokens ({num_checkpoints} checkpoints)")
    if target is not None and config.selection is not None:
        budget = config.selection.budget
        share = budget if isinstance(budget, float) else min(budget / max(size.rows, 1), 1.0)
        subset = PoolSize(round(size.rows * share), round(size.tokens * share), size.counted)
        line = _training_line("target", schedule.num_steps(subset.rows, target), subset, target)
        arms = 1 + len(config.selection.baselines)
        shown.append(f"{line}{f', {arms} arms' if arms > 1 else ''}")
    return shown


def _training_line(name: str, steps: int, size: PoolSize, section: Training) -> str:
    about = "" if size.counted else "about "
    mean = size.tokens / max(size.rows, 1)
    tokens = round(steps * min(section.batch_size, max(size.rows, 1)) * mean)
    return f"{name:<16}{about}{steps:,} steps of {section.batch_size}, {about}{tokens:,} tokens"
