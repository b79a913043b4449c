"""The time that the work of stages takes, on hardware that is measured or given."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s2l_ray.artifacts.amounts import Work, most_workers
from s2l_ray.config.sections import EvaluationConfig, TrajectoriesConfig
from s2l_ray.config.training import Training
from s2l_ray.evaluation.declaration import EVALUATION
from s2l_ray.notation import flops, with_prefix
from s2l_ray.progress import LABEL_WIDTH, duration
from s2l_ray.stages import STAGES

SPEEDS = {stage.name: stage.estimate.speed for stage in STAGES if stage.estimate is not None}
"""Constants of the stages that compute with a model, by name."""

Section = Training | TrajectoriesConfig | EvaluationConfig
"""A section of a stage that computes with a model."""


@dataclass(frozen=True)
class Hardware:
    """The workers of a stage.

    Attributes:
        workers: their number.
        flops_per_second: floating-point operations per second of one worker, in matrix products or
            in passes of a small model; None if they are unknown.
        is_measured: whether they were measured here in passes of a small model.
        unknown: why they are unknown, if there is a reason to show.
        on_gpu: whether each worker has a GPU or a share of one.
    """

    workers: int
    flops_per_second: float | None
    is_measured: bool = False
    unknown: str = ""
    on_gpu: bool = False

    def share(self, stage: str) -> float:
        """Return the share of that speed that a worker of a stage reaches."""
        return SPEEDS[stage].of_trial if self.is_measured else SPEEDS[stage].of_product

    def start_seconds(self, stage: str) -> float:
        """Return the seconds before a worker of a stage computes."""
        speed = SPEEDS[stage]
        return speed.start_seconds_on_gpu if self.on_gpu else speed.start_seconds


@dataclass(frozen=True)
class Cost:
    """The cost of one step of a run.

    Attributes:
        label: name of the step.
        work: its computation.
        hardware: its workers.
        seconds: None if the model or the speed is unknown.
    """

    label: str
    work: Work
    hardware: Hardware
    seconds: float | None


def given(section: Section, flops_per_second: float) -> Hardware:
    """Return as many workers as `section` asks for, of a speed that the user gives."""
    return Hardware(most_workers(section.workers), flops_per_second, on_gpu=_gpus(section) > 0)


def measured(
    stage: str, section: Section, work: Work, sample: Callable[[], Any] | None
) -> Hardware:
    """Return workers of `section` on this machine, with the speed measured here.

    There are no more of them than the machine has CPUs or GPUs for.

    Args:
        stage: name of the stage.
        section: its section of the configuration.
        work: its computation.
        sample: makes a small model like the stage's own, or returns None if a layer is too large.
            Without `sample` the speed is unknown.
    """
    import torch

    gpus = _gpus(section)
    if gpus > 0:
        fitting = int(torch.cuda.device_count() / gpus)
    else:
        fitting = (os.cpu_count() or 1) // section.cpus_per_worker
    workers = min(most_workers(section.workers), max(fitting, 1))
    if sample is None or work.flops is None:
        return Hardware(most_workers(section.workers), None)
    if gpus > 0 and fitting == 0:
        return Hardware(most_workers(section.workers), None, unknown="there is no GPU here")
    try:
        speed = _trial_speed(stage, section, work, sample(), gpus=gpus, num_workers=workers)
    except Exception as error:  # from any model's own code; a plan can do without a speed
        reason = " ".join(str(error).split())[:150]
        unknown = f"a trial failed with {type(error).__name__}: {reason}"
        return Hardware(most_workers(section.workers), None, unknown=unknown)
    if speed is None:
        unknown = "a layer of its model is too large to be tried"
        return Hardware(most_workers(section.workers), None, unknown=unknown)
    return Hardware(workers, speed, is_measured=True, on_gpu=gpus > 0)


def _trial_speed(
    stage: str, section: Section, work: Work, model: Any, *, gpus: float, num_workers: int
) -> float | None:
    """Return the operations per second of a worker in a trial; None without a small model."""
    from s2l_ray.estimate import trial
    from s2l_ray.models import checkpoints

    if model is None:
        return None
    device = checkpoints.device_for(gpus)
    rows = trial.BatchShape(
        count=work.batch.rows,
        prompt_tokens=max(round(work.batch.prompt_tokens), 1),
        response_tokens=max(round(work.batch.row_tokens - work.batch.prompt_tokens), 1),
        new_tokens=_new_tokens(section),
    )
    dtype = checkpoints.DTYPES[checkpoints.set_precision(section.precision, device)]
    return trial.flops_per_second(
        stage,
        trial.Trial(model, rows, dtype, device),
        num_threads=section.cpus_per_worker,
        num_workers=1 if gpus > 0 else num_workers,
    )


def _new_tokens(section: Section) -> int:
    """Return the most tokens of an answer; 0 if no held-out set needs answers."""
    from s2l_ray.evaluation.metrics import need_completions

    if not isinstance(section, EvaluationConfig):
        return 0
    answers = any(need_completions(section, name) for name in section.sets)
    return section.max_new_tokens if answers else 0


def _gpus(section: Section) -> float:
    """Return the GPUs of each worker; 1 if the section leaves it open and there is a GPU here."""
    import torch

    if section.gpus_per_worker is None:
        return int(torch.cuda.is_available())
    return section.gpus_per_worker


def seconds(stage: str, work: Work, hardware: Hardware) -> float | None:
    """Return the time of a stage: start of the workers, then operations at the speed they reach."""
    if work.flops is None or hardware.flops_per_second is None:
        return None
    busy = float(hardware.workers)
    if work.units is not None:
        # In the last round there may be fewer pieces than workers.
        busy = work.units / max(math.ceil(work.units / hardware.workers), 1)
    reached = busy * hardware.flops_per_second * hardware.share(stage)
    return hardware.start_seconds(stage) + work.flops / max(reached, 1.0)


def table(costs: Sequence[Cost]) -> list[str]:
    """Return one aligned line per step, and one for their sum."""
    shown = [_line("cost", "tokens", "FLOPs", "time", "workers")]
    for cost in costs:
        rate, operations = cost.hardware.flops_per_second, cost.work.flops
        each = "" if rate is None else f" x {with_prefix(rate, 'FLOP/s')}"
        shown.append(
            _line(
                cost.label,
                f"{cost.work.tokens:,}",
                "unknown" if operations is None else flops(operations),
                "unknown" if cost.seconds is None else duration(cost.seconds),
                f"{cost.hardware.workers}{each}",
            )
        )
    return [*shown, _sum(costs)]


def _sum(costs: Sequence[Cost]) -> str:
    known = [cost for cost in costs if cost.seconds is not None]
    if not known:
        tokens = sum(cost.work.tokens for cost in costs)
        return _line("all", f"{tokens:,}", "", "unknown", "").rstrip()
    label = "all" if len(known) == len(costs) else "all of known time"
    tokens = sum(cost.work.tokens for cost in known)
    operations = sum(cost.work.flops or 0.0 for cost in known)
    total = sum(cost.seconds or 0.0 for cost in known)
    hours = f"{total / 3600:,.2f} hours"
    return _line(label, f"{tokens:,}", flops(operations), duration(total), hours)


def _line(label: str, tokens: str, operations: str, time: str, workers: str) -> str:
    return f"{label:<{LABEL_WIDTH - 4}}{tokens:>18}{operations:>13}{time:>11}   {workers}"


def remarks(hardware: Mapping[str, Hardware]) -> list[str]:
    """Return lines that say how times are computed, and what they leave out.

    Args:
        hardware: of each stage with a known time, by name.
    """
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
    return [
        *shown,
        "Not counted: prepare, clusters, selection, report, a comparison, waiting for machines.",
    ]
