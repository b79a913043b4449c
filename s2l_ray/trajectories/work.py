"""The work of scoring a pool, for estimates of its cost."""

from s2l_ray.artifacts.amounts import Amount, Pool, Work, forward_flops, most_workers
from s2l_ray.config.sections import TrajectoriesConfig
from s2l_ray.models.flops import Shape
from s2l_ray.training import schedule


def scoring_work(
    config: TrajectoriesConfig, pool: Pool, num_checkpoints: int, shape: Shape | None
) -> Work:
    """Return the work of one forward pass over the pool at every checkpoint.

    With `without_prompt` there is one more over the responses, each after one token.
    """
    amount = pool.amount.with_responses_of(config.max_response_tokens)
    operations = None if shape is None else num_checkpoints * forward_flops(shape, amount)
    tokens = num_checkpoints * amount.tokens
    if config.without_prompt and num_checkpoints:
        alone = Amount(amount.rows, amount.responses + amount.rows, amount.responses)
        tokens += alone.tokens
        operations = None if shape is None else (operations or 0) + forward_flops(shape, alone)
    units = 0
    if num_checkpoints:
        workers = most_workers(config.workers)
        units = len(schedule.scoring_units(pool.parts, num_checkpoints, workers))
    rows = int(config.tokens_per_batch / max(amount.row_tokens, 1))
    return Work(tokens, operations, amount.scaled_to(max(rows, 1)), units)
