"""Oracle: the definition, one example at a time, for rows that begin alike."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from s2l_ray.models import scoring, shared_prefix
from tests import tiny
from tests.models.test_scoring import defined_loss, score, scores

NOT_ALL_KEPT = ("gemma2", "mistral")
"""Their sliding windows forget what is too far away."""
MIN_SAVED = 60


def rows_of_two_templates():
    """Twelve rows begin with one sequence of 30 tokens, nine with another of 20, two with none."""
    rng = np.random.default_rng(3)
    templates = [rng.integers(0, 256, 30), rng.integers(0, 256, 20), rng.integers(0, 256, 0)]
    found, num_prompt = [], []
    for row in range(23):
        template = templates[min(row // 3 % 2 if row < 21 else 2, 2)]
        prompt, response = rng.integers(1, 12), rng.integers(1, 25)
        own = rng.integers(0, 256, prompt + response)
        own[0] = row  # no two rows share more than their template
        found.append(np.concatenate([template, own]).astype(np.int32))
        num_prompt.append(len(template) + prompt)
    return found, np.array(num_prompt)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_rows_that_begin_alike_have_the_losses_of_the_definition(architecture):
    model = tiny.model(architecture)
    input_ids, num_prompt_N = rows_of_two_templates()
    expected_N = [
        defined_loss(model, ids.tolist(), num)
        for ids, num in zip(input_ids, num_prompt_N, strict=True)
    ]
    read = []
    handle = model.register_forward_pre_hook(
        lambda _module, _args, inputs: read.append(inputs["input_ids"].shape), with_kwargs=True
    )
    loss_N = score(model, input_ids, num_prompt_N, MIN_SAVED)
    handle.remove()

    np.testing.assert_allclose(loss_N, expected_N, rtol=1e-5, atol=1e-5)
    if architecture not in NOT_ALL_KEPT:
        # Beside the two templates and the two rows tried in both ways, only what rows add is read.
        assert sum(shape[1] > 37 for shape in read) <= 4
        assert [shape for shape in read if shape in ((1, 30), (1, 20))] == [(1, 30), (1, 20)]


def test_rows_are_put_with_those_that_begin_alike():
    input_ids, num_prompt_N = rows_of_two_templates()
    first, second, alone = shared_prefix.groups(input_ids, num_prompt_N, min_saved=MIN_SAVED)

    assert (first.num_shared, len(first.row_G)) == (30, 12)
    assert (second.num_shared, len(second.row_G)) == (20, 9)
    assert (alone.num_shared, alone.row_G.tolist()) == (0, [21, 22])


def test_what_saves_too_little_is_not_shared():
    input_ids, num_prompt_N = rows_of_two_templates()
    first, alone = shared_prefix.groups(input_ids, num_prompt_N, min_saved=161)
    assert (first.num_shared, len(alone.row_G)) == (30, 11)
    assert alone.row_G.tolist() == sorted(alone.row_G)
    (alone,) = shared_prefix.groups(input_ids, num_prompt_N, min_saved=331)
    assert alone.num_shared == 0 and alone.row_G.tolist() == list(range(23))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(1, 30), st.integers(1, 5), st.integers(0, 1)),
        max_size=30,
    ),
    st.integers(1, 50),
)
def test_every_row_is_in_one_group_that_it_begins_like(shapes, min_saved):
    input_ids = [
        np.concatenate([np.full(same, 7), np.full(prompt, own), np.zeros(response)])
        for same, prompt, response, own in shapes
    ]
    num_prompt_N = np.array([same + prompt for same, prompt, _, _ in shapes], dtype=np.int64)
    found = shared_prefix.groups(input_ids, num_prompt_N, min_saved=min_saved)

    rows = [row for group in found for row in group.row_G.tolist()]
    assert sorted(rows) == list(range(len(shapes)))
    for group in found:
        beginnings = {input_ids[row][: group.num_shared].tobytes() for row in group.row_G}
        assert len(beginnings) == 1
        assert (num_prompt_N[group.row_G] > group.num_shared).all()
        assert not group.num_shared or (len(group.row_G) - 1) * group.num_shared >= min_saved


@pytest.mark.parametrize("architecture", NOT_ALL_KEPT)
def test_a_sliding_window_is_no_past(architecture):
    assert (
        shared_prefix.read(tiny.model(architecture), torch.arange(20))
        == shared_prefix.NOTHING_BEFORE
    )


def test_keys_that_depend_on_the_length_of_the_row_are_not_shared():
    rotary = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    model = tiny.model("llama", rope_parameters=rotary)
    assert shared_prefix.read(model, torch.arange(20)) == shared_prefix.NOTHING_BEFORE
    assert shared_prefix.read(tiny.model("llama"), torch.arange(20)).num_tokens == 20


def test_a_past_that_changes_a_loss_is_not_used(monkeypatch):
    model = tiny.model()
    input_ids, num_prompt_N = rows_of_two_templates()
    expected_N = score(model, input_ids, num_prompt_N, 10_000)
    read = shared_prefix.read
    monkeypatch.setattr(shared_prefix, "read", lambda model, ids_P: read(model, ids_P.flip(0)))

    found = scores(model, input_ids, num_prompt_N, MIN_SAVED)
    assert list(found.notes) == [scoring.PROMPTS_READ_WHOLE] * 2
    np.testing.assert_allclose(found.loss_N, expected_N, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["mamba", "jamba"])
def test_models_without_keys_and_values_are_read_row_by_row(kind):
    """Recurrent layers alone, and a hybrid none of whose layers is one of attention."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 258}
    changes = {
        "mamba": {"state_size": 4, "pad_token_id": 0},
        "jamba": {
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "attn_layer_period": 8,
            "attn_layer_offset": 7,
            "num_experts": 2,
            "mamba_d_state": 4,
            "pad_token_id": 0,
        },
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **sizes | changes[kind])
    model = AutoModelForCausalLM.from_config(config).eval()
    model.config.use_cache = False  # transformers cannot make one for such a hybrid
    input_ids, num_prompt_N = rows_of_two_templates()
    expected_N = [
        defined_loss(model, ids.tolist(), num)
        for ids, num in zip(input_ids, num_prompt_N, strict=True)
    ]

    found = scores(model, input_ids, num_prompt_N, MIN_SAVED)

    np.testing.assert_allclose(found.loss_N, expected_N, rtol=1e-4, atol=1e-5)
    slow_ways = scoring.PROMPTS_READ_WHOLE, scoring.PROMPTS_NOT_SHARED
    assert sum(note.startswith(slow_ways) for note in found.notes) == 2


@pytest.mark.parametrize("fails_at", ["the template", "the rest of a row"])
def test_any_failure_to_share_means_the_slow_way_and_a_note(fails_at):
    class Broken(type(tiny.model("llama"))):
        def forward(self, *args, use_cache=None, past_key_values=None, **inputs):
            reads_template = use_cache and past_key_values is None
            if use_cache and reads_template == (fails_at == "the template"):
                raise IndexError("list index\nout of range")
            return super().forward(
                *args, use_cache=use_cache, past_key_values=past_key_values, **inputs
            )

    model = tiny.model("llama")
    input_ids, num_prompt_N = rows_of_two_templates()
    expected_N = score(model, input_ids, num_prompt_N, 10_000)
    model.__class__ = Broken

    found = scores(model, input_ids, num_prompt_N, MIN_SAVED)

    np.testing.assert_allclose(found.loss_N, expected_N, rtol=1e-5, atol=1e-5)
    note = f"{scoring.PROMPTS_NOT_SHARED} (IndexError: list index out of range)"
    assert list(found.notes) == [note] * 2


def test_bfloat16_shares_too():
    model = tiny.model(initializer_range=0.05)
    input_ids, num_prompt_N = rows_of_two_templates()
    expected_N = score(model, input_ids, num_prompt_N, 10_000)
    loss_N = score(model, input_ids, num_prompt_N, MIN_SAVED, dtype=torch.bfloat16)
    np.testing.assert_allclose(loss_N, expected_N, rtol=2e-2)
