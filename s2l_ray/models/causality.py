"""A trial that a model's predictions do not depend on the tokens that follow.

Models that look ahead (BERT and its kin, XLNet) load as causal language models, too. They would see
the token that they should predict, so their losses mean nothing.

Shapes: L positions, V tokens of the vocabulary.
"""

from typing import NoReturn

import torch
from transformers import PreTrainedModel

from s2l_ray.errors import ModelError, one_line
from s2l_ray.models.torch_compile import is_out_of_memory

LENGTH = 8
"""Tokens of the row that is tried."""
NEGLIGIBLE = {torch.float32: 1e-4}
"""Change of an earlier logit that is rounding, as a share of the change of the last ones."""
NEGLIGIBLE_OTHERWISE = 2e-2
"""The same in types of less precision."""


def looks_ahead(model: PreTrainedModel) -> bool:
    """Return True if another last token changes the logits at earlier positions."""
    ids_L = _ordinary_tokens(model, LENGTH + 1)
    one, other = ids_L[:-1], torch.cat([ids_L[:-2], ids_L[-1:]])
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = [model(input_ids=ids[None], use_cache=False).logits[0] for ids in (one, other)]
    finally:
        model.train(was_training)
    change_L = (logits[0].float() - logits[1].float()).abs().amax(dim=1)
    # A model that has diverged is found by its losses.
    share = NEGLIGIBLE.get(logits[0].dtype, NEGLIGIBLE_OTHERWISE)
    return bool((change_L[:-1] > share * change_L[-1]).any())


def check_causal(model: PreTrainedModel) -> None:
    """Refuse a model that looks ahead.

    Raises:
        ModelError: another last token changes the logits at earlier positions, or the model cannot
            read a row of tokens.
    """
    try:
        is_causal = not looks_ahead(model)
    except Exception as error:  # from any model's own code
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise ModelError(
            f"{_name(model)} cannot read {LENGTH} tokens ({reason}). Take another model."
        ) from error
    if not is_causal:
        refuse_looking_ahead(model)


def refuse_looking_ahead(model: PreTrainedModel) -> NoReturn:
    """Raise ModelError: the model is not causal."""
    raise ModelError(
        f"{_name(model)} is not causal: what it predicts depends on the tokens that follow, so it "
        "sees what it should predict. Take a model that reads from left to right (GPT, Llama, "
        "Qwen, ...)."
    )


def _name(model: PreTrainedModel) -> str:
    return f"{type(model).__name__} ({model.config.model_type})"


def _ordinary_tokens(model: PreTrainedModel, count: int) -> torch.Tensor:
    """Return different tokens that the model's configuration does not name, int64 (count,).

    A vocabulary that is too small for that begins again.
    """
    config = model.config.get_text_config()
    named = {
        value
        for name, value in config.to_dict().items()
        if name.endswith("token_id") and isinstance(value, int)
    }
    ordinary = [token for token in range(min(config.vocab_size, 256)) if token not in named]
    ids = (ordinary * count)[-count:] if len(ordinary) < count else ordinary[-count:]
    return torch.tensor(ids, device=model.device)
