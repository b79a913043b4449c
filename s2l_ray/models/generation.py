"""Greedy responses to many prompts, in batches of similar length.

Rows are padded on the left, so that every row's next token stands in the same column. Some models
count the padding as positions or read it as tokens: their batches have prompts of one length, and
no padding; a few have to be asked one prompt after the other. A response does not depend on the
batch of its prompt, but for rounding.

Shapes: N prompts, B rows in a batch, L positions, V tokens of the vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from s2l_ray.errors import ModelError, first
from s2l_ray.models.dimensions import num_positions
from s2l_ray.models.rotations import regimes
from s2l_ray.models.scoring import inference
from s2l_ray.models.torch_compile import CLOSE

STEPS_OF_TRIAL = 3
"""New tokens in which a padded prompt has to be continued as the prompt alone is."""

TOKENS_OF_TRIAL = 4
"""Tokens of a prompt that is tried beside another of the same length."""


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
        positions = num_positions(self.model)
        _refuse_too_long(num_tokens_N, positions)
        response: dict[int, str] = {}
        with (
            inference(self.model, dtype=self.dtype, device=self.device),
            _greedy(self.model, self.tokenizer) as ends,
        ):
            longest, num_rows = self._batching(prompts, positions)
            for row_B in plan_batches(num_tokens_N, num_rows, longest_padded=longest):
                room = int(min(self.max_new_tokens, positions - num_tokens_N[row_B].max()))
                new_tokens = self._new_tokens([prompts[row] for row in row_B], room)
                for row, ids in zip(row_B.tolist(), new_tokens, strict=True):
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

    def _batching(self, prompts: Sequence[list[int]], positions: int) -> tuple[int, int]:
        """Return the longest prompt that may be beside shorter ones, and the rows of a batch.

        The shortest prompt beside the longest has to be continued as it is alone. If it is not,
        batches have prompts of one length; if even these disturb each other, a single prompt.
        """
        steps = min(STEPS_OF_TRIAL, self.max_new_tokens)
        room = positions - steps
        by_length = sorted((prompt for prompt in prompts if len(prompt) <= room), key=len)
        if self.rows_per_batch == 1 or not by_length:
            return 0, 1
        shortest, longest = by_length[0], by_length[-1]
        pads = len(shortest) < len(longest) and not regimes(self.model.config).depend_on_length
        if pads and self._is_alike(shortest, longest, steps):
            return positions - self.max_new_tokens, self.rows_per_batch
        start = longest[:TOKENS_OF_TRIAL]
        is_alike = self._is_alike(start, start[::-1], steps)
        return 0, self.rows_per_batch if is_alike else 1

    def _is_alike(self, prompt: list[int], other: list[int], steps: int) -> bool:
        """Tell whether `prompt` is continued beside `other` as it is alone, for `steps` tokens."""
        try:
            alone_SV = self._logits([prompt], steps)
            beside_SV = self._logits([prompt, other], steps)[: len(alone_SV)]
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError):
            return False  # some models cannot be given a batch, or the mask of a padded one
        close = CLOSE[self.dtype] * float(alone_SV.abs().max())
        return alone_SV.shape == beside_SV.shape and torch.allclose(
            alone_SV, beside_SV, rtol=0.0, atol=close
        )

    def _logits(self, prompts: Sequence[list[int]], steps: int) -> torch.Tensor:
        """Return the first prompt's logits of the next `steps` tokens, float32 (S, V)."""
        output = self.model.generate(  # type: ignore[operator]
            **_left_padded(prompts, self.device),
            max_new_tokens=steps,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return torch.stack([logits_BV[0].float() for logits_BV in output.logits])


def plan_batches(
    num_tokens_N: np.ndarray, rows_per_batch: int, *, longest_padded: int
) -> list[np.ndarray]:
    """Put prompts of similar length together, shortest first, ties in the order given.

    Args:
        num_tokens_N: int array (N,).
        rows_per_batch: most prompts of a batch.
        longest_padded: prompts of at most so many tokens may be beside shorter ones; a longer one
            is in a batch with others of its own length.

    Returns:
        int64 arrays of row numbers; every row is in exactly one.
    """
    order_N = np.argsort(num_tokens_N, kind="stable")
    num_padded = int((num_tokens_N <= longest_padded).sum())
    length_N = num_tokens_N[order_N]
    # Where a group of equal lengths begins, among prompts that are not padded.
    edges = num_padded + 1 + np.flatnonzero(np.diff(length_N[num_padded:]))
    groups = np.split(order_N, [num_padded, *edges.tolist()])
    return [
        group[start : start + rows_per_batch]
        for group in groups
        for start in range(0, len(group), rows_per_batch)
    ]


def _refuse_too_long(num_tokens_N: np.ndarray, positions: int) -> None:
    long_N = np.flatnonzero(num_tokens_N >= positions)
    if len(long_N):
        raise ModelError(
            f"generation: {len(long_N):,} of {len(num_tokens_N):,} prompts fill all "
            f"{positions:,} positions of the model (first, from 0: {first(long_N.tolist())}). "
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
