"""A model's layers as code compiled for them: a GPU then does many small operations as one.

Between its matrix products a layer normalises, rotates, adds and multiplies; one after the other
these read and write the hidden states a dozen times, and on a GPU take longer than the products.
"""

import functools
import math
from collections.abc import Callable, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from s2l_ray.models.losses import COMPILED

UNCOMPILED = "the model's layers could not be compiled: they run one operation after the other"
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""How near, absolute plus relative, a loss must come that is computed in two ways."""
TRIALS = (11, 37), (1, 37), (11, 1), (1, 1)
"""Rows and tokens on which compiled layers are tried. There is other code for a single row or
token, and primes are no size of a model that a size of a batch could be taken for."""
LARGEST_WINDOW = 4096
"""Sliding windows up to so many tokens are exceeded in a trial."""
MOST_SHAPES = 64
"""For which one function is compiled: kinds of layers times sizes that need other code."""
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
        trial: runs the model on a few tokens; its losses, in nats, and perhaps gradients.
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
        with torch._dynamo.config.patch(recompile_limit=MOST_SHAPES):
            found = trial()
        if torch.allclose(found, expected, rtol=close, atol=close):
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


def trials(config: PreTrainedConfig, longest: float = math.inf) -> list[tuple[int, int]]:
    """Rows and tokens on which to try a model, so that other sizes need no other code.

    Args:
        longest: no row has more tokens.
    """
    reach = getattr(config, "max_position_embeddings", None) or math.inf
    window = getattr(config, "sliding_window", None) or math.inf
    beyond = window + 1 if window <= LARGEST_WINDOW else math.inf
    lengths = [(rows, min(tokens, reach)) for rows, tokens in TRIALS]
    # A row beyond a window has a mask.
    is_met = beyond < math.inf and beyond <= min(reach, longest)
    lengths += [(rows, beyond) for rows in (3, 1) if is_met]
    return [(rows, int(tokens)) for rows, tokens in lengths]


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
