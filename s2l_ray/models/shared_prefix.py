"""Prompts that begin alike: a model reads their common tokens once.

Rows of one template share its first tokens. A causal model's keys and values of these tokens do not
depend on what follows. They are computed from one row and used for every batch of the others.

Shapes: N rows, G rows of a group, P shared tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from s2l_ray.models.rotations import regimes

NUM_TOKENS_ALIKE = 16
"""Rows are compared further only if so many first tokens agree."""


@dataclass(frozen=True)
class Group:
    """Rows, ascending, whose prompts begin with the same `num_shared` tokens, which may be 0."""

    row_G: np.ndarray
    num_shared: int


def groups(
    input_ids: Sequence[np.ndarray], num_prompt_N: np.ndarray, *, min_saved: float
) -> list[Group]:
    """Put every row into one group of rows that share tokens; the rest form a group without.

    The last token before the first response is never shared: the prediction from it counts.

    Args:
        input_ids: N integer arrays.
        num_prompt_N: int array (N,), tokens before the first with a loss, at least 1.
        min_saved: a group shares tokens only if its rows together need so many fewer to be read.
    """
    alike: dict[bytes, list[int]] = {}
    for row, (ids, num_prompt) in enumerate(zip(input_ids, num_prompt_N.tolist(), strict=True)):
        key = ids[:NUM_TOKENS_ALIKE].tobytes() if num_prompt > NUM_TOKENS_ALIKE else b""
        alike.setdefault(key, []).append(row)
    alone = alike.pop(b"", [])
    all_groups = []
    for rows in alike.values():
        width = int(num_prompt_N[rows].min()) - 1
        ids_GP = np.stack([input_ids[row][:width] for row in rows])
        differs_P = (ids_GP != ids_GP[0]).any(axis=0)
        num_shared = int(differs_P.argmax()) if differs_P.any() else width
        if (len(rows) - 1) * num_shared >= min_saved:
            all_groups.append(Group(np.array(rows), num_shared))
        else:
            alone += rows
    if alone:
        all_groups.append(Group(np.sort(np.array(alone)), 0))
    return all_groups


@dataclass(frozen=True)
class Past:
    """The tokens before those of a forward pass, as the model has read them.

    Attributes:
        num_tokens: how many they are.
        cache: their keys and values; None if there are no such tokens.
        sum_1H: the sum of `embeddings.summing` over these tokens.
    """

    num_tokens: int = 0
    cache: Cache | None = None
    sum_1H: torch.Tensor | None = None

    @property
    def inputs(self) -> dict[str, Any]:
        """Return the arguments of the model in addition to the tokens."""
        if self.cache is None:
            return {"use_cache": False}
        return {"past_key_values": self.cache, "use_cache": True}


NOTHING_BEFORE = Past()


def read(model: PreTrainedModel, ids_P: torch.Tensor) -> Past:
    """Return keys and values of the tokens, for any number of rows that begin with them.

    Return `NOTHING_BEFORE` for a model whose past is not the keys and values of all its tokens (a
    sliding window, a recurrent state), or whose keys depend on the length of the row.
    """
    if regimes(model.config).depend_on_length:
        return NOTHING_BEFORE
    cache = model(input_ids=ids_P[None], use_cache=True).get("past_key_values")
    layers = cache.layers if type(cache) is DynamicCache else []
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        return NOTHING_BEFORE
    shared = [_SharedLayer(layer.keys, layer.values) for layer in layers]
    return Past(len(ids_P), Cache(layers=shared))


class _SharedLayer(DynamicLayer):
    """Puts one row's keys and values, (1, heads, P, size), before those of each row of a batch."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of the whole rows; the layer stores none of the batch."""
        return _before(self.keys, key_states), _before(self.values, value_states)


def _before(shared: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    return torch.cat([shared.expand(len(own), -1, -1, -1), own], dim=-2)
