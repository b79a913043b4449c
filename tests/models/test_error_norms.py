"""Oracle: one row at a time, softmax over all its logits in float64 minus the one-hot target."""

import numpy as np
import pytest
import torch

from s2l_ray.models import losses
from tests import tiny
from tests.models.test_scoring import examples, score, scores
from tests.models.test_shared_prefix import MIN_SAVED, rows_of_two_templates


def defined_norm(model, ids, num_prompt_tokens):
    """The mean over response tokens of ||softmax(logits) - onehot(token)||_2."""
    with torch.no_grad():
        logits_LV = model(torch.tensor([ids])).logits[0].double()
    norms = []
    for place in range(num_prompt_tokens, len(ids)):
        error_V = torch.softmax(logits_LV[place - 1], dim=0)
        error_V[ids[place]] -= 1
        norms.append(error_V.square().sum().sqrt().item())
    return sum(norms) / len(norms)


def normed(model, input_ids, num_prompt_N, tokens_per_batch, **changes):
    """Losses, and norms in the order of the examples, each measured exactly once."""
    counts = []
    options = {"error_norms": True, "on_batch": counts.append}
    found = scores(model, input_ids, num_prompt_N, tokens_per_batch, **changes | options)
    assert sum(counts) == len(input_ids) == len(found.error_norm_N)
    # A row that no batch had would be 0.
    assert (found.error_norm_N > 0).all() and found.error_norm_N.dtype == np.float32
    return found.loss_N, found.error_norm_N


def defined(model, input_ids, num_prompt_N):
    rows = zip(input_ids, num_prompt_N, strict=True)
    return np.array([defined_norm(model, ids.tolist(), num) for ids, num in rows])


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama", "gemma2", "phi", "cohere"])
def test_norms_are_those_of_the_definition_in_any_batch_and_tile(monkeypatch, architecture):
    monkeypatch.setattr(losses, "ROWS_PER_TILE", 7)
    monkeypatch.setattr(losses, "VOCABULARY_PER_TILE", 50)
    model = tiny.model(architecture)
    input_ids, num_prompt_N = examples(9)
    expected_N = defined(model, input_ids, num_prompt_N)

    for tokens_per_batch in (1, 100):
        loss_N, norm_N = normed(model, input_ids, num_prompt_N, tokens_per_batch)
        np.testing.assert_allclose(norm_N, expected_N, rtol=1e-5, atol=1e-5)
        plain_N = score(model, input_ids, num_prompt_N, tokens_per_batch)
        np.testing.assert_array_equal(loss_N, plain_N)


@pytest.mark.parametrize("architecture", ["gpt_neox", "gemma2"])
def test_norms_of_rows_that_begin_alike_are_those_of_the_definition(architecture):
    model = tiny.model(architecture)
    input_ids, num_prompt_N = rows_of_two_templates()
    _, norm_N = normed(model, input_ids, num_prompt_N, MIN_SAVED, embed=torch.clone)
    np.testing.assert_allclose(norm_N, defined(model, input_ids, num_prompt_N), rtol=1e-5)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_bfloat16_norms_are_near_those_of_float32(stored):
    model = tiny.model(initializer_range=0.05)
    input_ids, num_prompt_N = examples()
    expected_N = defined(model, input_ids, num_prompt_N)
    _, norm_N = normed(model.to(stored), input_ids, num_prompt_N, 100, dtype=torch.bfloat16)
    np.testing.assert_allclose(norm_N, expected_N, rtol=2e-2)
