"""Compilation of a model's layers: a GPU then does many small operations as one.

Between its matrix products a layer normalises, rotates, adds and multiplies. One after the other
these operations read and write the hidden states a dozen times, and on a GPU they take longer than
the products.
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
"""Tolerance, absolute plus relative, between two ways to compute a loss in nats, by dtype."""
TRIALS = (11, 37), (1, 37), (11, 1), (1, 1)
"""Rows and tokens on which compiled layers are tried. A single row or token needs other code, and
the primes are no sizes of a model, so the compiler cannot mistake one for the other."""
LARGEST_WINDOW = 4096
"""A trial has a row beyond the sliding window if the window is at most so many tokens."""
MOST_SHAPES = 64
"""Most variants of one function: kinds of layers times sizes that need code of their own."""
_outcomes: MutableMapping[nn.Module, str | None] = WeakKeyDictionary()
"""By model that was tried: the reason why its layers run uncompiled, or None."""


def compile_layers(
    model: nn.Module, trial: Callable[[], torch.Tensor], *, close: float
) -> str | None:
    """Compile the layers of `model` in place, unless that fails or changes what `trial` returns.

    The first calls in `trial` compile them, for any number of rows and tokens. `trial` has to be
    the same for all workers, because the first shapes decide on details of the kernels.
    `are_compiled` is True in the second trial. The outcome for a model is stored; a later call
    returns it.

    Args:
        trial: runs the model on a few tokens; returns losses, in nats, and perhaps gradients.
        close: how near, absolute plus relative, its results must be to those without compilation.

    Returns:
        The reason why the layers run uncompiled; None if they are compiled.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        return "transformers names no layers of it"
    if model in _outcomes:
        return _outcomes[model]
    expected = trial()
    for layer in layers:
        # The compiled code holds no reference to a layer: a model that is dropped is freed at once.
        layer._compiled_call_impl = functools.partial(_call, ref(layer))
    _outcomes[model] = None
    reason: str | None = "its losses would change"
    try:
        with torch._dynamo.config.patch(recompile_limit=MOST_SHAPES):
            compiled = trial()
        if torch.allclose(compiled, expected, rtol=close, atol=close):
            reason = None
    except Exception as error:  # whatever a compiler, its absence, or an unusual model may raise
        if is_out_of_memory(error):
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
    """Return the rows and tokens on which to try a model, so that other sizes need no other code.

    Args:
        longest: the tokens of the longest row that will come.
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
    """Return True if the layers of `model` run as compiled code."""
    """Return True if the layers of `model` run as compiled code."""
    return model in _outcomes and _outcomes[model] is None


def _call(layer: Callable[[], nn.Module | None], *args: Any, **inputs: Any) -> Any:
    return compiled_call()(layer(), *args, **inputs)


@functools.cache
def compiled_call() -> Callable[..., Any]:
    def call(layer: nn.Module, *args: Any, **inputs: Any) -> Any:
        return layer._call_impl(*args, **inputs)

    return torch.compile(call, dynamic=True, options=COMPILED)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return True if memory did not suffice, for a compiler or for the code that it ran."""
    if error is None:
        return False
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or is_out_of_memory(
        error.__cause__
    )
