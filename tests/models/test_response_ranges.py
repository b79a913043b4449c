"""Several ranges of response tokens. Oracle: transformers' own loss, one row at a time, with the
label -100 outside the ranges."""

import numpy as np
import pytest
import torch

from s2l_ray.models import scoring
from tests import tiny
from tests.models.test_scoring import CPU
from tests.models.test_shared_prefix import MIN_SAVED, rows_of_two_templates


def chats(num_rows=15):
    """Rows with up to four ranges: some begin at the first token, some end before the last."""
    rng = np.random.default_rng(5)
    input_ids, learned = [], []
    for _ in range(num_rows):
        length = rng.integers(6, 40)
        input_ids.append(rng.integers(0, 256, length).astype(np.int32))
        bounds = np.sort(rng.choice(length + 1, 2 * rng.integers(1, min(4, length // 2)), False))
        is_learned = np.zeros(length, bool)
        for start, end in bounds.reshape(-1, 2):
            is_learned[start:end] = True
        is_learned[length // 2] |= not is_learned[1:].any()
        learned.append(is_learned)
    return input_ids, learned


def labels(ids, is_learned):
    return torch.where(torch.tensor(is_learned), torch.tensor(ids.astype(np.int64)), -100)


def loss_by_labels(model, ids, is_learned):
    tokens = torch.tensor(ids.astype(np.int64))[None]
    with torch.no_grad():
        return model(input_ids=tokens, labels=labels(ids, is_learned)[None]).loss.item()


def norm_by_gradient(model, ids, is_learned):
    """The mean length of the gradient of each token's loss with respect to its logits."""
    tokens = torch.tensor(ids.astype(np.int64))
    with torch.no_grad():
        logits_LV = model(input_ids=tokens[None]).logits[0].float()
    norms = []
    for place in np.flatnonzero(is_learned):
        if place > 0:
            logits_V = logits_LV[place - 1].clone().requires_grad_()
            torch.nn.functional.cross_entropy(logits_V, tokens[place]).backward()
            norms.append(logits_V.grad.norm().item())
    return np.mean(norms)


def scored(model, input_ids, learned, tokens_per_batch, **changes):
    options = {"dtype": torch.float32, "device": CPU, "tokens_per_batch": tokens_per_batch}
    return scoring.Scorer(model, **options | changes).score(input_ids, learned)


def assert_as_labels_say(found, model, input_ids, learned):
    expected_N = [loss_by_labels(model, *row) for row in zip(input_ids, learned, strict=True)]
    np.testing.assert_allclose(found.loss_N, expected_N, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["gpt_neox", "gemma2", "mixtral"])
def test_losses_are_over_the_tokens_of_all_ranges(architecture):
    model = tiny.model(architecture)
    input_ids, learned = chats()
    for tokens_per_batch in (1, 100, 10_000):
        found = scored(model, input_ids, learned, tokens_per_batch)
        assert_as_labels_say(found, model, input_ids, learned)


def test_norms_and_embeddings_go_with_the_ranges():
    model = tiny.model()
    input_ids, learned = chats()
    whole = [np.ones(len(ids), bool) for ids in input_ids]

    found = scored(model, input_ids, learned, 100, error_norms=True, embed=torch.clone)

    assert_as_labels_say(found, model, input_ids, learned)
    norms = [norm_by_gradient(model, *row) for row in zip(input_ids, learned, strict=True)]
    np.testing.assert_allclose(found.error_norm_N, norms, rtol=1e-4)
    # An embedding is of all tokens, whichever carry a loss.
    other = scored(model, input_ids, whole, 100, embed=torch.clone)
    torch.testing.assert_close(found.embedding_NH, other.embedding_NH)


@pytest.mark.parametrize("first_response", [25, 12, 1])
def test_shared_tokens_end_before_the_first_response(first_response):
    model = tiny.model("llama")
    input_ids, num_prompt_N = rows_of_two_templates()
    learned = scoring.after_prompts(input_ids, num_prompt_N)
    # A few-shot template whose answer is learned as well, before what is the row's own.
    learned[0][first_response : first_response + 2] = True
    for embed in (None, torch.clone):
        found = scored(model, input_ids, learned, MIN_SAVED, embed=embed)
        assert_as_labels_say(found, model, input_ids, learned)


def test_tokens_after_the_last_response_are_not_read():
    model = tiny.model()
    input_ids, read = [np.arange(30, dtype=np.int32)], []
    learned = [np.isin(np.arange(30), [4, 5, 9])]
    handle = model.register_forward_pre_hook(
        lambda _module, _args, inputs: read.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )

    found = scored(model, input_ids, learned, 100)

    handle.remove()
    assert max(read) == 9
    assert_as_labels_say(found, model, input_ids, learned)


def test_a_row_without_a_predicted_token_is_refused():
    learned = [np.array([True, False, False])]
    with pytest.raises(AssertionError, match="something predicts"):
        scored(tiny.model(), [np.arange(3)], learned, 100)
