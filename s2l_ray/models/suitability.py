"""Models that cannot do what a run asks of them, seen from configuration and tokenizer alone."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from s2l_ray.config.training import ModelSpec
from s2l_ray.errors import ModelError
from s2l_ray.models.adapters import adapter_of
from s2l_ray.models.checkpoints import load_without_weights
from s2l_ray.models.dimensions import check_rows_fit, num_positions, number_of_ids
from s2l_ray.models.local_models import if_here


def check_reads(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase | None, *, num_tokens: int
) -> None:
    """Refuse a model without an embedding for some token or position; the hub is not asked.

    Args:
        spec: the model. One that is not on this machine is not refused.
        tokenizer: gives the tokens that the model reads; None if that is not to be checked.
        num_tokens: tokens of the longest row.

    Raises:
        ModelError: it is no causal language model, or has too few embeddings or positions.
    """
    model = if_here(spec, load_without_weights)
    # An adapter may bring embeddings for tokens that its base does not have.
    if model is not None:
        counted = tokenizer is not None and adapter_of(spec) is None
        num_ids = number_of_ids(tokenizer) if counted and tokenizer is not None else 0
        check_rows_fit(model, num_tokens=num_tokens, num_ids=num_ids)


def check_answers(spec: ModelSpec, *, longest_prompt: int, where: str) -> None:
    """Refuse a model whose positions a prompt fills; the hub is not asked.

    Args:
        spec: the model. One that is not on this machine is not refused.
        longest_prompt: tokens of a prompt.
        where: the key that names the file of the prompt.

    Raises:
        ModelError: no position is left to answer in.
    """
    model: PreTrainedModel | None = if_here(spec, load_without_weights)
    if model is not None and longest_prompt >= num_positions(model):
        raise ModelError(
            f"{where}: a prompt of {longest_prompt:,} tokens fills all {num_positions(model):,} "
            f"positions of target.model, which could not answer. Use a model with more of them, "
            f"or shorten the prompt."
        )
