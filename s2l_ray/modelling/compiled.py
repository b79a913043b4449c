"""A model's layers as code compiled for them: a GPU then does many small operations as one.

Between its matrix products a layer normalises, rotates, adds and multiplies; one after the other
these read and write the hidden states a dozen times, and on a GPU take longer than the products.
"""

import functools
from collections.abc import Callable, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from s2l_ray.maths.losses import COMPILED

_outcomes: MutableMapping[nn.Module, str | None] = WeakKeyDictionary()
"""Why a model's layers run uncompiled."""


def compile_layers(
    model: nn.Module, trial: Callable[[], torch.Tensor], *, close: float
) -> str | None:
    """Compile the layers of `model` in place, unless that fails or changes what `trial` returns.

    They are compiled in `trial`, for any number of rows and tokens. It has to be the same for all
    workers, because the first shapes decide on details of the kernels, and `are_compiled` in it.
    What has come of a model once stays.

    Args:
        trial: runs the model on a few tokens; its losses, in nats.
        close: how near, absolute plus relative, these must come.

    Returns:
        Why the layers run uncompiled; None if they do not.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        return "transformers names no layers of it"
    if model in _outcomes:
        return _outcomes[model]
    expected = trial()
    for layer in layers:
        # The compiled code holds no layer: a model that was dropped is gone at once.
        layer._compiled_call_impl = functools.partial(_call, ref(layer))
    _outcomes[model] = None
    reason: str | None = "its losses would change"
    try:
        if torch.allclose(trial(), expected, rtol=close, atol=close):
            reason = None
    except Exception as error:  # whatever a compiler, its absence, or an unusual model may raise
        if _is_out_of_memory(error):
            del _outcomes[model]
            raise
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    finally:
        if reason is not None:
            for layer in layers:
                layer._compiled_call_impl = None
    if reason is not None:
        _outcomes[model] = reason
    return reason


def are_compiled(model: nn.Module) -> bool:
    return model in _outcomes and _outcomes[model] is None


def _call(layer: Callable[[], nn.Module | None], *args: Any, **inputs: Any) -> Any:
    return _compiled_call()(layer(), *args, **inputs)


@functools.cache
def _compiled_call() -> Callable[..., Any]:
    def call(layer: nn.Module, *args: Any, **inputs: Any) -> Any:
        return layer._call_impl(*args, **inputs)

    return torch.compile(call, dynamic=True, options=COMPILED)


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory did not suffice, for a compiler or for what it ran."""
    if error is None:
        return False
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _is_out_of_memory(
        error.__cause__
    )
