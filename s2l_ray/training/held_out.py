"""The loss of held-out rows while a model trains, measured in the loop by all ranks.

A rank takes its share of the rows, as of a global batch, and all ranks make the same number of
passes: with ZeRO stage 3 every one of them takes part in each. Nothing that is trained changes: the
passes have neither dropout nor gradients, and no random number is drawn.

Shapes: B rows of a micro-batch, M their response positions.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from s2l_ray.errors import ModelError
from s2l_ray.models import dimensions, rotations
from s2l_ray.models.losses import row_means
from s2l_ray.models.transfer import to_device
from s2l_ray.training.batches import MicroBatch, micro_batches
from s2l_ray.training.loop import Engine, response_losses, summed_over_ranks
from s2l_ray.training.token_parts import TokenParts


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows as tokens, and when their loss is measured.

    Attributes:
        sets: name -> the rows of a set.
        every: optimizer steps between two measurements.
        rows_per_pass: rows of one forward pass on a rank.
    """

    sets: Mapping[str, TokenParts]
    every: int
    rows_per_pass: int

    def is_due(self, step: int, total_steps: int) -> bool:
        """Tell whether the loss is measured after `step`; it is after the last one."""
        return step % self.every == 0 or step == total_steps

    def check_fits(self, model: PreTrainedModel) -> None:
        """Refuse a model that has fewer positions than a held-out row needs.

        Raises:
            ModelError: it names the set, and the keys by which these rows are read.
        """
        for name, parts in self.sets.items():
            try:
                dimensions.check_rows_fit(model, num_tokens=parts.num_tokens_of_longest)
            except ModelError as error:
                raise ModelError(
                    f"held-out set {name}: {error} Or leave out target.evaluate_every, which alone "
                    "reads these rows in the training; a smaller target.evaluate_rows may leave "
                    "out the long ones."
                ) from error

    def losses(
        self,
        engine: Engine,
        *,
        rank: int = 0,
        num_ranks: int = 1,
        must_stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, float] | None:
        """Return the mean loss of each set: over its rows, of means over their response tokens.

        Every rank has to call this, after the same step.

        Args:
            must_stop: asked before every pass; returns the same on every rank.

        Returns:
            nats per token by set, the same on every rank; None if it was stopped.

        Raises:
            ModelError: a loss is not finite, on every rank.
        """
        means = {}
        with _evaluating(engine.forward):
            for name, parts in self.sets.items():
                total = torch.zeros((), dtype=torch.float64, device=engine.device)
                for batch in self._batches(parts, engine, rank, num_ranks):
                    if must_stop():
                        return None
                    total += _row_losses(engine, batch).sum(dtype=torch.float64) * batch.weight
                means[name] = summed_over_ranks(total, num_ranks) / sum(parts.num_rows)
        bad = [name for name, loss in means.items() if not math.isfinite(loss)]
        if bad:
            raise ModelError(
                f"training: the loss of the held-out set {bad[0]} is {means[bad[0]]}. The same "
                "command goes on without it if target.evaluate_every is left out, which changes "
                "nothing else. Or lower learning_rate, raise warmup, or set precision: fp32."
            )
        return means

    def _batches(
        self, parts: TokenParts, engine: Engine, rank: int, num_ranks: int
    ) -> Iterator[MicroBatch]:
        """Yield this rank's share of a set; no more than one part is in memory."""
        regimes = rotations.regimes(engine.model.config)
        for part in range(len(parts.num_rows)):
            yield from micro_batches(
                parts.read(part),
                rank=rank,
                num_ranks=num_ranks,
                size=self.rows_per_pass,
                regimes=regimes,
            )


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout and gradients off inside the block.

    Weights that ZeRO gathers in inference mode could not be trained afterwards.
    """
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train()


def _row_losses(engine: Engine, batch: MicroBatch) -> torch.Tensor:
    """Return the mean loss of each row's response tokens: float32 (B,)."""
    loss_M = response_losses(engine.forward, batch, device=engine.device, autocast=engine.autocast)
    num_response_B = to_device(batch.mask_BL.sum(dim=1), engine.device)
    return row_means(loss_M[None], num_response_B)[0]
