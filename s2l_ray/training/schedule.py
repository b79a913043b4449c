"""The schedule of a training: steps, checkpoints, learning rates, and the units to score.

All of it follows from the number of rows and the configuration, never from the workers.
"""

import math
from typing import Any

import numpy as np

from s2l_ray.config.training import EverySteps, TargetConfig, Training
from s2l_ray.errors import ConfigError

UNITS_PER_WORKER = 4
"""Units of scoring for each worker, at least, so that all have work to the end."""


def steps_per_epoch(num_rows: int, batch_size: int) -> int:
    """Return the number of batches that hold every row once."""
    return math.ceil(num_rows / batch_size)


def num_steps(num_rows: int, config: Training) -> int:
    """Return the optimizer steps of the whole training; an epoch's last batch may be smaller."""
    if config.max_steps is not None:
        return config.max_steps
    return max(round(config.epochs * steps_per_epoch(num_rows, config.batch_size)), 1)


def num_measurements(num_steps: int, config: TargetConfig) -> int:
    """Return how often the loss of held-out rows is measured in so many steps."""
    return math.ceil(num_steps / config.evaluate_every) if config.evaluate_every else 0


def rows_trained(num_rows: int, config: Training) -> int:
    """Return the rows of all optimizer steps together; a row counts once in every epoch."""
    per_epoch = steps_per_epoch(num_rows, config.batch_size)
    epochs, more = divmod(num_steps(num_rows, config), per_epoch)
    return epochs * num_rows + more * config.batch_size


def checkpoint_steps(total_steps: int, checkpoints: int | EverySteps) -> list[int]:
    """Return the steps after which a checkpoint is written, ascending.

    A count spreads them evenly, the last one at the end. `every` gives its multiples only, as in
    the paper: 6,141 steps leave 12 checkpoints at every 500.

    Raises:
        ConfigError: there are fewer steps than checkpoints.
    """
    if isinstance(checkpoints, EverySteps):
        steps = list(range(checkpoints.every, total_steps + 1, checkpoints.every))
        num_wanted = max(len(steps), 1)
    else:
        steps = [round(i * total_steps / checkpoints) for i in range(1, checkpoints + 1)]
        num_wanted = checkpoints
    if num_wanted > total_steps or not steps:
        wanted = f"{num_wanted} checkpoints" if steps else "a checkpoint at those multiples"
        raise ConfigError(
            f"reference.checkpoints: {wanted} cannot come from {total_steps} "
            f"optimizer steps. Raise reference.epochs or reference.max_steps, or lower "
            f"reference.checkpoints or reference.batch_size."
        )
    return steps


def learning_rate(step: int, total_steps: int, config: Training) -> float:
    """Return the rate of update number `step`, from 0: a linear rise, then a cosine to zero."""
    warm = math.ceil(config.warmup * total_steps)
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    turn = math.pi * (step - warm) / max(total_steps - warm, 1)
    return config.learning_rate * 0.5 * (1.0 + math.cos(turn))


def scoring_units(num_parts: int, num_checkpoints: int, num_workers: int) -> list[dict[str, Any]]:
    """Return all pairs of a part and a group of checkpoints, so many that all workers stay busy.

    The units come group by group, so that a worker changes its models as rarely as possible.
    """
    enough = UNITS_PER_WORKER * num_workers
    num_groups = min(max(math.ceil(enough / max(num_parts, 1)), 1), num_checkpoints)
    groups = np.array_split(np.arange(num_checkpoints), num_groups)
    return [
        {"part": part, "group": group.tolist()} for group in groups for part in range(num_parts)
    ]
