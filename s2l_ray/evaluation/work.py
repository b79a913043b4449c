"""The work of evaluating a target, for estimates of its cost."""

import math
from collections.abc import Mapping

from s2l_ray.artifacts.amounts import Amount, Work, forward_flops
from s2l_ray.config.sections import EvaluationConfig
from s2l_ray.evaluation.evaluation_sets import BATCHES_PER_UNIT
from s2l_ray.evaluation.metrics import need_completions
from s2l_ray.models import flops
from s2l_ray.models.flops import Shape


def evaluation_work(
    config: EvaluationConfig, sets: Mapping[str, Amount], shape: Shape | None
) -> Work:
    """Return the work of scoring held-out rows, and of answering the prompts of sets that need it.

    Every answer is counted at its greatest length. As a shorter one costs less, this is the most
    that evaluation takes.
    """
    new = config.max_new_tokens
    answered = [rows for name, rows in sets.items() if need_completions(config, name)]
    tokens = sum(rows.tokens for rows in sets.values())
    tokens += sum(rows.tokens - rows.responses + rows.rows * new for rows in answered)
    operations = None
    if shape is not None:
        operations = sum(forward_flops(shape, rows) for rows in sets.values())
        operations += sum(
            flops.answers(shape, rows=rows.rows, prompt=rows.prompt_tokens, new_tokens=new)
            for rows in answered
        )
    rows_per_unit = BATCHES_PER_UNIT * config.rows_per_batch
    units = sum(math.ceil(rows.rows / rows_per_unit) for rows in sets.values())
    batch = sum(sets.values(), Amount(0, 0, 0)).scaled_to(config.rows_per_batch)
    return Work(tokens, operations, batch, units)
