"""Sizes, miniatures and tokenizers of models on this machine, without weights or downloads."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from s2l_ray.config.training import ModelSpec, RandomModel
from s2l_ray.errors import ModelError
from s2l_ray.models.adapters import adapter_of
from s2l_ray.models.causality import looks_ahead, refuse_looking_ahead
from s2l_ray.models.checkpoints import (
    load_miniature,
    load_tokenizer,
    load_without_weights,
)
from s2l_ray.models.dimensions import shape_of
from s2l_ray.models.flops import Shape
from s2l_ray.models.origins import is_hub_name
from s2l_ray.storage.location import is_uri

PREFERRED_WEIGHTS, MAX_LAYER_WEIGHTS = 1.2e8, 5e8
"""Weights of a miniature's layers, and of its embeddings: more than caches hold, so that passes are
as slow as the whole model's. Weights of a single layer: 2 GB in float32."""

TRIED_WEIGHTS, MAX_TRIED_WEIGHTS = 1e6, 5e7
"""The same for a miniature that reads a few tokens: less than a second."""

Loaded = TypeVar("Loaded")


def shape(spec: ModelSpec) -> Shape | None:
    """Return the sizes of a model's matrices; None if the model is not on this machine.

    Raises:
        ModelError: the model is here, and its configuration cannot be used.
    """
    model = if_here(spec, load_without_weights)
    try:
        return None if model is None else shape_of(model)
    except AttributeError:  # an architecture that names its sizes in a way of its own
        return None


def miniature(spec: ModelSpec) -> PreTrainedModel | None:
    """Return a small random model as wide as `spec`.

    None if `spec` is not on this machine, or one of its layers is too large.

    Raises:
        ModelError: as for `shape`.
    """
    return if_here(
        spec, partial(load_miniature, preferred=PREFERRED_WEIGHTS, max_layer=MAX_LAYER_WEIGHTS)
    )


def check_causal(spec: ModelSpec) -> None:
    """Refuse a model whose architecture looks ahead, as far as that can be seen in a second.

    Tried is a random model with a few of its layers. Where there is none, because the model is not
    on this machine or its layers are large or cannot be cut, workers try the model itself.

    Raises:
        ModelError: the architecture looks ahead.
    """
    try:
        small = if_here(
            spec, partial(load_miniature, preferred=TRIED_WEIGHTS, max_layer=MAX_TRIED_WEIGHTS)
        )
        if small is None or not looks_ahead(small):
            return
    except Exception:  # from any model's own code; the whole model may well work
        return
    refuse_looking_ahead(small)


def tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer of a model; None if it is not on this machine.

    Raises:
        ModelError: the tokenizer is here, and cannot be used.
    """
    return if_here(spec, partial(load_tokenizer, offline=True))


def if_here(spec: ModelSpec, load: Callable[[ModelSpec], Loaded]) -> Loaded | None:
    """Return what `load` makes of a model; None if the model is not on this machine.

    Raises:
        ModelError: the model is here, and cannot be used.
    """
    name = spec.tokenizer if isinstance(spec, RandomModel) else spec
    if is_uri(name):
        return None
    adapter = adapter_of(spec)
    try:
        return load(spec)
    except ModelError:
        if is_hub_name(name) or (adapter is not None and is_hub_name(adapter.base)):
            return None
        raise
