"""Cross-entropy that never holds a float32 copy of all logits.

Shapes: M response positions, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

BYTES_PER_CHUNK = 32 * 2**20
"""Size of the float32 copy that is alive at any time; larger was not faster on a CPU."""


def token_losses(logits_MV: torch.Tensor, target_M: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every position, in nats, computed in float32 whatever the logits' type.

    The gradient with respect to the logits, softmax(logits) - onehot(target), has their type. It is
    recomputed row by row, so that only the logits themselves are kept for the backward pass.

    Args:
        logits_MV: float tensor (M, V) of any floating type.
        target_M: int64 tensor (M,), each in [0, V).

    Returns:
        loss_M, float32 tensor (M,), on the logits' device.
    """
    assert logits_MV.ndim == 2 and target_M.shape == logits_MV.shape[:1], "one target per row"
    return _TokenLosses.apply(logits_MV, target_M)


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_MV: torch.Tensor, target_M: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits_MV, target_M)
        loss_M = torch.empty(len(target_M), dtype=torch.float32, device=logits_MV.device)
        for rows in _chunks(logits_MV):
            logits_mV = logits_MV[rows].float()
            loss_M[rows] = F.cross_entropy(logits_mV, target_M[rows], reduction="none")
        return loss_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits_MV, target_M = ctx.saved_tensors
        grad_MV = torch.empty_like(logits_MV)
        for rows in _chunks(logits_MV):
            share_mV = torch.softmax(logits_MV[rows].float(), dim=-1)
            share_mV[torch.arange(len(share_mV), device=share_mV.device), target_M[rows]] -= 1
            grad_MV[rows] = share_mV.mul_(grad_M[rows, None])
        return grad_MV, None


def _chunks(logits_MV: torch.Tensor) -> Iterator[slice]:
    num_rows, vocab_size = logits_MV.shape
    rows_per_chunk = max(1, BYTES_PER_CHUNK // (4 * vocab_size))
    for start in range(0, num_rows, rows_per_chunk):
        yield slice(start, start + rows_per_chunk)
