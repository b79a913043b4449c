"""A model's layers as code compiled for them: a GPU then does many small operations as one.

Between its matrix products a layer normalises, rotates, adds and multiplies; one after the other
these read and write the hidden states a dozen times, and on a GPU take longer than the products.
"""

from collections.abc import Callable, MutableMapping, Sequence
from weakref import WeakKeyDictionary

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
    workers, because the first shapes decide on details of the kernels. What has come of a model
    once stays.

    Args:
        trial: runs the model on a few tokens; its losses, in nats.
        close: how near, absolute plus relative, these must come.

    Returns:
        Why the layers run uncompiled; None if they do not.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        return "transformers names no layers of it"
    if model not in _outcomes:
        _outcomes[model] = _compile(layers, trial, close)
    return _outcomes[model]


def are_compiled(model: nn.Module) -> bool:
    return model in _outcomes and _outcomes[model] is None


def _compile(
    layers: Sequence[nn.Module], trial: Callable[[], torch.Tensor], close: float
) -> str | None:
    expected = trial()
    for layer in layers:
        layer.compile(dynamic=True, options=COMPILED)
    reason: str | None = "its losses would change"
    try:
        if torch.allclose(trial(), expected, rtol=close, atol=close):
            reason = None
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler, its absence, or an unusual model may raise
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    finally:
        if reason is not None:
            for layer in layers:
                layer._compiled_call_impl = None
    return reason
