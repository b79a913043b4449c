"""Oracle: one example at a time, all its logits, plain cross-entropy of the response."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ray.models import batch_plan, output_layer, scoring
from tests import tiny

CPU = torch.device("cpu")
CHANGED_LOGITS = ("gemma2", "granite", "cohere")
"""Soft-capped or scaled after the output layer."""


def defined_loss(model, ids, num_prompt_tokens):
    """Mean nats over the response tokens, as it is defined, for one example."""
    with torch.no_grad():
        logits_LV = model(torch.tensor([ids])).logits[0].float()
    predicted_MV = logits_LV[num_prompt_tokens - 1 : -1]
    return F.cross_entropy(predicted_MV, torch.tensor(ids[num_prompt_tokens:])).item()


def examples(num_examples=17, longest=40):
    rng = np.random.default_rng(0)
    num_tokens_N = rng.integers(2, longest, num_examples)
    input_ids = [rng.integers(0, 256, num).astype(np.int32) for num in num_tokens_N]
    for ids in input_ids:
        ids[-1] = 256
    return input_ids, rng.integers(1, num_tokens_N)


def scores(model, input_ids, num_prompt_tokens_N, tokens_per_batch=100, on_batch=None, **changes):
    """The scores of a float32 scorer on the CPU, whose batches are told to `on_batch`."""
    options = {"dtype": torch.float32, "device": CPU, "tokens_per_batch": tokens_per_batch}
    scorer = scoring.Scorer(model, **options | changes)
    reports = {} if on_batch is None else {"on_batch": on_batch}
    learned = scoring.after_prompts(input_ids, num_prompt_tokens_N)
    return scorer.score(input_ids, learned, **reports)


def score(*examples, **changes):
    """The losses alone."""
    return scores(*examples, **changes).loss_N


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_scores_equal_the_definition(architecture):
    model = tiny.model(architecture)
    input_ids, num_prompt_tokens_N = examples()
    expected_N = [
        defined_loss(model, ids.tolist(), num)
        for ids, num in zip(input_ids, num_prompt_tokens_N, strict=True)
    ]
    for tokens_per_batch in (1, 100, 10_000):
        found = scores(model, input_ids, num_prompt_tokens_N, tokens_per_batch)
        np.testing.assert_allclose(found.loss_N, expected_N, rtol=1e-5, atol=1e-5)
        assert (scoring.LOGITS_IN_CHUNKS in found.notes) == (architecture in CHANGED_LOGITS)
    assert found.loss_N.dtype == np.float32


@pytest.mark.parametrize("architecture", ["gpt2", "phi"])
def test_dropout_is_off_while_scoring_and_the_mode_is_kept(architecture):
    model = tiny.model(architecture, resid_pdrop=0.5, embd_pdrop=0.5)
    input_ids, num_prompt_tokens_N = examples(5)
    expected_N = score(model, input_ids, num_prompt_tokens_N)

    model.train()
    np.testing.assert_array_equal(score(model, input_ids, num_prompt_tokens_N), expected_N)
    assert model.training


def test_the_order_of_examples_does_not_matter():
    model = tiny.model()
    input_ids, num_prompt_tokens_N = examples()
    order_N = np.random.default_rng(1).permutation(len(input_ids))
    shuffled = [input_ids[row] for row in order_N]

    loss_N = score(model, input_ids, num_prompt_tokens_N)
    np.testing.assert_allclose(
        score(model, shuffled, num_prompt_tokens_N[order_N]), loss_N[order_N], rtol=1e-5
    )


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_bfloat16_scores_are_near_those_of_float32(stored):
    model = tiny.model(initializer_range=0.05)
    input_ids, num_prompt_tokens_N = examples()
    expected_N = score(model, input_ids, num_prompt_tokens_N)
    loss_N = score(model.to(stored), input_ids, num_prompt_tokens_N, dtype=torch.bfloat16)
    np.testing.assert_allclose(loss_N, expected_N, rtol=2e-2)


def test_a_bfloat16_model_is_not_scored_in_float32():
    with pytest.raises(AssertionError, match=r"bfloat16 weights cannot run in torch\.float32"):
        score(tiny.model().bfloat16(), *examples())


def test_every_batch_is_reported():
    counts = []
    score(tiny.model(), *examples(), on_batch=counts.append)
    assert sum(counts) == 17 and len(counts) > 1


def test_no_examples_have_no_scores():
    assert score(tiny.model(), [], np.zeros(0, dtype=np.int32)).shape == (0,)


def test_an_example_without_response_tokens_is_our_bug():
    with pytest.raises(AssertionError, match="needs a response token"):
        score(tiny.model(), [np.arange(4)], np.array([4]))


def test_without_prompt_tokens_the_first_token_has_no_loss():
    model, ids = tiny.model(), np.arange(5)
    loss_N = score(model, [ids, ids], np.array([0, 1]))
    np.testing.assert_allclose(loss_N, defined_loss(model, ids.tolist(), 1), rtol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "changes", "expected"),
    [
        *((name, {}, name not in CHANGED_LOGITS) for name in tiny.ARCHITECTURES),
        ("gemma2", {"final_logit_softcapping": None}, True),
        ("granite", {"logits_scaling": 1.0}, True),
        ("cohere", {"logit_scale": 1.0}, True),
    ],
)
def test_what_a_model_does_to_its_logits_is_noticed(architecture, changes, expected):
    model = tiny.model(architecture, **changes)
    with torch.inference_mode():
        assert output_layer.ends_in_a_linear_layer(model) is expected


class Wrapped(torch.nn.Module):
    """As DDP and DeepSpeed do: the model is `module`, and the wrapper is what is called."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, **inputs):
        return self.module(**inputs)


@pytest.mark.parametrize(
    "wrap", [lambda model: model, Wrapped, lambda model: Wrapped(Wrapped(model))]
)
def test_response_logits_and_gradients_are_the_full_ones_at_the_mask(wrap):
    model = tiny.model("gemma2")
    input_ids_BL = torch.randint(256, (3, 9), generator=torch.Generator().manual_seed(0))
    mask_BL = input_ids_BL % 2 == 0
    expected_MV = model(input_ids_BL).logits[mask_BL]
    (expected_grad,) = torch.autograd.grad(expected_MV.square().sum(), model.lm_head.weight)

    logits_MV = output_layer.response_logits(wrap(model), input_ids_BL, mask_BL)
    (grad,) = torch.autograd.grad(logits_MV.square().sum(), model.lm_head.weight)

    torch.testing.assert_close(logits_MV, expected_MV)
    torch.testing.assert_close(grad, expected_grad)


def test_the_output_layer_sees_response_positions_only_and_keeps_no_hook():
    model = tiny.model()
    seen = []
    handle = model.lm_head.register_forward_hook(lambda *call: seen.append(call[2].shape))
    mask_BL = torch.tensor([[False, True, True], [True, False, False]])
    output_layer.response_logits(model, torch.zeros(2, 3, dtype=torch.int64), mask_BL)
    handle.remove()
    assert seen == [(1, 3, tiny.NUM_TOKENS)]
    assert not model.lm_head._forward_pre_hooks


def test_a_model_that_hides_its_output_layer_computes_all_logits(monkeypatch):
    model = tiny.model()
    input_ids_BL = torch.arange(6).reshape(2, 3)
    mask_BL = torch.tensor([[False, True, True], [True, False, False]])
    expected_MV = output_layer.response_logits(model, input_ids_BL, mask_BL)
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    logits_MV = output_layer.response_logits(model, input_ids_BL, mask_BL)
    torch.testing.assert_close(logits_MV, expected_MV)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), max_size=40),
    st.integers(1, 200),
    st.integers(1, 100),
)
def test_batches_hold_every_row_once_within_both_limits(lengths, tokens_per_batch, most):
    num_response_N = np.array([num for num, _ in lengths], dtype=np.int64)
    num_tokens_N = num_response_N + np.array([num for _, num in lengths], dtype=np.int64)
    batches = batch_plan.plan_batches(
        num_tokens_N, num_response_N, tokens_per_batch=tokens_per_batch, max_logit_rows=most
    )
    planned = np.concatenate(batches).tolist() if batches else []
    assert planned == sorted(range(len(lengths)), key=lambda row: (num_tokens_N[row], row))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * num_tokens_N[rows].max() <= tokens_per_batch
        assert len(rows) == 1 or num_response_N[rows].sum() <= most


def test_logits_of_the_allowed_rows_fit_the_allowed_bytes():
    assert batch_plan.max_logit_rows(50_304) == 1_334
    assert batch_plan.max_logit_rows(50_304, max_bytes=1) == 1
