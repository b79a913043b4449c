"""Oracle: one row at a time, the last of transformers' own hidden states, weighted as defined."""

import numpy as np
import pytest
import torch

from s2l_ray.errors import ModelError
from s2l_ray.models import scoring
from tests import tiny
from tests.models.test_scoring import examples, score, scores
from tests.models.test_shared_prefix import MIN_SAVED, NOT_ALL_KEPT, rows_of_two_templates


def defined_embedding(model, ids):
    """The sum over all tokens of i / (1 + ... + L) times the last hidden state at token i."""
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    weights = [(place + 1) / (len(ids) * (len(ids) + 1) / 2) for place in range(len(ids))]
    return sum(
        weight * state for weight, state in zip(weights, states[-1][0].double(), strict=True)
    ).numpy()


def embedded(model, input_ids, num_prompt_N, tokens_per_batch, **changes):
    """Scores, and embeddings in the order of the examples, each measured exactly once."""
    num_embedded = 0

    def embed(mean_BH):
        nonlocal num_embedded
        assert mean_BH.dtype == torch.float32
        num_embedded += len(mean_BH)
        # A row that no batch had would be all zeros.
        assert mean_BH.any(dim=1).all()
        return mean_BH

    found = scores(model, input_ids, num_prompt_N, tokens_per_batch, embed=embed, **changes)
    assert num_embedded == len(input_ids) == len(found.embedding_NH)
    assert found.embedding_NH.any(dim=1).all()
    return found, found.embedding_NH.cpu().numpy()


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_embeddings_are_those_of_the_definition_in_any_batch(architecture):
    model = tiny.model(architecture)
    input_ids, num_prompt_N = examples(9)
    expected_NH = [defined_embedding(model, ids.tolist()) for ids in input_ids]

    for tokens_per_batch in (1, 100):
        found, mean_NH = embedded(model, input_ids, num_prompt_N, tokens_per_batch)
        np.testing.assert_allclose(mean_NH, expected_NH, rtol=1e-4, atol=1e-5)
    plain_N = score(model, input_ids, num_prompt_N)
    np.testing.assert_allclose(found.loss_N, plain_N, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_tokens_that_rows_share_count_in_each_of_their_embeddings(architecture):
    model = tiny.model(architecture)
    input_ids, num_prompt_N = rows_of_two_templates()
    expected_NH = [defined_embedding(model, ids.tolist()) for ids in input_ids]

    found, mean_NH = embedded(model, input_ids, num_prompt_N, MIN_SAVED)

    np.testing.assert_allclose(mean_NH, expected_NH, rtol=1e-4, atol=1e-5)
    # Else this would say nothing: rows that are read whole need no sum of what they share.
    assert (scoring.PROMPTS_READ_WHOLE in found.notes) == (architecture in NOT_ALL_KEPT)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_bfloat16_embeddings_are_near_those_of_float32(stored):
    model = tiny.model(initializer_range=0.05)
    input_ids, num_prompt_N = rows_of_two_templates()
    expected_NH = np.array([defined_embedding(model, ids.tolist()) for ids in input_ids])

    model = model.to(stored)
    _, mean_NH = embedded(model, input_ids, num_prompt_N, MIN_SAVED, dtype=torch.bfloat16)

    error_N = np.linalg.norm(mean_NH - expected_NH, axis=1)
    assert (error_N < 2e-2 * np.linalg.norm(expected_NH, axis=1)).all()


def test_the_last_token_is_in_the_mean_and_not_in_the_loss():
    model = tiny.model()
    input_ids, num_prompt_N = examples(5)
    with torch.no_grad():
        model.get_input_embeddings().weight[256] *= 2
    found, mean_NH = embedded(model, input_ids, num_prompt_N, 100)
    other, other_NH = embedded(tiny.model(), input_ids, num_prompt_N, 100)

    assert all(ids[-1] == 256 and 256 not in ids[:-1] for ids in input_ids)
    np.testing.assert_allclose(found.loss_N, other.loss_N, rtol=1e-5)
    assert (np.abs(mean_NH - other_NH).max(axis=1) > 1e-3).all()


def test_a_model_that_hides_its_output_layer_has_no_embeddings(monkeypatch):
    model = tiny.model()
    scoring.check_embeds(model)
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    input_ids, num_prompt_N = examples(3)
    assert np.isfinite(score(model, input_ids, num_prompt_N)).all()
    with pytest.raises(ModelError, match=r"GPTNeoXForCausalLM: .* trajectories\.embeddings: false"):
        scoring.check_embeds(model)


def test_an_output_layer_that_is_given_rows_one_after_the_other_has_no_embeddings(monkeypatch):
    model = tiny.model()
    layer = model.get_output_embeddings()

    class Flattening(torch.nn.Module):
        def forward(self, hidden_BLH):
            return layer(hidden_BLH.flatten(0, 1)[None]).view(*hidden_BLH.shape[:2], -1)

    monkeypatch.setattr(model, "lm_head", Flattening())
    monkeypatch.setattr(model, "get_output_embeddings", lambda: layer)
    with pytest.raises(ModelError, match="hidden states of all positions"):
        scoring.check_embeds(model)


def test_without_embeddings_no_token_more_is_read_and_no_hook_is_left():
    model, read = tiny.model(), []
    input_ids, num_prompt_N = examples(6)
    handle = model.register_forward_pre_hook(
        lambda _module, _args, inputs: read.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    score(model, input_ids, num_prompt_N, 1)
    without, read[:] = read[1:], []
    embedded(model, input_ids, num_prompt_N, 1)
    handle.remove()
    assert [width + 1 for width in without] == read[1:]
    assert not model.get_output_embeddings()._forward_pre_hooks
