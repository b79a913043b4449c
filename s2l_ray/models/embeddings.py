"""Embeddings of examples: the position-weighted mean of the output layer's inputs.

They are by-products of a forward pass, taken by a hook on the output layer.

Shapes: B rows in a batch, L positions, H hidden size.

Source:
    Weights that grow with the position are those of SGPT, Muennighoff (2022), arXiv:2202.08904;
    as embeddings for data selection (RDS+), Ivison et al. (2025), arXiv:2503.01807.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from s2l_ray.models.transfer import to_device


def summing(
    num_tokens_B: torch.Tensor, num_before: int, sums: list[torch.Tensor]
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """Return a forward pre-hook for an output layer that sums i h_i over the tokens of each row.

    Position i counts from 1 at the beginning of the row, `num_before` tokens before the first token
    of the pass. h_i is the layer's input at that position, after the model's last norm. Padding on
    the right does not count. The hook does not change the layer's inputs. It adds no sum if the
    layer is not called on (B, L, H).

    Args:
        num_tokens_B: int64 tensor (B,), how many positions of each row are not padding.
        num_before: tokens of each row that an earlier pass has read.
        sums: the list to which the hook appends sum_BH, float32, on the device of the hidden
            states.
    """

    def add_sum(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        hidden_BLH = inputs[0]
        if hidden_BLH.ndim != 3 or len(hidden_BLH) != len(num_tokens_B):
            return
        position_L = torch.arange(hidden_BLH.shape[1], device=hidden_BLH.device)
        read_BL = position_L < to_device(num_tokens_B, hidden_BLH.device)[:, None]
        weight_BL = read_BL * (position_L + 1 + num_before).float()
        # Autocast would round the weights.
        with torch.autocast(hidden_BLH.device.type, enabled=False):
            sums.append(torch.bmm(weight_BL[:, None], hidden_BLH.float()).squeeze(1))

    return add_sum


def mean(sum_BH: torch.Tensor, num_tokens_B: torch.Tensor) -> torch.Tensor:
    """Divide the sums of `summing` over whole rows by 1 + 2 + ... + (tokens of the row)."""
    num_B = to_device(num_tokens_B, sum_BH.device).double()
    total_B1 = (num_B * (num_B + 1) / 2)[:, None]
    return (sum_BH.double() / total_B1).float()


def unit(mean_BH: torch.Tensor) -> torch.Tensor:
    """Return the rows scaled to length one, in float16.

    At that length float16 holds them, however large a model's activations are.
    """
    return F.normalize(mean_BH, dim=1).half()
