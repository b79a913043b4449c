"""What the costly stages compute, and how long that takes on hardware that is measured or given."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s2l_ray.config.sections import (
    EvaluationConfig,
    TargetConfig,
    Training,
    TrajectoriesConfig,
    WorkerRange,
)
from s2l_ray.estimate.sizes import Amount, Pool
from s2l_ray.evaluation.declaration import EVALUATION
from s2l_ray.evaluation.evaluation_sets import BATCHES_PER_UNIT
from s2l_ray.models import flops
from s2l_ray.models.flops import Shape
from s2l_ray.progress import LABEL_WIDTH, duration
from s2l_ray.stages import STAGES
from s2l_ray.training import schedule

SPEEDS = {stage.name: stage.speed for stage in STAGES if stage.speed is not None}
"""Of the stages that compute with a model."""

Section = Training | TrajectoriesConfig | EvaluationConfig


@dataclass(frozen=True)
class Work:
    """What one stage computes.

    Attributes:
        tokens: all that go through the model, in every epoch or at every checkpoint anew.
        flops: None where the model is not known.
        batch: average rows, as many as go through the model at once.
        units: the pieces that workers take one by one; None where all share every step.
    """

    tokens: int
    flops: float | None
    batch: Amount
    units: int | None


@dataclass(frozen=True)
class Hardware:
    """How many workers compute, and how fast.

    Attributes:
        flops_per_second: of each, in products of matrices, or as measured in passes of a model;
            None if that is unknown.
        unknown: why it is, in words.
        on_gpu: whether each has one, or a share of one.
    """

    workers: int
    flops_per_second: float | None
    is_measured: bool = False
    unknown: str = ""
    on_gpu: bool = False

    def share(self, stage: str) -> float:
        """Of that speed, what a worker of a stage reaches."""
        return SPEEDS[stage].of_trial if self.is_measured else SPEEDS[stage].of_product

    def start_seconds(self, stage: str) -> float:
        """Before a worker of a stage computes."""
        speed = SPEEDS[stage]
        return speed.start_seconds_on_gpu if self.on_gpu else speed.start_seconds


@dataclass(frozen=True)
class Cost:
    """What one step of a run takes; the time is None where model or hardware are not known."""

    label: str
    work: Work
    hardware: Hardware
    seconds: float | None


def training(config: Training, amount: Amount, shape: Shape | None) -> Work:
    """All optimizer steps on the rows of `amount`."""
    passed = amount.scaled_to(schedule.rows_trained(amount.rows, config))
    operations = None
    if shape is not None:
        target = config if isinstance(config, TargetConfig) else None
        passes = flops.training_passes(
            recomputed=target is not None and target.activation_checkpointing,
            frozen=target is not None and target.lora is not None,
        )
        operations = passes * _read(shape, passed)
    return Work(passed.tokens, operations, amount.scaled_to(config.micro_batch_size), None)


def scoring(
    config: TrajectoriesConfig, pool: Pool, num_checkpoints: int, shape: Shape | None
) -> Work:
    """One forward pass over the pool at every checkpoint."""
    amount = pool.amount.with_responses_of(config.max_response_tokens)
    operations = None if shape is None else num_checkpoints * _read(shape, amount)
    tokens = num_checkpoints * amount.tokens
    units = 0
    if num_checkpoints:
        units = len(schedule.scoring_units(pool.parts, num_checkpoints, _wanted(config)))
    rows = int(config.tokens_per_batch / max(amount.row_tokens, 1))
    return Work(tokens, operations, amount.scaled_to(max(rows, 1)), units)


def evaluation(config: EvaluationConfig, sets: Sequence[Amount], shape: Shape | None) -> Work:
    """Held-out rows are scored, their prompts read again, and every answer is as long as it may be.

    A shorter answer costs less, so this is the most that it takes.
    """
    new = config.max_new_tokens
    tokens = sum(2 * rows.tokens - rows.responses + rows.rows * new for rows in sets)
    operations = None
    if shape is not None:
        operations = sum(
            _read(shape, rows)
            + flops.answers(shape, rows=rows.rows, prompt=rows.prompt_tokens, new_tokens=new)
            for rows in sets
        )
    rows_per_unit = BATCHES_PER_UNIT * config.rows_per_batch
    units = sum(math.ceil(rows.rows / rows_per_unit) for rows in sets)
    batch = sum(sets, Amount(0, 0, 0)).scaled_to(config.rows_per_batch)
    return Work(tokens, operations, batch, units)


def _read(shape: Shape, rows: Amount) -> float:
    """Whole rows, with logits of response positions only."""
    return flops.forward(shape, tokens=rows.tokens, logits=rows.responses, context=rows.row_tokens)


def given(section: Section, flops_per_second: float) -> Hardware:
    """Workers of a speed that the user knows, as many as `section` asks for."""
    return Hardware(_wanted(section), flops_per_second, on_gpu=_gpus(section) > 0)


def measured(
    stage: str, section: Section, work: Work, sample: Callable[[], Any] | None
) -> Hardware:
    """Workers of `section` on this machine, no more than it has CPUs or GPUs for.

    Args:
        sample: makes a small model like the stage's own, or None where that is too large; without
            it the speed is unknown.
    """
    import torch

    gpus = _gpus(section)
    if gpus > 0:
        fitting = int(torch.cuda.device_count() / gpus)
    else:
        fitting = (os.cpu_count() or 1) // section.cpus_per_worker
    workers = min(_wanted(section), max(fitting, 1))
    if sample is None or work.flops is None:
        return Hardware(_wanted(section), None)
    if gpus > 0 and fitting == 0:
        return Hardware(_wanted(section), None, unknown="there is no GPU here")
    try:
        speed = _tried(stage, section, work, sample(), gpus=gpus, num_workers=workers)
    except Exception as error:  # of any model's own code; a plan can do without a speed
        reason = " ".join(str(error).split())[:150]
        unknown = f"a trial failed with {type(error).__name__}: {reason}"
        return Hardware(_wanted(section), None, unknown=unknown)
    if speed is None:
        unknown = "a layer of its model is too large to be tried"
        return Hardware(_wanted(section), None, unknown=unknown)
    return Hardware(workers, speed, is_measured=True, on_gpu=gpus > 0)


def _tried(
    stage: str, section: Section, work: Work, model: Any, *, gpus: float, num_workers: int
) -> float | None:
    from s2l_ray.estimate import trial
    from s2l_ray.models import checkpoints

    if model is None:
        return None
    device = checkpoints.device_for(gpus)
    rows = trial.BatchShape(
        count=work.batch.rows,
        prompt_tokens=max(round(work.batch.prompt_tokens), 1),
        response_tokens=max(round(work.batch.row_tokens - work.batch.prompt_tokens), 1),
        new_tokens=section.max_new_tokens if isinstance(section, EvaluationConfig) else 0,
    )
    dtype = checkpoints.DTYPES[checkpoints.set_precision(section.precision, device)]
    return trial.flops_per_second(
        stage,
        trial.Trial(model, rows, dtype, device),
        num_threads=section.cpus_per_worker,
        num_workers=1 if gpus > 0 else num_workers,
    )


def _gpus(section: Section) -> float:
    """Of each worker; where that is left open, as many as this machine has for it."""
    import torch

    if section.gpus_per_worker is None:
        return int(torch.cuda.is_available())
    return section.gpus_per_worker


def _wanted(section: Section) -> int:
    workers = section.workers
    return workers.max if isinstance(workers, WorkerRange) else workers


def seconds(stage: str, work: Work, hardware: Hardware) -> float | None:
    """Start of the workers, then operations at the share of their speed that `stage` reaches."""
    if work.flops is None or hardware.flops_per_second is None:
        return None
    busy = float(hardware.workers)
    if work.units is not None:
        # The last round of pieces may leave workers without one.
        busy = work.units / max(math.ceil(work.units / hardware.workers), 1)
    reached = busy * hardware.flops_per_second * hardware.share(stage)
    return hardware.start_seconds(stage) + work.flops / max(reached, 1.0)


def table(costs: Sequence[Cost]) -> list[str]:
    """One aligned line per step, and their sum."""
    shown = [_line("cost", "tokens", "FLOPs", "time", "workers")]
    for cost in costs:
        rate, operations = cost.hardware.flops_per_second, cost.work.flops
        each = "" if rate is None else f" x {readable(rate)}FLOP/s"
        shown.append(
            _line(
                cost.label,
                f"{cost.work.tokens:,}",
                "unknown" if operations is None else f"{readable(operations)}FLOP",
                "unknown" if cost.seconds is None else duration(cost.seconds),
                f"{cost.hardware.workers}{each}",
            )
        )
    return [*shown, _sum(costs)]


def _sum(costs: Sequence[Cost]) -> str:
    known = [cost for cost in costs if cost.seconds is not None]
    label = "all" if len(known) == len(costs) else "all of known time"
    tokens = sum(cost.work.tokens for cost in known)
    operations = sum(cost.work.flops or 0.0 for cost in known)
    total = sum(cost.seconds or 0.0 for cost in known)
    hours = f"{total / 3600:,.2f} hours"
    return _line(label, f"{tokens:,}", f"{readable(operations)}FLOP", duration(total), hours)


def _line(label: str, tokens: str, operations: str, time: str, workers: str) -> str:
    return f"{label:<{LABEL_WIDTH - 4}}{tokens:>18}{operations:>13}{time:>11}   {workers}"


def readable(number: float) -> str:
    """Three digits and a prefix: 1.234e13 -> '12.3 T'."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if number < 999.5:
            return f"{number:.3g} {prefix}"
        number /= 1000
    return f"{number:,.3g} Z"


def remarks(hardware: Mapping[str, Hardware]) -> list[str]:
    """What the times are made of, and what is not in them; `hardware` is that of stages."""
    listed = "; ".join(
        f"{stage} {of_stage.start_seconds(stage):g} s, {of_stage.share(stage):.0%}"
        for stage, of_stage in hardware.items()
    )
    is_measured = any(of_stage.is_measured for of_stage in hardware.values())
    speeds = "were measured here, in passes" if is_measured else "are given"
    on_gpu = any(of_stage.on_gpu for of_stage in hardware.values())
    shown = [
        "Time is the start of the workers plus FLOPs / (workers x speed x share of it reached):",
        f"  {listed}",
        f"Starts and shares come from two CPU cores (docs/experiments.md); speeds {speeds}.",
        *(["Starts on GPUs come from one H200."] if on_gpu else []),
    ]
    if EVALUATION.name in hardware:
        shown.append("Evaluation takes at most this: every answer is counted at its full length.")
    return [*shown, "Not counted: prepare, clusters, selection, report, waiting for machines."]
