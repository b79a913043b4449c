"""Rotary embeddings whose angles depend on the length of the longest row in a batch.

Most rotations turn a token by its position alone. Two kinds also look at the length: `longrope`
has one set of frequencies for rows up to a limit and another beyond it, and `dynamic` computes them
from the exact length of every longer row. So that the loss of a row does not depend on its batch,
rows of different regimes never share one, and every row is read to its end.

Shapes: N rows.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Regimes:
    """The lengths between which a model's rotations change.

    Attributes:
        two_sets_after: tokens of the longest row with the first of two sets of frequencies.
        each_length_after: tokens of the longest row without frequencies of its own.
    """

    two_sets_after: float = math.inf
    each_length_after: float = math.inf

    @property
    def depend_on_length(self) -> bool:
        """Return True if there is any limit."""
        return min(self.two_sets_after, self.each_length_after) < math.inf

    def of(self, num_tokens_N: np.ndarray) -> np.ndarray:
        """Return a number for each row, float64 (N,), that grows with its length.

        Rows with the same number are rotated alike.
        """
        own_N = np.where(num_tokens_N > self.each_length_after, num_tokens_N, 0.0)
        return own_N + (num_tokens_N > self.two_sets_after)


ANY_LENGTH = Regimes()
"""Rotations that depend on no length."""


def regimes(config: Any) -> Regimes:
    """Return the regimes of a model with this configuration of transformers."""
    text = config.get_text_config()
    rotary = getattr(text, "rope_parameters", None) or {}
    # Some models have one kind for each kind of layer.
    kinds = [rotary, *(value for value in rotary.values() if isinstance(value, dict))]
    two_sets, each_length = [math.inf], [math.inf]
    for kind in kinds:
        name = kind.get("rope_type") or ""
        if name == "longrope":
            limit = kind.get("original_max_position_embeddings")
            two_sets.append(limit or text.max_position_embeddings)
        elif "dynamic" in name:
            each_length.append(text.max_position_embeddings)
    return Regimes(min(two_sets), min(each_length))


def forget_lengths(model: nn.Module) -> None:
    """Let `dynamic` rotations forget the longest row that they have met.

    They keep its frequencies for every row that follows and is not shorter than the limit. A single
    token resets them. Other rotations, and models of other kinds, are left alone.
    """
    config = getattr(model, "config", None)
    if config is None or regimes(config).each_length_after == math.inf:
        return
    for module in model.modules():
        if not hasattr(module, "max_seq_len_cached"):
            continue
        device = next(module.buffers()).device
        token, position = torch.zeros(1, 1, 1, device=device), torch.zeros(1, 1, device=device)
        kinds = module.rope_type if isinstance(module.rope_type, dict) else {None: None}
        for layer_type in kinds:
            # Not a call: hooks on modules (DeepSpeed's) count those.
            more = {} if layer_type is None else {"layer_type": layer_type}
            module.forward(token, position.long(), **more)
