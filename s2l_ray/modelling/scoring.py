"""Mean response loss of every example under one causal language model.

Logits are computed for response positions only, and batches are filled to a number of tokens with
rows of similar length. Rows are padded on the right, where a causal model cannot see the padding.
The tokens with which many prompts begin are read once.

Shapes: N examples, B rows in a batch, L positions, M response positions of a batch, H hidden size,
V vocabulary, P tokens that prompts share.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from s2l_ray.errors import ModelError
from s2l_ray.maths.losses import linear_losses, token_losses
from s2l_ray.modelling import embeddings, prefixes
from s2l_ray.modelling.dimensions import check_reach
from s2l_ray.modelling.prefixes import NOTHING_BEFORE, Past

PROBED_LOGIT = 300.0
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""How near, absolute plus relative, a loss must come that is computed in two ways."""
LOGITS_IN_CHUNKS = (
    "the model's logits are more than its output layer's: batches are cut to hold them"
)
PROMPTS_READ_WHOLE = (
    "the model's past is more than keys and values: shared prompts are read each time"
)


def score(
    model: PreTrainedModel,
    input_ids: Sequence[np.ndarray],
    num_prompt_tokens_N: np.ndarray,
    *,
    tokens_per_batch: int,
    dtype: torch.dtype,
    device: torch.device,
    on_batch: Callable[[int], None] | None = None,
    on_slower_way: Callable[[str], None] | None = None,
    on_embeddings: Callable[[np.ndarray, torch.Tensor], None] | None = None,
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
        on_batch: called with the number of examples of every batch that was handed to the model.
        on_slower_way: called with `LOGITS_IN_CHUNKS` or `PROMPTS_READ_WHOLE` where that is how
            this model has to be scored.
        on_embeddings: called with row_B and mean_BH, float32 on `device`, of every batch: the
            position-weighted means of the last hidden states over all tokens of these examples.
            Their last tokens, which no loss needs, are read for it.

    Returns:
        loss_N, float32 (N,), nats per response token; not finite only where the logits are not.

    Raises:
        ModelError: embeddings are wanted, and the output layer is not given hidden states.
    """
    num_tokens_N = np.array([len(ids) for ids in input_ids], dtype=np.int64)
    num_ids = 1 + max((int(ids.max()) for ids in input_ids), default=-1)
    check_reach(model, num_tokens=int(num_tokens_N.max(initial=0)), num_ids=num_ids)
    # Nothing predicts an example's first token, prompt or not.
    num_masked_N = np.maximum(np.asarray(num_prompt_tokens_N, dtype=np.int64), 1)
    assert (num_masked_N < num_tokens_N).all(), "every example needs a response token"
    loss_N = torch.zeros(len(num_tokens_N), dtype=torch.float32, device=device)
    with inference(model, dtype=dtype, device=device):
        in_tiles = dtype == model.dtype and ends_in_a_linear_layer(model)
        losses = _losses_by_tiles if in_tiles else _losses_of_logits
        if on_slower_way is not None and not in_tiles:
            on_slower_way(LOGITS_IN_CHUNKS)
        vocab_size = model.config.get_text_config().vocab_size
        # An example's last token is predicted; nothing is predicted from it.
        num_unread = 1 if on_embeddings is None else 0
        mean_losses = partial(
            _mean_losses, model, input_ids, num_masked_N, num_unread, losses, device
        )
        scored = mean_losses
        if on_embeddings is not None:
            scored = partial(_embedded, model, num_tokens_N, mean_losses, on_embeddings)
        for group in prefixes.groups(input_ids, num_masked_N, min_saved=tokens_per_batch):
            past = _past(model, group, input_ids, mean_losses, device, CLOSE[dtype])
            if on_slower_way is not None and past.num_tokens < group.num_shared:
                on_slower_way(PROMPTS_READ_WHOLE)
            batches = plan_batches(
                num_tokens_N[group.row_G] - past.num_tokens,
                (num_tokens_N - num_masked_N)[group.row_G],
                tokens_per_batch=tokens_per_batch,
                max_logit_rows=None if in_tiles else max_logit_rows(vocab_size),
            )
            for place_B in batches:
                row_B = group.row_G[place_B]
                loss_N[torch.from_numpy(row_B).to(device)] = scored(row_B, past)
                if on_batch is not None:
                    on_batch(len(row_B))
    return loss_N.cpu().numpy()


def response_logits(
    model: nn.Module,
    input_ids_BL: torch.Tensor,
    mask_BL: torch.Tensor,
    past: Past = NOTHING_BEFORE,
) -> torch.Tensor:
    """Logits at the masked positions only, from the model's own forward pass.

    The output layer is given the hidden states of those positions as if they were one sequence;
    what the model does after it (scaling, soft-capping) stays the model's. A model that offers no
    output layer, or does not call it on (B, L, H), computes all logits and loses the others.

    Args:
        model: a causal LM, or a wrapper (DDP, DeepSpeed) that keeps one in `.module`; the wrapper
            is what is called.
        input_ids_BL: int64 tensor (B, L) on the model's device.
        mask_BL: bool tensor (B, L); logits AT a position predict the token after it. Kept on the
            CPU, it spares a GPU the wait for the number of positions.
        past: what comes before the first position.

    Returns:
        logits_MV, (M, V), rows in the order of `mask_BL`, of the type that the model computes.
    """
    position_M = mask_BL.flatten().nonzero().squeeze(1).to(input_ids_BL.device)
    narrowed = []

    def keep_positions(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden_BLH, *others = inputs
        if hidden_BLH.shape[:2] != mask_BL.shape:
            return None
        narrowed.append(True)
        return (hidden_BLH.flatten(0, 1).index_select(0, position_M)[None], *others)

    with _before_output_layer(model, keep_positions):
        logits = model(input_ids=input_ids_BL, **past.inputs).logits
    return logits[0] if narrowed else logits.flatten(0, 1).index_select(0, position_M)


def ends_in_a_linear_layer(model: PreTrainedModel) -> bool:
    """Whether the model's logits are those of its output layer and nothing is done to them.

    That is tried, not looked up: the layer is given inputs with logits of hundreds, at which any
    scaling or soft-capping shows.
    """
    layer = model.get_output_embeddings()
    if type(layer) is not nn.Linear:
        return False
    generator = torch.Generator().manual_seed(0)
    probe_BLH = torch.randn(1, 4, layer.in_features, generator=generator).to(layer.weight)
    probe_BLH *= PROBED_LOGIT / layer(probe_BLH).abs().max()
    given = []

    def replace(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        given.append(inputs[0].shape)
        return (probe_BLH, *inputs[1:]) if given == [probe_BLH.shape] else None

    input_ids_BL = torch.zeros(1, 4, dtype=torch.int64, device=layer.weight.device)
    with _before_output_layer(model, replace):
        logits_BLV = model(input_ids=input_ids_BL, use_cache=False).logits
    expected_BLV = layer(probe_BLH)
    # NaN, of a layer without weights or of infinite ones, is equal to nothing.
    return given == [probe_BLH.shape] and torch.equal(logits_BLV, expected_BLV.to(logits_BLV))


def _losses_by_tiles(
    model: nn.Module,
    input_ids_BL: torch.Tensor,
    mask_BL: torch.Tensor,
    target_M: torch.Tensor,
    past: Past,
) -> torch.Tensor:
    """Losses of a model that `ends_in_a_linear_layer`; its logits never exist all at once."""
    position_M = mask_BL.flatten().nonzero().squeeze(1).to(input_ids_BL.device)
    hidden = []

    def keep(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden.append(inputs[0].flatten(0, 1).index_select(0, position_M))
        return (inputs[0][:1, :1], *inputs[1:])

    with _before_output_layer(model, keep):
        model(input_ids=input_ids_BL, **past.inputs)
    layer = _unwrapped(model).get_output_embeddings()
    return linear_losses(hidden[0], layer.weight, layer.bias, target_M)


def _losses_of_logits(
    model: nn.Module,
    input_ids_BL: torch.Tensor,
    mask_BL: torch.Tensor,
    target_M: torch.Tensor,
    past: Past,
) -> torch.Tensor:
    return token_losses(response_logits(model, input_ids_BL, mask_BL, past), target_M)


def _past(
    model: PreTrainedModel,
    group: prefixes.Group,
    input_ids: Sequence[np.ndarray],
    mean_losses: Callable[[np.ndarray, Past], torch.Tensor],
    device: torch.device,
    close: float,
) -> Past:
    """What the group's rows begin with, read once; nothing if that changed the first row's loss."""
    if not group.num_shared:
        return NOTHING_BEFORE
    first_B = group.row_G[:1]
    ids_P = input_ids[first_B[0]][: group.num_shared].astype(np.int64)
    with _summed(model, np.array([len(ids_P)]), NOTHING_BEFORE) as sums:
        past = prefixes.read(model, torch.from_numpy(ids_P).to(device))
    if past.num_tokens and sums:
        past = replace(past, sum_1H=sums[0])
    expected_B = mean_losses(first_B, NOTHING_BEFORE)
    same = torch.allclose(mean_losses(first_B, past), expected_B, rtol=close, atol=close)
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
def _before_output_layer(model: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    layer = _unwrapped(model).get_output_embeddings()
    if layer is None:
        yield
        return
    handle = layer.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _unwrapped(model: nn.Module) -> Any:
    inner = getattr(model, "module", None)
    return _unwrapped(inner) if isinstance(inner, nn.Module) else model


@contextmanager
def _summed(model: nn.Module, num_tokens_B: np.ndarray, past: Past) -> Iterator[list[torch.Tensor]]:
    """Inside, each forward pass of such rows after `past` adds the sums of `embeddings.summing`."""
    sums: list[torch.Tensor] = []
    hook = embeddings.summing(torch.from_numpy(num_tokens_B), past.num_tokens, sums)
    with _before_output_layer(model, hook):
        yield sums


def _embedded(
    model: nn.Module,
    num_tokens_N: np.ndarray,
    mean_losses: Callable[[np.ndarray, Past], torch.Tensor],
    on_embeddings: Callable[[np.ndarray, torch.Tensor], None],
    row_B: np.ndarray,
    past: Past,
) -> torch.Tensor:
    """Losses of a batch, from whose forward pass `on_embeddings` is told its embeddings."""
    num_tokens_B = num_tokens_N[row_B]
    with _summed(model, num_tokens_B - past.num_tokens, past) as sums:
        loss_B = mean_losses(row_B, past)
    if not sums:
        raise ModelError(
            f"{type(_unwrapped(model)).__name__}: its output layer is not given the hidden states "
            "of all positions, so examples have no embeddings. Set trajectories.embeddings: false, "
            "or take another reference."
        )
    sum_BH = sums[0] if past.sum_1H is None else past.sum_1H + sums[0]
    on_embeddings(row_B, embeddings.mean(sum_BH, torch.from_numpy(num_tokens_B)))
    return loss_B


def _mean_losses(
    model: nn.Module,
    input_ids: Sequence[np.ndarray],
    num_masked_N: np.ndarray,
    num_unread: int,
    losses: Callable[..., torch.Tensor],
    device: torch.device,
    row_B: np.ndarray,
    past: Past,
) -> torch.Tensor:
    rows = [input_ids[row][past.num_tokens :] for row in row_B]
    num_masked_B = num_masked_N[row_B] - past.num_tokens
    num_tokens_B = np.array([len(ids) for ids in rows])
    num_read_B = num_tokens_B - num_unread
    input_ids_BL = np.zeros((len(rows), num_read_B.max()), dtype=np.int64)
    for row, (ids, num_read) in enumerate(zip(rows, num_read_B, strict=True)):
        input_ids_BL[row, :num_read] = ids[:num_read]
    place_L = np.arange(input_ids_BL.shape[1])
    mask_BL = (place_L >= num_masked_B[:, None] - 1) & (place_L < num_tokens_B[:, None] - 1)
    target_M = np.concatenate([ids[num:] for ids, num in zip(rows, num_masked_B, strict=True)])

    input_ids_on_device = torch.from_numpy(input_ids_BL).to(device)
    target = torch.from_numpy(target_M.astype(np.int64)).to(device)
    loss_M = losses(model, input_ids_on_device, torch.from_numpy(mask_BL), target, past)
    num_response_B = torch.from_numpy(mask_BL.sum(axis=1)).to(device)
    return torch.segment_reduce(loss_M.double(), "mean", lengths=num_response_B).float()
