"""A model's output layer, given the positions that count alone.

Shapes: B rows in a batch, L positions, M positions that count, H hidden size, V vocabulary,
C what is measured of each: the loss, and perhaps the error norm.
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
        mask_BL: bool tensor (B, L) on the CPU, which spares a GPU the wait for the number of
            positions; logits AT a position predict the token after it.
        past: what comes before the first position.

    Returns:
        logits_MV, (M, V), rows in the order of `mask_BL`, of the type that the model computes.
    """
    position_M = to_device(mask_BL.flatten().nonzero().squeeze(1), input_ids_BL.device)
    narrowed = []

    def keep_positions(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden_BLH, *others = inputs
        if hidden_BLH.shape[:2] != mask_BL.shape:
            return None
        narrowed.append(True)
        return (hidden_BLH.flatten(0, 1).index_select(0, position_M)[None], *others)

    with before_output_layer(model, keep_positions):
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
    with before_output_layer(model, replace):
        logits_BLV = model(input_ids=input_ids_BL, use_cache=False).logits
    expected_BLV = layer(probe_BLH)
    # NaN, of a layer without weights or of infinite ones, is equal to nothing.
    return given == [probe_BLH.shape] and torch.equal(logits_BLV, expected_BLV.to(logits_BLV))


def losses_by_tiles(
    model: nn.Module,
    input_ids_BL: torch.Tensor,
    mask_BL: torch.Tensor,
    target_M: torch.Tensor,
    past: Past,
    *,
    norms: bool = False,
) -> torch.Tensor:
    """Losses of a model that `ends_in_a_linear_layer`; its logits never exist all at once.

    Returns:
        measure_CM, float32 (1, M) of losses or, with `norms`, (2, M) of losses and error norms.
    """
    position_M = to_device(mask_BL.flatten().nonzero().squeeze(1), input_ids_BL.device)
    hidden = []

    def keep(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden.append(inputs[0].flatten(0, 1).index_select(0, position_M))
        return (inputs[0][:1, :1], *inputs[1:])

    with before_output_layer(model, keep):
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
    """As `losses_by_tiles`, of any model."""
    logits_MV = response_logits(model, input_ids_BL, mask_BL, past)
    measures = (token_losses, error_norms) if norms else (token_losses,)
    return torch.stack([measure(logits_MV, target_M) for measure in measures])


@contextmanager
def before_output_layer(model: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
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
    inner = getattr(model, "module", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else model
