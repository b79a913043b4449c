"""Limits and sizes of a loaded model: its longest row, its tokens, its matrices."""

import sys

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from s2l_ray.errors import ModelError
from s2l_ray.models.flops import Shape

_POSITION_TABLES = ("embed_positions", "pos_encoding")
"""Buffers of GPT-J, CodeGen and CTRL; other models that look positions up have embeddings."""


def check_rows_fit(model: PreTrainedModel, *, num_tokens: int, num_ids: int = 0) -> None:
    """Refuse a model that lacks an embedding for some token or position.

    Otherwise torch would raise an index error, which on a GPU ends the process.

    Args:
        num_tokens: tokens of the longest row; the last of them is predicted and never read.
        num_ids: the tokenizer's size, or the highest token id of the rows plus one.

    Raises:
        ModelError: the model knows fewer tokens, or its table of positions ends before the row
            does. (Most rotary positions are computed, and do not end.)
    """
    known = model.get_input_embeddings()
    kind = model.config.model_type
    if num_ids > known.num_embeddings:
        raise ModelError(
            f"the tokenizer has {num_ids:,} tokens, the model ({kind}) knows "
            f"{known.num_embeddings:,}. Give data.tokenizer the name of the one that the model was "
            f"trained with, or take a model that has embeddings for them."
        )
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tables = [part.weight for part in model.modules() if isinstance(part, nn.Embedding)]
    tables += [table for name, table in model.named_buffers() if name.endswith(_POSITION_TABLES)]
    sizes = [table.shape[0] for table in tables if table is not known.weight]
    # OPT keeps two positions more than it says.
    if limit is None or num_tokens - 1 <= limit:
        return
    if any(limit <= size <= limit + 2 for size in sizes):
        raise ModelError(
            f"the longest row has {num_tokens:,} tokens, the model ({kind}) has {limit:,} "
            f"positions. Use a model with more of them, or lower data.max_tokens."
        )


def number_of_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the highest id that a tokenizer gives, plus one."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)


def num_positions(model: PreTrainedModel) -> int:
    """Return how many tokens a model can have before it, as its configuration says."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    # XLNet, whose positions have no end, says -1.
    return sys.maxsize if limit is None or limit <= 0 else limit


def shape_of(model: PreTrainedModel) -> Shape:
    """Return the sizes of the matrices of `model`, whose weights may have no content."""
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


def _num_multiplied(name: str, weight: torch.Tensor, experts_per_token: int | None) -> float:
    """Count the weights of a parameter that are multiplied with a token; none of a vector."""
    if ".experts." not in name:
        return weight.numel() if weight.ndim >= 2 else 0
    # The experts of a layer are stacked along the first axis; a token goes through a few of them.
    num_active = len(weight) if experts_per_token is None else experts_per_token
    return weight.numel() / len(weight) * num_active if weight.ndim >= 3 else 0
