"""Mean response losses, and on request error norms and embeddings, under one causal language model.

Logits are computed for response positions only. Batches are filled to a number of tokens with rows
of similar length, padded on the right, where a causal model cannot see the padding. Tokens with
which many prompts begin are read once; on a GPU the layers may run as compiled code instead.

Shapes: N examples, B rows of a batch, L positions, M response positions of a batch, H hidden size,
P tokens that prompts share, C measures: the loss, and perhaps the error norm.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from s2l_ray.errors import ModelError, one_line
from s2l_ray.models import embeddings, shared_prefix
from s2l_ray.models.batch_plan import max_logit_rows, plan_batches
from s2l_ray.models.dimensions import check_rows_fit
from s2l_ray.models.losses import row_means
from s2l_ray.models.output_layer import (
    before_output_layer,
    ends_in_a_linear_layer,
    losses_by_tiles,
    losses_of_logits,
)
from s2l_ray.models.rotations import forget_lengths, regimes
from s2l_ray.models.shared_prefix import NOTHING_BEFORE, Past
from s2l_ray.models.torch_compile import (
    CLOSE,
    UNCOMPILED,
    compile_layers,
    is_out_of_memory,
    trials,
)
from s2l_ray.models.transfer import to_device

LOGITS_IN_CHUNKS = (
    "the model's logits are more than its output layer's: batches are cut to hold them"
)
PROMPTS_READ_WHOLE = (
    "the model's past is more than keys and values: shared prompts are read each time"
)
PROMPTS_NOT_SHARED = "to read shared prompts only once failed: they are read each time"


@dataclass(frozen=True)
class Scores:
    """Results of N examples, in the order in which the examples were given.

    Attributes:
        loss_N: float32 (N,), mean cross-entropy of an example's response tokens, end-of-sequence
            included, in nats per token; not finite only where the logits are not.
        error_norm_N: float32 (N,), mean of `losses.error_norms` over an example's response tokens
            (EL2N); None unless the scorer has `error_norms`.
        embedding_NH: tensor (N, H) on the scorer's device, the result of the scorer's `embed`; None
            unless the scorer has one.
        notes: why scoring was slower than it can be: `LOGITS_IN_CHUNKS`, `UNCOMPILED` with the
            reason, and once for each group of prompts `PROMPTS_READ_WHOLE`, or `PROMPTS_NOT_SHARED`
            with the reason.
    """

    loss_N: np.ndarray
    error_norm_N: np.ndarray | None = None
    embedding_NH: torch.Tensor | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Scorer:
    """A model, how it computes, and what is measured of each example.

    Attributes:
        model: a causal LM; `score` moves it to `device` and leaves it there.
        dtype: the model's own, or bfloat16 to run a float32 model under autocast. Losses are
            computed from its logits in float32 either way.
        tokens_per_batch: tokens of one forward pass, padding included.
        compiled: run the model's layers as code that is compiled for them in a first call, which
            takes some ten seconds, and read every prompt whole: on a GPU twice as fast.
        error_norms: measure error norms as well.
        embed: makes the embeddings of a batch out of mean_BH, float32 on `device`: the
            position-weighted means of the last hidden states over all tokens of each example. The
            last token, which no loss needs, is read for it. See `check_embeds`.
    """

    model: PreTrainedModel
    dtype: torch.dtype
    device: torch.device
    tokens_per_batch: int
    compiled: bool = False
    error_norms: bool = False
    embed: Callable[[torch.Tensor], torch.Tensor] | None = None

    def score(
        self,
        input_ids: Sequence[np.ndarray],
        learned: Sequence[np.ndarray],
        *,
        on_batch: Callable[[int], None] = lambda _num_rows: None,
    ) -> Scores:
        """Measure every example.

        The results equal, up to rounding, those of running the model on one example at a time with
        all its logits: the batch of an example does not matter, and dropout is off.

        Args:
            input_ids: N integer arrays, all tokens of an example.
            learned: N bool arrays, which of them are response tokens. An example's first token,
                which nothing predicts, has no loss in any case.
            on_batch: called with the number of examples of every batch that was handed to the
                model.

        Raises:
            ModelError: the model has no position or no embedding for some token.
        """
        examples = _examples(self, input_ids, learned)
        with inference(self.model, dtype=self.dtype, device=self.device):
            scoring = _Pass(self, examples)
            scoring.run(on_batch)
        loss_N, *error_norms = scoring.measure_CN.cpu().numpy()
        return Scores(
            loss_N,
            error_norm_N=error_norms[0] if self.error_norms else None,
            embedding_NH=None if self.embed is None else scoring.embedding_NH,
            notes=tuple(scoring.notes),
        )


def check_embeds(model: PreTrainedModel) -> None:
    """Refuse a model whose output layer is not given the hidden states of all positions.

    Raises:
        ModelError: `Scorer` can compute no embeddings with this model.
    """
    dtype, device = model.dtype, model.device
    with inference(model, dtype=dtype, device=device), _summed(model, np.array([2, 2])) as sums:
        model(input_ids=torch.zeros(2, 2, dtype=torch.int64, device=device), use_cache=False)
    if not sums:
        raise ModelError(
            f"{type(model).__name__}: its output layer is not given the hidden states of all "
            "positions, so examples have no embeddings. Set trajectories.embeddings: false, or "
            "take another reference."
        )


def after_prompts(
    input_ids: Sequence[np.ndarray], num_prompt_N: Sequence[int] | np.ndarray
) -> list[np.ndarray]:
    """Return for each row, bool, that all tokens after so many are the response's."""
    return [
        np.arange(len(ids)) >= num_prompt
        for ids, num_prompt in zip(input_ids, num_prompt_N, strict=True)
    ]


@dataclass(frozen=True)
class _Examples:
    """Tokens of N examples, and what follows from the positions of their response tokens.

    Attributes:
        input_ids: N integer arrays.
        target: N int64 arrays, ascending positions of the tokens with a loss, at least 1.
        num_tokens_N: int64 (N,), all tokens of each example.
        num_read_N: int64 (N,), how many of them the model reads.
    """

    input_ids: Sequence[np.ndarray]
    target: Sequence[np.ndarray]
    num_tokens_N: np.ndarray
    num_read_N: np.ndarray

    @property
    def num_prompt_N(self) -> np.ndarray:
        """Return how many tokens come before the first one with a loss, int64 (N,)."""
        return np.array([place[0] for place in self.target], dtype=np.int64)

    @property
    def num_targets_N(self) -> np.ndarray:
        return np.array([len(place) for place in self.target], dtype=np.int64)


def _examples(
    scorer: Scorer, input_ids: Sequence[np.ndarray], learned: Sequence[np.ndarray]
) -> _Examples:
    num_tokens_N = np.array([len(ids) for ids in input_ids], dtype=np.int64)
    num_ids = 1 + max((int(ids.max()) for ids in input_ids), default=-1)
    check_rows_fit(scorer.model, num_tokens=int(num_tokens_N.max(initial=0)), num_ids=num_ids)
    target = [np.flatnonzero(is_learned[1:]) + 1 for is_learned in learned]
    assert all(map(len, target)), "every example needs a response token that something predicts"
    # The last token with a loss is predicted; neither it nor what follows need be read.
    num_read_N = np.array([place[-1] for place in target], dtype=np.int64)
    whole = scorer.embed is not None or regimes(scorer.model.config).depend_on_length
    return _Examples(input_ids, target, num_tokens_N, num_tokens_N if whole else num_read_N)


class _Pass:
    """One pass of a model over N examples.

    Results stay on the device until the end: the program does not wait for a batch.
    """

    def __init__(self, scorer: Scorer, examples: _Examples) -> None:
        self.scorer, self.examples = scorer, examples
        self.notes: list[str] = []
        self._vocab_size = scorer.model.config.get_text_config().vocab_size
        in_tiles = scorer.dtype == scorer.model.dtype and ends_in_a_linear_layer(scorer.model)
        self._measure = partial(
            losses_by_tiles if in_tiles else losses_of_logits, norms=scorer.error_norms
        )
        self._max_logit_rows = None if in_tiles else max_logit_rows(self._vocab_size)
        if not in_tiles:
            self.notes.append(LOGITS_IN_CHUNKS)
        self._regimes = regimes(scorer.model.config)
        shape = 1 + scorer.error_norms, len(examples.input_ids)
        self.measure_CN = torch.zeros(shape, dtype=torch.float32, device=scorer.device)
        self.embedding_NH = torch.empty(0, device=scorer.device)

    def run(self, on_batch: Callable[[int], None]) -> None:
        """Fill `measure_CN`, `embedding_NH` and `notes`."""
        scorer, examples = self.scorer, self.examples
        if scorer.compiled:
            reason = compile_layers(scorer.model, self._trial, close=CLOSE[scorer.dtype])
            if reason is not None:
                self.notes.append(f"{UNCOMPILED} ({reason})")
        min_saved = math.inf if scorer.compiled else scorer.tokens_per_batch
        groups = shared_prefix.groups(
            examples.input_ids, examples.num_prompt_N, min_saved=min_saved
        )
        measure = self._means if scorer.embed is None else self._means_and_embeddings
        for group in groups:
            past = self._past(group)
            for row_B in self._batches(group, past):
                self.measure_CN[:, to_device(row_B, scorer.device)] = measure(row_B, past)
                on_batch(len(row_B))

    def _trial(self) -> torch.Tensor:
        """Return the measures of tokens that are the same for every worker."""
        scorer, measures = self.scorer, []
        for num_rows, num_tokens in trials(scorer.model.config.get_text_config()):
            count = torch.arange(num_rows * num_tokens) % self._vocab_size
            input_ids_BL = count.view(num_rows, num_tokens).to(scorer.device)
            mask_BL = torch.ones(num_rows, num_tokens, dtype=torch.bool)
            target_M = count.to(scorer.device)
            measures.append(
                self._measure(scorer.model, input_ids_BL, mask_BL, target_M, NOTHING_BEFORE)
            )
        return torch.cat(measures, dim=1)

    def _past(self, group: shared_prefix.Group) -> Past:
        """Read the tokens that the group shares.

        If that fails, or changes the loss of the group's first row, nothing is shared, and a note
        says so.
        """
        if not group.num_shared:
            return NOTHING_BEFORE
        close, first_B = CLOSE[self.scorer.dtype], group.row_G[:1]
        expected_CB = self._means(first_B, NOTHING_BEFORE)
        note = PROMPTS_READ_WHOLE
        try:
            past = self._read(self.examples.input_ids[first_B[0]][: group.num_shared])
            if past.num_tokens:
                found_CB = self._means(first_B, past)
                if torch.allclose(found_CB, expected_CB, rtol=close, atol=close):
                    return past
        except Exception as error:  # a past of a kind that we do not know
            if is_out_of_memory(error):
                raise
            note = f"{PROMPTS_NOT_SHARED} ({type(error).__name__}: {one_line(error)[:150]})"
        self.notes.append(note)
        return NOTHING_BEFORE

    def _read(self, ids_P: np.ndarray) -> Past:
        """Return the past of these tokens, with the sum of their hidden states."""
        model = self.scorer.model
        with _summed(model, np.array([len(ids_P)])) as sums:
            ids = torch.from_numpy(ids_P.astype(np.int64)).to(model.device)
            past = shared_prefix.read(model, ids)
        return replace(past, sum_1H=sums[0]) if past.num_tokens and sums else past

    def _batches(self, group: shared_prefix.Group, past: Past) -> list[np.ndarray]:
        row_G, examples = group.row_G, self.examples
        num_tokens_G = examples.num_tokens_N[row_G]
        # A token that is predicted and not read counts as well.
        num_used_G = np.minimum(examples.num_read_N[row_G] + 1, num_tokens_G)
        batches = plan_batches(
            num_used_G - past.num_tokens,
            examples.num_targets_N[row_G],
            tokens_per_batch=self.scorer.tokens_per_batch,
            max_logit_rows=self._max_logit_rows,
            regime_N=self._regimes.of(num_tokens_G),
        )
        return [row_G[index_B] for index_B in batches]

    def _means(self, row_B: np.ndarray, past: Past) -> torch.Tensor:
        """Return the measures, averaged over each row's response tokens: float32 (C, B)."""
        examples, before = self.examples, past.num_tokens
        end_B = examples.num_read_N[row_B]
        input_ids_BL = np.zeros((len(row_B), end_B.max() - before), dtype=np.int64)
        mask_BL = np.zeros(input_ids_BL.shape, dtype=bool)
        for ids_L, mask_L, row, end in zip(input_ids_BL, mask_BL, row_B, end_B, strict=True):
            ids_L[: end - before] = examples.input_ids[row][before:end]
            mask_L[examples.target[row] - before - 1] = True
        target_M = np.concatenate([examples.input_ids[row][examples.target[row]] for row in row_B])

        forget_lengths(self.scorer.model)
        device = self.scorer.device
        measure_CM = self._measure(
            self.scorer.model,
            to_device(input_ids_BL, device),
            torch.from_numpy(mask_BL),
            to_device(target_M.astype(np.int64), device),
            past,
        )
        return row_means(measure_CM, to_device(mask_BL.sum(axis=1), device))

    def _means_and_embeddings(self, row_B: np.ndarray, past: Past) -> torch.Tensor:
        """Return `_means`, and store the rows' embeddings."""
        assert self.scorer.embed is not None
        num_tokens_B = self.examples.num_tokens_N[row_B]
        with _summed(self.scorer.model, num_tokens_B - past.num_tokens, past) as sums:
            mean_CB = self._means(row_B, past)
        assert sums, "a model that `check_embeds` refuses"
        sum_BH = sums[0] if past.sum_1H is None else past.sum_1H + sums[0]
        embedding_BH = self.scorer.embed(embeddings.mean(sum_BH, torch.from_numpy(num_tokens_B)))
        if not len(self.embedding_NH):
            shape = len(self.examples.input_ids), *embedding_BH.shape[1:]
            self.embedding_NH = embedding_BH.new_zeros(shape)
        self.embedding_NH[to_device(row_B, embedding_BH.device)] = embedding_BH
        return mean_CB


@contextmanager
def inference(
    model: PreTrainedModel, *, dtype: torch.dtype, device: torch.device
) -> Iterator[None]:
    """Move `model` to `device`; inside the block it has no dropout and computes in `dtype`.

    No gradients are recorded there. A float32 model computes in bfloat16 by autocast. At the end
    the model is in the training mode that it had before.
    """
    assert dtype in (model.dtype, torch.bfloat16), f"{model.dtype} weights cannot run in {dtype}"
    was_training = model.training
    model.eval().to(device)  # type: ignore[arg-type]
    autocast = torch.autocast(device.type, dtype, enabled=dtype != model.dtype)
    try:
        with torch.inference_mode(), autocast:
            yield
    finally:
        model.train(was_training)


@contextmanager
def _summed(
    model: nn.Module, num_tokens_B: np.ndarray, past: Past = NOTHING_BEFORE
) -> Iterator[list[torch.Tensor]]:
    """Collect, in the block, the sums of `embeddings.summing`, one for each forward pass.

    Every pass has to be over such rows, which follow `past`.
    """
    sums: list[torch.Tensor] = []
    hook = embeddings.summing(torch.from_numpy(num_tokens_B), past.num_tokens, sums)
    with before_output_layer(model, hook):
        yield sums
