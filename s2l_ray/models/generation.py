"""Greedy responses to many prompts, in batches of similar length.

Rows are padded on the left, so that every row's next token stands in the same column.

Shapes: N prompts, B rows in a batch, L positions.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from s2l_ray.errors import ModelError, first
from s2l_ray.models.scoring import inference


@dataclass(frozen=True)
class Generator:
    """A model and its tokenizer, how it computes, and the limits of a response and of a batch.

    Attributes:
        dtype: as for `scoring.Scorer`.
        max_new_tokens: tokens of a response.
        rows_per_batch: prompts that are answered together.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype
    device: torch.device
    max_new_tokens: int
    rows_per_batch: int

    def generate(
        self,
        prompts: Sequence[list[int]],
        *,
        on_batch: Callable[[int], None] = lambda _num_prompts: None,
    ) -> list[str]:
        """Return the greedy response to every prompt, in the order of `prompts`.

        A response ends before an end-of-sequence token (the tokenizer's, or one of the model's
        own), after `max_new_tokens`, or where the model has no more positions. Settings for
        generation from the model's repository (sampling, penalties) are not used.

        Args:
            prompts: N token lists, none empty.
            on_batch: called with the number of prompts of every finished batch.

        Returns:
            N texts without special tokens.

        Raises:
            ModelError: a prompt leaves the model no position to answer in.
        """
        num_tokens_N = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        assert (num_tokens_N > 0).all(), "a prompt needs a token"
        num_positions = _num_positions(self.model)
        _refuse_too_long(num_tokens_N, num_positions)
        response: dict[int, str] = {}
        order_N = np.argsort(num_tokens_N, kind="stable")
        with (
            inference(self.model, dtype=self.dtype, device=self.device),
            _greedy(self.model, self.tokenizer) as ends,
        ):
            for start in range(0, len(prompts), self.rows_per_batch):
                row_B = order_N[start : start + self.rows_per_batch].tolist()
                room = int(min(self.max_new_tokens, num_positions - num_tokens_N[row_B].max()))
                new_tokens = self._new_tokens([prompts[row] for row in row_B], room)
                for row, ids in zip(row_B, new_tokens, strict=True):
                    response[row] = _text(ids, ends, self.tokenizer)
                on_batch(len(row_B))
        return [response[row] for row in range(len(prompts))]

    def _new_tokens(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
        batch = _left_padded(prompts, self.device)
        output_BL = self.model.generate(  # type: ignore[operator]
            **batch, max_new_tokens=max_new_tokens
        )
        new_tokens: list[list[int]] = output_BL[:, batch["input_ids"].shape[1] :].tolist()
        return new_tokens


def _num_positions(model: PreTrainedModel) -> int:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return sys.maxsize if limit is None else limit


def _refuse_too_long(num_tokens_N: np.ndarray, num_positions: int) -> None:
    long_N = np.flatnonzero(num_tokens_N >= num_positions)
    if len(long_N):
        raise ModelError(
            f"generation: {len(long_N):,} of {len(num_tokens_N):,} prompts fill all "
            f"{num_positions:,} positions of the model (first, from 0: {first(long_N.tolist())}). "
            f"Shorten them, or leave them out of the evaluation set."
        )


@contextmanager
def _greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[frozenset[int]]:
    """Let `model` generate greedily inside the block, and yield the tokens at which it stops."""
    own = model.generation_config
    own_ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    ends = frozenset({tokenizer.eos_token_id, *own_ends} - {None})
    # A setting that is not given to `generate` would be taken from the model's configuration.
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.eos_token_id,
    )
    try:
        yield ends
    finally:
        model.generation_config = own


def _left_padded(prompts: Sequence[list[int]], device: torch.device) -> dict[str, torch.Tensor]:
    length = max(len(prompt) for prompt in prompts)
    input_ids_BL = torch.zeros(len(prompts), length, dtype=torch.int64)
    attention_mask_BL = torch.zeros_like(input_ids_BL)
    for row, prompt in enumerate(prompts):
        input_ids_BL[row, length - len(prompt) :] = torch.tensor(prompt)
        attention_mask_BL[row, length - len(prompt) :] = 1
    return {"input_ids": input_ids_BL.to(device), "attention_mask": attention_mask_BL.to(device)}


def _text(ids: list[int], ends: frozenset[int], tokenizer: PreTrainedTokenizerBase) -> str:
    end = next((index for index, token in enumerate(ids) if token in ends), len(ids))
    return str(
        tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )
