"""A model's output layer, applied to response positions only.

Shapes: B rows in a batch, L positions, M response positions, H hidden size, V vocabulary,
C measures: the loss, and perhaps the error norm.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from s2l_ray.models.losses import error_norms, linear_losses, token_losses
from s2l_ray.models.shared_prefix import NOTHING_BEFORE, Past
from s2l_ray.models.torch_compile import are_compiled
from s2l_ray.models.transfer import to_device

PROBED_LOGIT = 300.0
"""Largest logit of the probe of `ends_in_a_linear_layer`."""
"""Largest logit of the probe of `ends_in_a_linear_layer`."""


def response_logits(
    model: nn.Module,
    input_ids_BL: torch.Tensor,
    mask_BL: torch.Tensor,
    past: Past = NOTHING_BEFORE,
) -> torch.Tensor:
    """Return the logits at the masked positions only, from the model's own forward pass.

    A hook passes the hidden states of those positions to the output layer, as if they were one
    sequence. The model itself does what follows (scaling, soft-capping). If a model has no output
    layer, or does not call it on (B, L, H), it computes all logits, and the others are dropped.

    Args:
        model: a causal LM, or a wrapper (DDP, DeepSpeed) that holds one in `.module`; then the
            wrapper is called.
        input_ids_BL: int64 tensor (B, L) on the model's device.
        mask_BL: bool tensor (B, L) on the CPU, so that the program need not wait for a GPU to count
            the positions; logits AT a position predict the token after it.
        past: the tokens before the first position.

    Returns:
        logits_MV, (M, V), rows in the order of `mask_BL`, of the type in which the model computes.
    """
    position_M = to_device(mask_BL.flatten().nonzero().squeeze(1), input_ids_BL.device)
    narrowed = []

    def narrow_to_mask(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden_BLH, *others = inputs
        if hidden_BLH.shape[:2] != mask_BL.shape:
            return None
        narrowed.append(True)
        return (hidden_BLH.flatten(0, 1).index_select(0, position_M)[None], *others)

    with before_output_layer(model, narrow_to_mask):
        logits = model(input_ids=input_ids_BL, **past.inputs).logits
    return logits[0] if narrowed else logits.flatten(0, 1).index_select(0, position_M)


def ends_in_a_linear_layer(model: PreTrainedModel) -> bool:
    """Return True if the model's logits are its output layer's, with nothing done to them.

    The function tries it: it passes inputs to the layer whose logits reach `PROBED_LOGIT`, where
    any scaling or soft-capping shows.
    """
    layer = model.get_output_embeddings()
    if type(layer) is not nn.Linear:
        return False
    generator = torch.Generator().manual_seed(0)
    probe_BLH = torch.randn(1, 4, layer.in_features, generator=generator).to(layer.weight)
    probe_BLH *= PROBED_LOGIT / layer(probe_BLH).abs().max()
    shapes = []

    def replace(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        shapes.append(inputs[0].shape)
        return (probe_BLH, *inputs[1:]) if shapes == [probe_BLH.shape] else None

    input_ids_BL = torch.zeros(1, 4, dtype=torch.int64, device=layer.weight.device)
    with before_output_layer(model, replace):
        logits_BLV = model(input_ids=input_ids_BL, use_cache=False).logits
    expected_BLV = layer(probe_BLH)
    # NaN, from a layer without weights or with infinite ones, is equal to nothing.
    return shapes == [probe_BLH.shape] and torch.equal(logits_BLV, expected_BLV.to(logits_BLV))


def losses_by_tiles(
    model: nn.Module,
    input_ids_BL: torch.Tensor,
    mask_BL: torch.Tensor,
    target_M: torch.Tensor,
    past: Past,
    *,
    norms: bool = False,
) -> torch.Tensor:
    """Return losses of a model that `ends_in_a_linear_layer`; its logits never exist all at once.

    Returns:
        measure_CM, float32 (1, M) of losses or, with `norms`, (2, M) of losses and error norms.
    """
    position_M = to_device(mask_BL.flatten().nonzero().squeeze(1), input_ids_BL.device)
    hidden = []

    def take_hidden(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden.append(inputs[0].flatten(0, 1).index_select(0, position_M))
        return (inputs[0][:1, :1], *inputs[1:])

    with before_output_layer(model, take_hidden):
        model(input_ids=input_ids_BL, **past.inputs)
    layer = unwrapped(model).get_output_embeddings()
    return linear_losses(
        hidden[0], layer.weight, layer.bias, target_M, compiled=are_compiled(model), norms=norms
    )


def losses_of_logits(
    model: nn.Module,
    input_ids_BL: torch.Tensor,
    mask_BL: torch.Tensor,
    target_M: torch.Tensor,
    past: Past,
    *,
    norms: bool = False,
) -> torch.Tensor:
    """Return the same as `losses_by_tiles`, for any model; the logits exist all at once."""
    logits_MV = response_logits(model, input_ids_BL, mask_BL, past)
    measures = (token_losses, error_norms) if norms else (token_losses,)
    return torch.stack([measure(logits_MV, target_M) for measure in measures])


@contextmanager
def before_output_layer(model: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    """Call `hook` before the model's output layer, if it has one, inside the block."""
    """Call `hook` before the model's output layer, if it has one, inside the block."""
    layer = unwrapped(model).get_output_embeddings()
    if layer is None:
        yield
        return
    handle = layer.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def unwrapped(model: nn.Module) -> Any:
    """Return the model inside wrappers (DDP, DeepSpeed) that hold it in `.module`."""
    """Return the model inside wrappers (DDP, DeepSpeed) that hold it in `.module`."""
    inner = getattr(model, "module", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else model
