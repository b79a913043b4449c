"""Embeddings of examples: the position-weighted mean of what the output layer is given.

They are by-products of a forward pass, watched in a hook on the output layer.

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
    num_tokens_B: torch.Tensor, num_before: int, found: list[torch.Tensor]
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """A hook before an output layer that adds to `found` the sum over a row's tokens of i h_i.

    Position i counts from 1 at the row's beginning, which lies `num_before` tokens before what is
    given; h_i is what the layer is given there, after the model's last norm. Padding on the right
    is left out, and the layer's inputs stay as they are. A layer that is not called on (B, L, H)
    adds nothing.

    Args:
        num_tokens_B: int64 tensor (B,), how many positions of each row are no padding.
        found: receives sum_BH, float32, on the device of the hidden states.
    """

    def keep(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        hidden_BLH = inputs[0]
        if hidden_BLH.ndim != 3 or len(hidden_BLH) != len(num_tokens_B):
            return
        place_L = torch.arange(hidden_BLH.shape[1], device=hidden_BLH.device)
        read_BL = place_L < to_device(num_tokens_B, hidden_BLH.device)[:, None]
        weight_BL = read_BL * (place_L + 1 + num_before).float()
        # Autocast would round the weights.
        with torch.autocast(hidden_BLH.device.type, enabled=False):
            found.append(torch.bmm(weight_BL[:, None], hidden_BLH.float()).squeeze(1))

    return keep


def mean(sum_BH: torch.Tensor, num_tokens_B: torch.Tensor) -> torch.Tensor:
    """The sums of `summing` over whole rows, divided by 1 + 2 + ... + (tokens of the row)."""
    num_B = to_device(num_tokens_B, sum_BH.device).double()
    total_B1 = (num_B * (num_B + 1) / 2)[:, None]
    return (sum_BH.double() / total_B1).float()


def unit(mean_BH: torch.Tensor) -> torch.Tensor:
    """Scaled to length one, float16: of that length they fit, whatever a model's activations."""
    return F.normalize(mean_BH, dim=1).half()
