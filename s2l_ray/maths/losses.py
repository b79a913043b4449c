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
ROWS_PER_TILE, VOCABULARY_PER_TILE = 1024, 2048
"""A tile on a CPU: 8 MiB of float32, with matrices large enough for the product's full speed."""
BYTES_PER_TILE = 256 * 2**20
"""A tile on a GPU, in float32."""


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


def linear_losses(
    hidden_MH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    target_M: torch.Tensor,
) -> torch.Tensor:
    """`token_losses` of a linear output layer, whose logits exist a tile at a time; no gradient.

    The log-sum-exp is carried from tile to tile (Milakov and Gimelshein, arXiv:1805.02867). On a
    CPU a tile stays in the cache, which makes this faster than the matrix product by itself; on a
    GPU a tile has the whole vocabulary.

    Args:
        hidden_MH: float tensor (M, H), inputs of the layer.
        weight_VH: float tensor (V, H) of the same type.
        bias_V: None, or a float tensor (V,).
        target_M: int64 tensor (M,), each in [0, V).

    Returns:
        loss_M, float32 tensor (M,), on the device of `hidden_MH`.
    """
    num_rows, vocab_size = len(hidden_MH), len(weight_VH)
    on_cpu = hidden_MH.device.type == "cpu"
    width = min(VOCABULARY_PER_TILE, vocab_size) if on_cpu else vocab_size
    height = ROWS_PER_TILE if on_cpu else max(1, BYTES_PER_TILE // (4 * vocab_size))
    buffer = hidden_MH.new_empty(min(height, num_rows) * width)
    loss_M = torch.empty(num_rows, dtype=torch.float32, device=hidden_MH.device)
    for top in range(0, num_rows, height):
        hidden_mH, target_m = hidden_MH[top : top + height], target_M[top : top + height]
        total_m = torch.full((len(hidden_mH),), -torch.inf, device=hidden_MH.device)
        own_m = torch.zeros_like(total_m)
        for left in range(0, vocab_size, width):
            weight_vH = weight_VH[left : left + width]
            tile_mv = buffer[: len(hidden_mH) * len(weight_vH)].view(len(hidden_mH), -1)
            torch.mm(hidden_mH, weight_vH.T, out=tile_mv)
            if bias_V is not None:
                tile_mv += bias_V[left : left + width]
            logits_mv = tile_mv.float()
            place_m = target_m - left
            inside_m = (place_m >= 0) & (place_m < len(weight_vH))
            found_m = logits_mv.gather(1, place_m.clamp(0, len(weight_vH) - 1)[:, None])[:, 0]
            own_m = torch.where(inside_m, found_m, own_m)
            highest_m = logits_mv.amax(dim=1)
            logits_mv.sub_(highest_m[:, None]).exp_()
            total_m = torch.logaddexp(total_m, logits_mv.sum(dim=1).log_().add_(highest_m))
        loss_M[top : top + height] = total_m - own_m
    return loss_M


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
