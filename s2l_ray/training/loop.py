"""Fine-tuning whose result depends on the global batches and not on the workers.

The order of the rows, the rows of every global batch, the steps and the learning rates follow from
the data, the configuration and the seed. A rank takes its interleaved share of each batch.
The loss of a step is the sum over the response tokens of the whole batch, divided by their number.
Every rank knows that number beforehand, because it reads the whole batch.

Shapes: M response positions of a micro-batch, V vocabulary.
"""

import contextlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from s2l_ray.config.training import Training
from s2l_ray.errors import ModelError
from s2l_ray.models import rotations
from s2l_ray.models.losses import token_losses
from s2l_ray.models.output_layer import response_logits, unwrapped
from s2l_ray.models.torch_compile import CLOSE, compile_layers, trials
from s2l_ray.models.transfer import to_device
from s2l_ray.training.batches import MicroBatch, TrainingPlan, global_batches, micro_batches
from s2l_ray.training.schedule import learning_rate

STATE, TENSORS = "state.json", "state.safetensors"
SMALL = 1e-3
"""Share of the length of the whole gradient below which the gradient of one weight is rounding."""


@dataclass(frozen=True)
class Update:
    """The mean loss per response token of a global batch, before the update that it caused."""

    loss_nats: float
    grad_norm: float


@dataclass(frozen=True)
class StepReport:
    """One optimizer step, counted from 1."""

    step: int
    loss_nats: float
    learning_rate: float
    grad_norm: float
    num_rows: int
    num_tokens: int


class Engine(Protocol):
    """A model that learns: one of its replicas, or a shard of it.

    Attributes:
        forward: computes with the model, on all ranks together: itself, or a wrapper.
        autocast: computes in bfloat16 with weights in float32.
    """

    model: PreTrainedModel
    forward: torch.nn.Module
    device: torch.device
    autocast: bool

    def update(
        self, batches: Sequence[MicroBatch], *, learning_rate: float, num_response: int
    ) -> Update:
        """Make one optimizer step on this rank's share of a global batch.

        Args:
            num_response: response tokens of the whole batch, by which the loss is divided.
        """


def steps(
    engine: Engine,
    plan: TrainingPlan,
    *,
    start: int = 0,
    rank: int = 0,
    num_ranks: int = 1,
) -> Iterator[StepReport]:
    """Train from step `start` to the end of the plan, and yield a report after each step.

    Raises:
        ModelError: a loss or gradient is not finite, on every rank at the same step.
    """
    config, seed, total_steps = plan.config, plan.seed, plan.total_steps
    batches = global_batches(plan.parts, batch_size=config.batch_size, seed=seed, start=start)
    deal = partial(
        micro_batches,
        rank=rank,
        num_ranks=num_ranks,
        size=config.micro_batch_size,
        regimes=rotations.regimes(engine.model.config),
    )
    for step, rows in zip(range(start, total_steps), batches, strict=False):
        rate = learning_rate(step, total_steps, config)
        torch.manual_seed(_dropout_seed(seed, step, rank))
        update = engine.update(deal(rows), learning_rate=rate, num_response=rows.num_response)
        if not (math.isfinite(update.loss_nats) and math.isfinite(update.grad_norm)):
            raise ModelError(
                f"training: the loss is {update.loss_nats} and its gradient's norm "
                f"{update.grad_norm} at step {step + 1} of {total_steps}. Lower learning_rate, "
                f"raise warmup, or set precision: fp32."
            )
        num_tokens = len(rows.token_ids)
        yield StepReport(step + 1, update.loss_nats, rate, update.grad_norm, len(rows), num_tokens)


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([4, seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def batch_loss(
    model: torch.nn.Module, batch: MicroBatch, *, device: torch.device, autocast: bool
) -> torch.Tensor:
    """Return the summed loss of a micro-batch's response tokens, in nats; zero for a stand-in."""
    loss_M = response_losses(model, batch, device=device, autocast=autocast)
    return loss_M.sum() * batch.weight


def response_losses(
    model: torch.nn.Module, batch: MicroBatch, *, device: torch.device, autocast: bool
) -> torch.Tensor:
    """Return the loss of each response token of a micro-batch, in nats: float32 (M,).

    Args:
        autocast: compute in bfloat16 with weights in float32.
    """
    rotations.forget_lengths(unwrapped(model))
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        logits_MV = response_logits(model, to_device(batch.input_ids_BL, device), batch.mask_BL)
    return token_losses(logits_MV, to_device(batch.target_M, device))


def compile_to_train(
    model: PreTrainedModel, *, largest: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> str | None:
    """Move a float32 model to `device` and compile its layers; see `compile_layers`.

    With dropout the losses of two passes differ, and the layers stay uncompiled.

    Args:
        largest: rows of a micro-batch, and tokens read of the longest row. This size is tried as
            well, because large batches may need other code.

    Returns:
        The reason why the layers run uncompiled; None if they are compiled.
    """
    model.to(device).train()  # type: ignore[arg-type]
    autocast = dtype == torch.bfloat16
    trial = partial(compilation_trial, model, largest=largest, device=device, autocast=autocast)
    try:
        return compile_layers(model, trial, close=CLOSE[dtype])
    finally:
        # Gradients that a failed backward pass leaves would be learned.
        model.zero_grad(set_to_none=True)


def compilation_trial(
    model: PreTrainedModel, *, largest: tuple[int, int], device: torch.device, autocast: bool
) -> torch.Tensor:
    """Return losses, and logarithms of gradients' lengths, for the same tokens on all workers."""
    results = []
    config = model.config.get_text_config()
    # The embedding of padding is zero, which a norm divides by: gradients would overflow.
    padding = config.vocab_size if config.pad_token_id is None else config.pad_token_id
    for num_rows, num_tokens in [*trials(config, largest[1]), largest]:
        ids = torch.arange(num_rows * num_tokens) % (config.vocab_size - 1)
        ids += ids >= padding
        ids_BL = ids.view(num_rows, num_tokens)
        # One logit for each row: the output layer is not compiled, and its logits may be large.
        mask_BL = torch.zeros(num_rows, num_tokens, dtype=torch.bool)
        mask_BL[:, -1] = True
        batch = MicroBatch(ids_BL, mask_BL, ids_BL[:, 0].clone(), 1 / num_rows)
        loss = batch_loss(model, batch, device=device, autocast=autocast)
        loss.backward()
        norms = [weight.grad.norm() for weight in model.parameters() if weight.grad is not None]
        model.zero_grad(set_to_none=True)
        norm_W = torch.stack(norms)
        # A gradient that is nearly zero compared with the others is rounding.
        results += [loss.detach()[None], (norm_W + SMALL * norm_W.norm()).log()]
    return torch.cat(results)


def weight_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return AdamW's parameter groups: no decay for biases and the gains of norms (vectors)."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Replica:
    """A whole model on every rank, gradients averaged by DistributedDataParallel."""

    def __init__(
        self,
        model: PreTrainedModel,
        config: Training,
        *,
        device: torch.device,
        dtype: torch.dtype,
        num_ranks: int = 1,
    ) -> None:
        model.to(device).train()  # type: ignore[arg-type]
        self.model = model
        self.device, self.num_ranks = device, num_ranks
        self.autocast = dtype == torch.bfloat16
        self.max_grad_norm = config.max_grad_norm
        groups = weight_groups(model, config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        self.forward: torch.nn.Module = self.model
        if num_ranks > 1:
            # With find_unused_parameters the gradient buckets are never rebuilt: a resumed run
            # sums in the same order as an uninterrupted one, bit for bit.
            self.forward = DistributedDataParallel(
                self.model, broadcast_buffers=False, find_unused_parameters=True
            )

    def update(
        self, batches: Sequence[MicroBatch], *, learning_rate: float, num_response: int
    ) -> Update:
        loss_sum = torch.zeros((), device=self.device)
        for number, batch in enumerate(batches, 1):
            with self._gradients_synchronised(number == len(batches)):
                loss = batch_loss(self.forward, batch, device=self.device, autocast=self.autocast)
                # DDP divides by the number of ranks.
                (loss * (self.num_ranks / num_response)).backward()
            loss_sum += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return Update(summed_over_ranks(loss_sum, self.num_ranks) / num_response, norm.item())

    def _gradients_synchronised(self, wanted: bool) -> contextlib.AbstractContextManager[None]:
        if wanted or not isinstance(self.forward, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.forward.no_sync()

    def save(self, folder: Path) -> None:
        """Write weights and moments as safetensors; all ranks have the same, so one calls this."""
        tensors = {}
        for name, weight in self.model.named_parameters():
            tensors[f"weight.{name}"] = weight.detach()
            for key, moment in self.optimizer.state.get(weight, {}).items():
                tensors[f"{key}.{name}"] = moment
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, folder / TENSORS)

    def load(self, folder: Path) -> None:
        """Restore the weights and moments of `save`."""
        tensors = load_file(folder / TENSORS)
        for name, weight in self.model.named_parameters():
            with torch.no_grad():
                weight.copy_(tensors[f"weight.{name}"])
            state = {
                key: tensors[f"{key}.{name}"].to(self.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{key}.{name}" in tensors
            }
            if state:
                self.optimizer.state[weight] = state


def summed_over_ranks(value: torch.Tensor, num_ranks: int) -> float:
    """Return the sum of a number over all ranks; every rank has to call this."""
    if num_ranks > 1:
        dist.all_reduce(value)
    return float(value.item())


# --- the state from which a restart continues ---------------------------------------------------


@dataclass
class History:
    """The course of a training up to its last step: one loss for each step."""

    loss_nats: list[float] = field(default_factory=list)
    num_tokens: int = 0
    workers: list[list[int]] = field(default_factory=list)
    """Pairs: steps done before, and the number of workers from then on."""
    held_out: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """Pairs: a step, and the mean loss of each held-out set after it."""

    @property
    def step(self) -> int:
        return len(self.loss_nats)

    @property
    def is_measured(self) -> bool:
        """Tell whether the loss of the held-out sets is known after the last step."""
        return bool(self.held_out) and self.held_out[-1][0] == self.step

    def add(self, report: StepReport) -> None:
        self.loss_nats.append(report.loss_nats)
        self.num_tokens += report.num_tokens

    def record_workers(self, num_workers: int) -> None:
        """Record that from the next step on so many workers train."""
        if not self.workers or self.workers[-1][1] != num_workers:
            self.workers.append([self.step, num_workers])

    def write(self, folder: Path) -> None:
        (folder / STATE).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> "History":
        return cls(**json.loads((folder / STATE).read_text()))

    def curve(self, points: int = 100) -> list[tuple[int, float]]:
        """Return at most `points` pairs: a step, and the mean loss since the pair before."""
        ends = np.unique(np.linspace(0, self.step, min(points, self.step) + 1).round().astype(int))
        return [
            (int(end), float(np.mean(self.loss_nats[begin:end])))
            for begin, end in itertools.pairwise(ends)
        ]
