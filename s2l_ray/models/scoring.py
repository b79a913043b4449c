"""Mean response loss, and perhaps error norm, of every example under one causal language model.

Logits are computed for response positions only, and batches are filled to a number of tokens with
rows of similar length. Rows are padded on the right, where a causal model cannot see the padding.
The tokens with which many prompts begin are read once, or, on a GPU, layers run as compiled code.

Shapes: N examples, B rows in a batch, L positions, M response positions of a batch, H hidden size,
V vocabulary, P tokens that prompts share, C what is measured: the loss, and perhaps the error norm.
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

from s2l_ray.errors import ModelError
from s2l_ray.models import embeddings, shared_prefix
from s2l_ray.models.dimensions import check_reach
from s2l_ray.models.output_layer import (
    before_output_layer,
    ends_in_a_linear_layer,
    losses_by_tiles,
    losses_of_logits,
)
from s2l_ray.models.shared_prefix import NOTHING_BEFORE, Past
from s2l_ray.models.torch_compile import CLOSE, UNCOMPILED, compile_layers, trials
from s2l_ray.models.transfer import sent

LOGITS_IN_CHUNKS = (
    "the model's logits are more than its output layer's: batches are cut to hold them"
)
PROMPTS_READ_WHOLE = (
    "the model's past is more than keys and values: shared prompts are read each time"
)
OnRows = Callable[[np.ndarray, torch.Tensor], None]
"""Called with the rows of a batch, int64 (B,), and what was found of each, a tensor (B, ...)."""


def score(
    model: PreTrainedModel,
    input_ids: Sequence[np.ndarray],
    num_prompt_tokens_N: np.ndarray,
    *,
    tokens_per_batch: int,
    dtype: torch.dtype,
    device: torch.device,
    compiled: bool = False,
    on_batch: Callable[[int], None] = lambda _num_rows: None,
    on_slower_way: Callable[[str], None] = lambda _way: None,
    on_embeddings: OnRows | None = None,
    on_norms: OnRows | None = None,
) -> np.ndarray:
    """Mean cross-entropy of every example's response tokens, end-of-sequence included.

    Equal to running the model on one example at a time with all its logits, up to rounding: the
    batch that an example falls into does not matter, and dropout is off.

    Args:
        model: a causal LM; it is moved to `device` and left there.
        input_ids: N integer arrays, an example's prompt and response tokens.
        num_prompt_tokens_N: int array (N,), how many of them are the prompt's.
        tokens_per_batch: tokens of one forward pass, padding included.
        dtype: the model's own, or bfloat16 to run a float32 model under autocast. Losses are
            computed from its logits in float32 either way.
        compiled: run the model's layers as code that is compiled for them in a first call, which
            takes some ten seconds, and read every prompt whole: on a GPU twice as fast.
        on_batch: called with the number of examples of every batch that was handed to the model.
        on_slower_way: called with `LOGITS_IN_CHUNKS`, `PROMPTS_READ_WHOLE` or `UNCOMPILED` and the
            reason where that is how this model has to be scored.
        on_embeddings: called with row_B and mean_BH, float32 on `device`, of every batch: the
            position-weighted means of the last hidden states over all tokens of these examples.
            Their last tokens, which no loss needs, are read for it. See `check_embeds`.
        on_norms: called with row_B and norm_B, float32 on `device`, of every batch: the mean over
            an example's response tokens of `models.losses.error_norms` (EL2N).

    Returns:
        loss_N, float32 (N,), nats per response token; not finite only where the logits are not.
    """
    examples = _examples(model, input_ids, num_prompt_tokens_N)
    loss_N = torch.zeros(len(input_ids), dtype=torch.float32, device=device)
    with inference(model, dtype=dtype, device=device):
        norms = on_norms is not None
        measures, most_logits = _way(model, dtype, device, compiled, on_slower_way, norms)
        # An example's last token is predicted; nothing is predicted from it.
        num_unread = 1 if on_embeddings is None else 0
        means = partial(_means, model, examples, num_unread, measures, device)
        scored = means
        if on_embeddings is not None:
            scored = partial(_embedded, model, examples, means, on_embeddings)
        min_saved = math.inf if compiled else tokens_per_batch
        for group, past in _groups(model, examples, min_saved, means, CLOSE[dtype], on_slower_way):
            for row_B in _batches(examples, group, past, tokens_per_batch, most_logits):
                mean_CB = scored(row_B, past)
                loss_N[sent(row_B, device)] = mean_CB[0]
                if on_norms is not None:
                    on_norms(row_B, mean_CB[1])
                on_batch(len(row_B))
    return loss_N.cpu().numpy()


def check_embeds(model: PreTrainedModel) -> None:
    """Nothing, if the output layer is given the hidden states of all positions.

    Raises:
        ModelError: it is not, so that `score` has no embeddings.
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


@dataclass(frozen=True)
class _Examples:
    """What is scored: tokens, their number, and for how many of them there is no loss."""

    input_ids: Sequence[np.ndarray]
    num_tokens_N: np.ndarray
    num_masked_N: np.ndarray


def _examples(
    model: PreTrainedModel, input_ids: Sequence[np.ndarray], num_prompt_tokens_N: np.ndarray
) -> _Examples:
    num_tokens_N = np.array([len(ids) for ids in input_ids], dtype=np.int64)
    num_ids = 1 + max((int(ids.max()) for ids in input_ids), default=-1)
    check_reach(model, num_tokens=int(num_tokens_N.max(initial=0)), num_ids=num_ids)
    # Nothing predicts an example's first token, prompt or not.
    num_masked_N = np.maximum(np.asarray(num_prompt_tokens_N, dtype=np.int64), 1)
    assert (num_masked_N < num_tokens_N).all(), "every example needs a response token"
    return _Examples(input_ids, num_tokens_N, num_masked_N)


def _batches(
    examples: _Examples,
    group: shared_prefix.Group,
    past: Past,
    tokens_per_batch: int,
    max_logit_rows: int | None,
) -> list[np.ndarray]:
    row_G = group.row_G
    places = plan_batches(
        examples.num_tokens_N[row_G] - past.num_tokens,
        (examples.num_tokens_N - examples.num_masked_N)[row_G],
        tokens_per_batch=tokens_per_batch,
        max_logit_rows=max_logit_rows,
    )
    return [row_G[place_B] for place_B in places]


def _way(
    model: PreTrainedModel,
    dtype: torch.dtype,
    device: torch.device,
    compiled: bool,
    on_slower_way: Callable[[str], None],
    norms: bool,
) -> tuple[Callable[..., torch.Tensor], int | None]:
    """How a batch is measured, and of how many positions it may hold the logits."""
    in_tiles = dtype == model.dtype and ends_in_a_linear_layer(model)
    measures = partial(losses_by_tiles if in_tiles else losses_of_logits, norms=norms)
    if not in_tiles:
        on_slower_way(LOGITS_IN_CHUNKS)
    vocab_size = model.config.get_text_config().vocab_size
    if compiled:
        reason = compile_layers(
            model, partial(_trial, model, measures, vocab_size, device), close=CLOSE[dtype]
        )
        if reason is not None:
            on_slower_way(f"{UNCOMPILED} ({reason})")
    return measures, None if in_tiles else max_logit_rows(vocab_size)


def _trial(
    model: PreTrainedModel,
    measures: Callable[..., torch.Tensor],
    vocab_size: int,
    device: torch.device,
) -> torch.Tensor:
    """What is measured of tokens that are the same for every worker."""
    found = []
    for num_rows, num_tokens in trials(model.config.get_text_config()):
        count = torch.arange(num_rows * num_tokens) % vocab_size
        input_ids_BL = count.view(num_rows, num_tokens).to(device)
        mask_BL = torch.ones(num_rows, num_tokens, dtype=torch.bool)
        found.append(measures(model, input_ids_BL, mask_BL, count.to(device), NOTHING_BEFORE))
    return torch.cat(found, dim=1)


def _groups(
    model: PreTrainedModel,
    examples: _Examples,
    min_saved: float,
    means: Callable[[np.ndarray, Past], torch.Tensor],
    close: float,
    on_slower_way: Callable[[str], None],
) -> Iterator[tuple[shared_prefix.Group, Past]]:
    """Groups of rows that begin alike, each with what it begins with, read once."""
    input_ids = examples.input_ids
    for group in shared_prefix.groups(input_ids, examples.num_masked_N, min_saved=min_saved):
        past = _past(model, group, input_ids, means, close)
        if past.num_tokens < group.num_shared:
            on_slower_way(PROMPTS_READ_WHOLE)
        yield group, past


def _past(
    model: PreTrainedModel,
    group: shared_prefix.Group,
    input_ids: Sequence[np.ndarray],
    means: Callable[[np.ndarray, Past], torch.Tensor],
    close: float,
) -> Past:
    """What the group's rows begin with, read once; nothing if that changed the first row's loss."""
    if not group.num_shared:
        return NOTHING_BEFORE
    first_B = group.row_G[:1]
    ids_P = input_ids[first_B[0]][: group.num_shared].astype(np.int64)
    with _summed(model, np.array([len(ids_P)])) as sums:
        past = shared_prefix.read(model, torch.from_numpy(ids_P).to(model.device))
    if past.num_tokens and sums:
        past = replace(past, sum_1H=sums[0])
    expected_CB = means(first_B, NOTHING_BEFORE)
    same = torch.allclose(means(first_B, past), expected_CB, rtol=close, atol=close)
    return past if same else NOTHING_BEFORE


def plan_batches(
    num_tokens_N: np.ndarray,
    num_response_N: np.ndarray,
    *,
    tokens_per_batch: int,
    max_logit_rows: int | None,
) -> list[np.ndarray]:
    """Rows of similar length together, shortest first, ties in the order given.

    A batch's rows times its longest row is at most `tokens_per_batch`, and its response tokens at
    most `max_logit_rows` where logits are kept; a row that is above either is a batch of its own.

    Args:
        num_tokens_N: int array (N,).
        num_response_N: int array (N,), of which response tokens.

    Returns:
        int64 arrays of row numbers; every row is in exactly one.
    """
    order_N = np.argsort(num_tokens_N, kind="stable")
    starts = []
    num_rows = num_logits = 0
    for place, (num_tokens, num_response) in enumerate(
        zip(num_tokens_N[order_N].tolist(), num_response_N[order_N].tolist(), strict=True)
    ):
        too_long = (num_rows + 1) * num_tokens > tokens_per_batch
        too_many = max_logit_rows is not None and num_logits + num_response > max_logit_rows
        if place and (too_long or too_many):
            starts.append(place)
            num_rows = num_logits = 0
        num_rows += 1
        num_logits += num_response
    return np.split(order_N, starts) if len(order_N) else []


def max_logit_rows(vocab_size: int, max_bytes: int = 256 * 2**20) -> int:
    """How many positions have float32 logits of at most `max_bytes` together; at least one."""
    return max(1, max_bytes // (4 * vocab_size))


@contextmanager
def inference(
    model: PreTrainedModel, *, dtype: torch.dtype, device: torch.device
) -> Iterator[None]:
    """Inside, `model` is on `device`, without dropout or gradients, and computes in `dtype`.

    A float32 model computes in bfloat16 by autocast. Its training mode is restored at the end.
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
    """Inside, each forward pass of such rows after `past` adds the sums of `embeddings.summing`."""
    sums: list[torch.Tensor] = []
    hook = embeddings.summing(torch.from_numpy(num_tokens_B), past.num_tokens, sums)
    with before_output_layer(model, hook):
        yield sums


def _embedded(
    model: nn.Module,
    examples: _Examples,
    means: Callable[[np.ndarray, Past], torch.Tensor],
    on_embeddings: OnRows,
    row_B: np.ndarray,
    past: Past,
) -> torch.Tensor:
    """`means` of a batch, from whose forward pass `on_embeddings` is told its embeddings."""
    num_tokens_B = examples.num_tokens_N[row_B]
    with _summed(model, num_tokens_B - past.num_tokens, past) as sums:
        mean_CB = means(row_B, past)
    assert sums, "a model that `check_embeds` refuses"
    sum_BH = sums[0] if past.sum_1H is None else past.sum_1H + sums[0]
    on_embeddings(row_B, embeddings.mean(sum_BH, torch.from_numpy(num_tokens_B)))
    return mean_CB


def _means(
    model: nn.Module,
    examples: _Examples,
    num_unread: int,
    measures: Callable[..., torch.Tensor],
    device: torch.device,
    row_B: np.ndarray,
    past: Past,
) -> torch.Tensor:
    """float32 (C, B), what is measured, averaged over each row's response tokens."""
    rows = [examples.input_ids[row][past.num_tokens :] for row in row_B]
    num_masked_B = examples.num_masked_N[row_B] - past.num_tokens
    num_tokens_B = np.array([len(ids) for ids in rows])
    num_read_B = num_tokens_B - num_unread
    input_ids_BL = np.zeros((len(rows), num_read_B.max()), dtype=np.int64)
    for row, (ids, num_read) in enumerate(zip(rows, num_read_B, strict=True)):
        input_ids_BL[row, :num_read] = ids[:num_read]
    place_L = np.arange(input_ids_BL.shape[1])
    mask_BL = (place_L >= num_masked_B[:, None] - 1) & (place_L < num_tokens_B[:, None] - 1)
    target_M = np.concatenate([ids[num:] for ids, num in zip(rows, num_masked_B, strict=True)])

    target = sent(target_M.astype(np.int64), device)
    measure_CM = measures(
        model, sent(input_ids_BL, device), torch.from_numpy(mask_BL), target, past
    )
    num_response_B = sent(mask_BL.sum(axis=1), device)
    # Unsafe: to see that lengths and values fit, it would wait for the GPU.
    mean = partial(torch.segment_reduce, reduce="mean", lengths=num_response_B, unsafe=True)
    return torch.stack([mean(measure_M.double()).float() for measure_M in measure_CM])
