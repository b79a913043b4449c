"""What a run would do, and roughly what it would cost, before anything runs."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from s2l_ray import pipeline, sources, steps
from s2l_ray.artifacts import StageDir
from s2l_ray.config import DataConfig, RunConfig, Training
from s2l_ray.errors import DataError, first
from s2l_ray.maths.selection import budget_rows
from s2l_ray.modelling import prompts, schedule
from s2l_ray.progress import LABEL_WIDTH
from s2l_ray.sources import SourceRow
from s2l_ray.storage import Location

SAMPLED_ROWS = 1_000
CHARACTERS_PER_TOKEN = 4.0


@dataclass(frozen=True)
class PoolSize:
    """Rows and tokens of the pool: counted once prepared, else scaled up from the first rows."""

    rows: int
    tokens: int
    strata: int
    counted: bool

    def scaled_to(self, rows: int) -> "PoolSize":
        """A subset of average rows."""
        tokens = round(self.tokens * rows / max(self.rows, 1))
        return PoolSize(rows, tokens, self.strata, self.counted)


def lines(config: RunConfig) -> list[str]:
    """The plan as text: every step with its state, then rows, tokens and compute."""
    run = Location.of(config.run_dir)
    planned = steps.plan(config, run).steps
    stale = pipeline.stale(planned, None)
    pipeline.check_files(config, stale)
    todo = {id(step) for step in stale}
    shown = [f"run_dir   {config.run_dir}", ""]
    shown += [f"{step.label:<{LABEL_WIDTH}}{_state(step, id(step) in todo)}" for step in planned]
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
    """Rows and tokens of the pool, and the strata met on the way.

    Raises:
        DataError: there are no rows, or none of a file's first rows can be used.
    """
    manifest = StageDir(
        Location.of(config.run_dir) / steps.FOLDERS["prepare"], "prepare", {}
    ).manifest()
    if manifest is not None:
        summary = manifest.summary
        return PoolSize(summary["kept"], summary["tokens"], len(summary["strata"]), True)
    rows = tokens = 0
    strata: set[str] = set()
    for file in sources.expand(data.train, "data.train"):
        sample = list(itertools.islice(sources.read_rows(file), SAMPLED_ROWS))
        if not sample:
            continue
        examples = _usable(sample, data, file.uri)
        strata.update(example.stratum for example in examples)
        estimated = len(sample)
        if len(sample) == SAMPLED_ROWS and file.size > 0:
            fields = [row.fields for row in sample if row.fields is not None]
            estimated = sources.estimated_rows(file, fields)
        rows, tokens = rows + estimated, tokens + round(estimated * _tokens(examples, data))
    if not rows:
        raise DataError(f"data.train: there are no rows in {first(data.train)}.")
    return PoolSize(rows, tokens, len(strata), False)


def _usable(sample: Sequence[SourceRow], data: DataConfig, uri: str) -> list[prompts.Example]:
    examples, problems = [], []
    for row in sample:
        try:
            if row.fields is None:
                problems.append(f"row {row.row}: {row.reason}")
            else:
                examples.append(prompts.read_example(row.fields, data.fields))
        except prompts.RowError as error:
            problems.append(f"row {row.row}: {error}")
    if not examples:
        raise DataError(
            f"data.train: none of the first {len(sample):,} rows of {uri} can be used (first: "
            f"{problems[0]}). Mend the data or data.fields."
        )
    return examples


def _tokens(examples: Sequence[prompts.Example], data: DataConfig) -> float:
    """Tokens of a row, on average; the template's own words count as 30."""
    characters = sum(len(message.text) for example in examples for message in example.messages)
    return min(characters / len(examples) / CHARACTERS_PER_TOKEN + 30, data.max_tokens)


def _cost(config: RunConfig, size: PoolSize) -> list[str]:
    about = "" if size.counted else "about "
    where = "" if size.counted else " among the first rows"
    shown = [
        f"pool            {about}{size.rows:,} rows, {about}{size.tokens:,} tokens",
        f"strata          {size.strata:,}{where}",
    ]
    reference, target = config.reference, config.target
    num_checkpoints = 0
    if reference is not None and reference.path is None:
        num_steps = schedule.num_steps(size.rows, reference)
        shown.append(_training_line("reference", num_steps, size, reference))
        num_checkpoints = len(schedule.checkpoint_steps(num_steps, reference.checkpoints))
    if num_checkpoints and config.trajectories is not None:
        scored = size.tokens * num_checkpoints
        shown.append(f"trajectories    {about}{scored:,} tokens ({num_checkpoints} checkpoints)")
    if config.selection is not None:
        budget = config.selection.budget
        known = (
            max(size.rows, budget) if isinstance(budget, int) and not size.counted else size.rows
        )
        num_selected = budget_rows(budget, known)
        more = ", more than there seem to be" if num_selected > size.rows else ""
        shown.append(f"selection       {about}{num_selected:,} examples{more}")
        if target is not None:
            subset = size.scaled_to(num_selected)
            num_steps = schedule.num_steps(subset.rows, target)
            arms = 1 + len(config.selection.baselines)
            line = _training_line("target", num_steps, subset, target)
            shown.append(f"{line}{f', {arms} arms' if arms > 1 else ''}")
    return shown


def _training_line(name: str, steps: int, size: PoolSize, section: Training) -> str:
    about = "" if size.counted else "about "
    mean = size.tokens / max(size.rows, 1)
    tokens = round(steps * min(section.batch_size, max(size.rows, 1)) * mean)
    return f"{name:<16}{about}{steps:,} steps of {section.batch_size}, {about}{tokens:,} tokens"
