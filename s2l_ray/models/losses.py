"""Cross-entropy and the error norm of predictions, without a float32 copy of all logits.

The error norm of a position is ||softmax(logits) - onehot(target)||, the length of the gradient of
its cross-entropy with respect to the logits: 0 for a certain and right prediction, sqrt(2) for a
certain and wrong one.

Shapes: B rows, M response positions, V vocabulary, H hidden size, C measures: the loss, and perhaps
the error norm. A lower-case letter (m, v) is a part of that axis.

Source:
    The norm is a token's share of EL2N, Paul, Ganguli and Dziugaite (2021), arXiv:2107.07075.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

BYTES_PER_CHUNK = 32 * 2**20
"""Size of the float32 copy that exists at any time; larger ones were not faster on a CPU."""
ROWS_PER_TILE, VOCABULARY_PER_TILE = 1024, 2048
"""Size of a tile on a CPU: 8 MiB of float32, and matrices large enough for the product's full
speed."""
BYTES_PER_TILE = 256 * 2**20
"""Size of a tile on another device, in float32: whole rows, as many as fit."""

COMPILED: dict[str, str | int | bool | Callable[..., object]] = {"deterministic": True}
"""Options for torch.compile: no kernel is chosen by its time, so all workers compute alike."""


def token_losses(logits_MV: torch.Tensor, target_M: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of every position, in nats, computed in float32 for any type.

    The gradient with respect to the logits, softmax(logits) - onehot(target), has their type. It is
    recomputed row by row, so that only the logits themselves stay in memory for the backward pass.

    Args:
        logits_MV: float tensor (M, V) of any floating type.
        target_M: int64 tensor (M,), each in [0, V).

    Returns:
        loss_M, float32 tensor (M,), on the logits' device.
    """
    assert logits_MV.ndim == 2 and target_M.shape == logits_MV.shape[:1], "one target per row"
    return _TokenLosses.apply(logits_MV, target_M)


def error_norms(logits_MV: torch.Tensor, target_M: torch.Tensor) -> torch.Tensor:
    """Return ||softmax(logits) - onehot(target)||_2 of every position, without a gradient.

    Args:
        logits_MV: float tensor (M, V) of any floating type.
        target_M: int64 tensor (M,), each in [0, V).

    Returns:
        norm_M, float32 tensor (M,), on the logits' device, each in [0, sqrt(2)].
    """
    norm_M = torch.empty(len(target_M), dtype=torch.float32, device=logits_MV.device)
    for rows in _chunks(logits_MV):
        norm_M[rows] = torch.linalg.vector_norm(_errors(logits_MV[rows], target_M[rows]), dim=1)
    return norm_M


def linear_losses(
    hidden_MH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    target_M: torch.Tensor,
    *,
    compiled: bool = False,
    norms: bool = False,
) -> torch.Tensor:
    """Return `token_losses` of a linear output layer, whose logits exist a tile at a time.

    There is no gradient.

    The highest logit and the sum of exponentials are carried from tile to tile (Milakov and
    Gimelshein, arXiv:1805.02867), so that a tile need not leave a CPU's cache. Other devices get
    tiles of whole rows. With `norms` the sum of the squares of exponentials is carried as well.

    Args:
        hidden_MH: float tensor (M, H), inputs of the layer.
        weight_VH: float tensor (V, H) of the same type.
        bias_V: None, or a float tensor (V,).
        target_M: int64 tensor (M,), each in [0, V).
        compiled: pass whole rows to a cross-entropy that torch has compiled: on a GPU it reads them
            twice instead of writing them several times. Errors of the compiler are not caught.
        norms: return `error_norms` as well; losses keep their bits where nothing is compiled.

    Returns:
        measure_CM, float32 tensor (1, M) of losses or (2, M) of losses and norms, on the device of
        `hidden_MH`.
    """
    if compiled or hidden_MH.device.type != "cpu":
        num_rows, width = max(1, BYTES_PER_TILE // (4 * len(weight_VH))), len(weight_VH)
    else:
        num_rows, width = ROWS_PER_TILE, VOCABULARY_PER_TILE
    buffer = hidden_MH.new_empty(min(num_rows, len(hidden_MH)) * width)
    layer = _TiledLayer(weight_VH, bias_V, width, buffer)
    measure = layer.measures_of_rows if compiled else layer.measures_by_tiles
    measures = [
        measure(hidden_mH, target_m, norms=norms)
        for hidden_mH, target_m in zip(
            hidden_MH.split(num_rows), target_M.split(num_rows), strict=True
        )
    ]
    return torch.cat(measures, dim=1)


@dataclass(frozen=True)
class _TiledLayer:
    """A linear output layer, the width of a tile of its logits, and the memory for one tile."""

    weight_VH: torch.Tensor
    bias_V: torch.Tensor | None
    width: int
    buffer: torch.Tensor

    def measures_of_rows(
        self, hidden_MH: torch.Tensor, target_M: torch.Tensor, *, norms: bool
    ) -> torch.Tensor:
        """Return float32 (C, M), from tiles that are as wide as the vocabulary."""
        logits_MV = self._product(hidden_MH, self.weight_VH)
        return compiled_cross_entropy(norms)(logits_MV, self.bias_V, target_M)

    def measures_by_tiles(
        self, hidden_MH: torch.Tensor, target_M: torch.Tensor, *, norms: bool
    ) -> torch.Tensor:
        """Return float32 (C, M), from tiles of `width` entries of the vocabulary."""
        highest_M = torch.full((len(hidden_MH),), -torch.inf, device=hidden_MH.device)
        sum_M, squares_M, own_M = (torch.zeros_like(highest_M) for _ in range(3))
        for left in range(0, len(self.weight_VH), self.width):
            weight_vH = self.weight_VH[left : left + self.width]
            tile_Mv = self._product(hidden_MH, weight_vH)
            if self.bias_V is not None:
                tile_Mv += self.bias_V[left : left + self.width]
            logits_Mv = tile_Mv.float()
            column_M = target_M - left
            inside_M = (column_M >= 0) & (column_M < len(weight_vH))
            column_M1 = column_M.clamp(0, len(weight_vH) - 1)[:, None]
            own_M = torch.where(inside_M, logits_Mv.gather(1, column_M1).squeeze(1), own_M)
            higher_M = torch.maximum(highest_M, logits_Mv.amax(dim=1))
            shrunk_M = (highest_M - higher_M).exp_()
            exp_Mv = logits_Mv.sub_(higher_M[:, None]).exp_()
            sum_M = sum_M * shrunk_M + exp_Mv.sum(dim=1)
            if norms:
                exp_Mv.scatter_(1, column_M1, exp_Mv.gather(1, column_M1) * ~inside_M[:, None])
                squares_M = squares_M * shrunk_M.square() + exp_Mv.square_().sum(dim=1)
            highest_M = higher_M
        # In this order large logits that are near each other lose no digits.
        loss_M = (highest_M - own_M) + sum_M.log()
        if not norms:
            return loss_M[None]
        return torch.stack([loss_M, _norms(loss_M, squares_M, sum_M)])

    def _product(self, hidden_MH: torch.Tensor, weight_vH: torch.Tensor) -> torch.Tensor:
        """Return logits (M, v) in the buffer: the next product overwrites them."""
        num_rows, width = len(hidden_MH), len(weight_vH)
        tile_Mv = self.buffer[: num_rows * width].view(num_rows, width)
        torch.mm(hidden_MH, weight_vH.T, out=tile_Mv)
        return tile_Mv


def row_means(measure_CM: torch.Tensor, num_response_B: torch.Tensor) -> torch.Tensor:
    """Return the measures, averaged over each row's response tokens: float32 (C, B).

    Args:
        measure_CM: float tensor (C, M), row after row.
        num_response_B: int64 tensor (B,), how many of the M positions each row has.
    """
    # Unsafe: to see that lengths and values fit, it would wait for the GPU.
    mean = partial(torch.segment_reduce, reduce="mean", lengths=num_response_B, unsafe=True)
    return torch.stack([mean(measure_M.double()).float() for measure_M in measure_CM])


@functools.cache
def compiled_cross_entropy(norms: bool) -> Callable[..., torch.Tensor]:
    def cross_entropy(
        logits_MV: torch.Tensor, bias_V: torch.Tensor | None, target_M: torch.Tensor
    ) -> torch.Tensor:
        logits_MV = logits_MV.float()
        if bias_V is not None:
            logits_MV = logits_MV + bias_V.float()
        loss_M = F.cross_entropy(logits_MV, target_M, reduction="none")
        if not norms:
            return loss_M[None]
        exp_MV = (logits_MV - logits_MV.amax(dim=1, keepdim=True)).exp()
        is_own_MV = torch.arange(logits_MV.shape[1], device=target_M.device) == target_M[:, None]
        squares_M = exp_MV.masked_fill(is_own_MV, 0.0).square().sum(dim=1)
        return torch.stack([loss_M, _norms(loss_M, squares_M, exp_MV.sum(dim=1))])

    return torch.compile(cross_entropy, dynamic=True, options=COMPILED)


def _norms(loss_M: torch.Tensor, squares_M: torch.Tensor, sum_M: torch.Tensor) -> torch.Tensor:
    """Return error norms from sums over exp(logit).

    The target's own error is 1 - p = -expm1(-loss). It is added apart and nothing is subtracted, so
    norms near 0 keep their digits; in (sum of p^2) - 2p + 1 they would not.

    Args:
        squares_M: sums of the squares, without the target's.
        sum_M: sums of all.
    """
    return torch.sqrt(torch.expm1(-loss_M).square() + squares_M / sum_M.square())


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
            error_mV = _errors(logits_MV[rows], target_M[rows])
            grad_MV[rows] = error_mV.mul_(grad_M[rows, None])
        return grad_MV, None


def _errors(logits_MV: torch.Tensor, target_M: torch.Tensor) -> torch.Tensor:
    """Return softmax(logits) - onehot(target), float32 (M, V)."""
    error_MV = torch.softmax(logits_MV.float(), dim=-1)
    error_MV[torch.arange(len(error_MV), device=error_MV.device), target_M] -= 1
    return error_MV


def _chunks(logits_MV: torch.Tensor) -> Iterator[slice]:
    num_rows, vocab_size = logits_MV.shape
    rows_per_chunk = max(1, BYTES_PER_CHUNK // (4 * vocab_size))
    for start in range(0, num_rows, rows_per_chunk):
        yield slice(start, start + rows_per_chunk)
