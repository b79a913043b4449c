"""Prompts that begin alike: what a model makes of their common tokens is computed once.

Rows of one template share its first tokens, and a causal model's keys and values of these do not
depend on what follows. They are computed from one row, and given to every batch of the others.

Shapes: N rows, G rows of a group, P shared tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

NUM_TOKENS_ALIKE = 16
"""Rows that agree in so many tokens are compared further."""
LENGTH_DEPENDENT_ROTATIONS = ("dynamic", "longrope")
"""Kinds of rotary embedding in which the positions of a long row also change its first keys."""


@dataclass(frozen=True)
class Group:
    """Rows, in the order given, whose prompts begin with the same tokens; perhaps with none."""

    row_G: np.ndarray
    num_shared: int


def groups(
    input_ids: Sequence[np.ndarray], num_prompt_N: np.ndarray, *, min_saved: float
) -> list[Group]:
    """Every row in one group; those of a group share tokens only if that saves `min_saved` tokens.

    The last token of a prompt is never shared: what is predicted from it counts.

    Args:
        input_ids: N integer arrays.
        num_prompt_N: int array (N,), at least 1.
        min_saved: tokens that need not be read because the group shares them, all rows together.
    """
    alike: dict[bytes, list[int]] = {}
    for row, (ids, num_prompt) in enumerate(zip(input_ids, num_prompt_N.tolist(), strict=True)):
        key = ids[:NUM_TOKENS_ALIKE].tobytes() if num_prompt > NUM_TOKENS_ALIKE else b""
        alike.setdefault(key, []).append(row)
    alone = alike.pop(b"", [])
    found = []
    for rows in alike.values():
        width = int(num_prompt_N[rows].min()) - 1
        ids_GP = np.stack([input_ids[row][:width] for row in rows])
        differs_P = (ids_GP != ids_GP[0]).any(axis=0)
        num_shared = int(differs_P.argmax()) if differs_P.any() else width
        if (len(rows) - 1) * num_shared >= min_saved:
            found.append(Group(np.array(rows), num_shared))
        else:
            alone += rows
    if alone:
        found.append(Group(np.sort(np.array(alone)), 0))
    return found


@dataclass(frozen=True)
class Past:
    """What a model knows of the tokens before those that it is given; without a cache, nothing.

    `sum_1H` is what `embeddings.summing` makes of these tokens.
    """

    num_tokens: int = 0
    cache: Cache | None = None
    sum_1H: torch.Tensor | None = None

    @property
    def inputs(self) -> dict[str, Any]:
        """Arguments of the model beside the tokens."""
        if self.cache is None:
            return {"use_cache": False}
        return {"past_key_values": self.cache, "use_cache": True}


NOTHING_BEFORE = Past()


def read(model: PreTrainedModel, ids_P: torch.Tensor) -> Past:
    """Keys and values of the tokens, for any number of rows that begin with them.

    Nothing for a model that remembers its past in another way than by the keys and values of all
    of it (a sliding window, a recurrent state), or whose keys depend on how long a row becomes.
    """
    rotary = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    # Some models have one kind for each kind of layer.
    kinds = [rotary, *(value for value in rotary.values() if isinstance(value, dict))]
    if any(kind.get("rope_type") in LENGTH_DEPENDENT_ROTATIONS for kind in kinds):
        return NOTHING_BEFORE
    cache = model(input_ids=ids_P[None], use_cache=True).get("past_key_values")
    layers = cache.layers if type(cache) is DynamicCache else []
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        return NOTHING_BEFORE
    shared = [_SharedLayer(layer.keys, layer.values) for layer in layers]
    return Past(len(ids_P), Cache(layers=shared))


class _SharedLayer(DynamicLayer):
    """One row's keys and values, (1, heads, P, size), put before those of every row of a batch."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Nothing of the batch is kept."""
        return _before(self.keys, key_states), _before(self.values, value_states)


def _before(shared: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    return torch.cat([shared.expand(len(own), -1, -1, -1), own], dim=-2)
