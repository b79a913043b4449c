"""What a model's configuration tells of it; no weights are read, and nothing is downloaded."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from s2l_ray.config import ModelSpec, RandomModel
from s2l_ray.errors import ModelError
from s2l_ray.maths.flops import Shape
from s2l_ray.modelling.checkpoints import load_outline, load_tokenizer
from s2l_ray.modelling.origins import is_hub_name
from s2l_ray.storage import is_uri

Loaded = TypeVar("Loaded")


def shape(spec: ModelSpec) -> Shape | None:
    """The sizes of a model's matrices; None for one that is not on this machine.

    Raises:
        ModelError: it is here, and its configuration cannot be used.
    """
    model = _if_here(spec, load_outline)
    try:
        return None if model is None else shape_of(model)
    except AttributeError:  # an architecture that names its sizes in a way of its own
        return None


def tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model; None for one that is not on this machine.

    Raises:
        ModelError: it is here, and cannot be used.
    """
    return _if_here(spec, partial(load_tokenizer, offline=True))


def shape_of(model: PreTrainedModel) -> Shape:
    """The sizes of the matrices of `model`, whose weights may have no content."""
    config = model.config.get_text_config()
    width = model.get_input_embeddings().embedding_dim
    output = model.get_output_embeddings()
    apart = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    if output is not None:
        apart.add(id(output.weight))
    experts_per_token = getattr(config, "num_experts_per_tok", None)
    body = sum(
        _num_multiplied(name, weight, experts_per_token)
        for name, weight in model.named_parameters()
        if id(weight) not in apart
    )
    heads = getattr(config, "num_attention_heads", None) or 0
    head_size = getattr(config, "head_dim", None) or width // max(heads, 1)
    return Shape(
        body=round(body),
        output=0 if output is None else output.weight.numel(),
        attention=config.num_hidden_layers * heads * head_size,
        width=width,
    )


def _if_here(spec: ModelSpec, load: Callable[[ModelSpec], Loaded]) -> Loaded | None:
    name = spec.tokenizer if isinstance(spec, RandomModel) else spec
    if is_uri(name):
        return None
    try:
        return load(spec)
    except ModelError:
        if is_hub_name(name):
            return None
        raise


def _num_multiplied(name: str, weight: torch.Tensor, experts_per_token: int | None) -> float:
    """How many weights of a parameter are in products with a token; none of a vector."""
    if ".experts." not in name:
        return weight.numel() if weight.ndim >= 2 else 0
    # The experts of a layer are stacked along the first axis; a token goes through a few of them.
    num_active = len(weight) if experts_per_token is None else experts_per_token
    return weight.numel() / len(weight) * num_active if weight.ndim >= 3 else 0
