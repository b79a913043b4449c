"""The work of training a model, for estimates of its cost."""

from dataclasses import replace

from s2l_ray.artifacts.amounts import Amount, Work, forward_flops
from s2l_ray.config.training import TargetConfig, Training
from s2l_ray.models import flops
from s2l_ray.models.flops import Shape
from s2l_ray.training import schedule


def training_work(config: Training, amount: Amount, shape: Shape | None) -> Work:
    """Return the work of all optimizer steps on the rows of `amount`."""
    passed = amount.scaled_to(schedule.rows_trained(amount.rows, config))
    operations = None
    if shape is not None:
        target = config if isinstance(config, TargetConfig) else None
        passes = flops.training_passes(
            recomputed=target is not None and target.activation_checkpointing,
            frozen=target is not None and target.lora is not None,
        )
        operations = passes * forward_flops(shape, passed)
    return Work(passed.tokens, operations, amount.scaled_to(config.micro_batch_size), None)


def with_measurements(work: Work, measured: Amount, times: int, shape: Shape | None) -> Work:
    """Return `work` with that of reading the held-out rows `measured` so many times."""
    tokens, operations = work.tokens + times * measured.tokens, work.flops
    if operations is not None and shape is not None:
        operations += times * forward_flops(shape, measured)
    return replace(work, tokens=tokens, flops=operations)
