"""Oracle: the whole model run again on one row for every new token, and the largest logit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from s2l_ray.errors import ModelError
from s2l_ray.models import generation
from tests import tiny

PROMPTS = [
    list(text.encode()) for text in ("a longer prompt of some words", "b", "some words", "c d")
]


def greedy_tokens(model, prompt, max_new_tokens):
    ids = list(prompt)
    while len(ids) < len(prompt) + max_new_tokens:
        with torch.no_grad():
            token = model(torch.tensor([ids])).logits[0, -1].argmax().item()
        if token == 256:
            break
        ids.append(token)
    return ids[len(prompt) :]


def generate(model, prompts=PROMPTS, **changes):
    options = {
        "max_new_tokens": 12,
        "rows_per_batch": 3,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
    }
    reports = {"on_batch": changes.pop("on_batch")} if "on_batch" in changes else {}
    generator = generation.Generator(model, tiny.tokenizer(), **options | changes)
    return generator.generate(prompts, **reports)


def answer_alone(model, prompt, max_new_tokens=12):
    """Oracle: transformers' own generation, for a single prompt."""
    own = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=256, pad_token_id=256, max_new_tokens=max_new_tokens
    )
    ids = model.generate(torch.tensor([prompt]))[0, len(prompt) :].tolist()
    model.generation_config = own
    kept = ids[: ids.index(256)] if 256 in ids else ids
    return tiny.tokenizer().decode(kept, skip_special_tokens=True)


SEQ2SEQ = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 512,
    "init_std": 0.3,
}
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2}
HEADS = SHAPE | {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32}
OTHERS = {
    "bart": SEQ2SEQ,
    "pegasus": SEQ2SEQ,
    "rwkv": SHAPE | {"attention_hidden_size": 16, "context_length": 512, "intermediate_size": 32},
    "mamba": SHAPE | {"state_size": 4},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "biogpt": HEADS | {"max_position_embeddings": 512},
    "lfm2": HEADS | {"layer_types": ["conv", "full_attention"]},
    "recurrent_gemma": HEADS
    | {"num_hidden_layers": 3, "lru_width": 16, "attention_window_size": 8},
}
"""Positions counted over the padding, states, biases instead of positions."""


@pytest.mark.parametrize("architecture", OTHERS)
def test_responses_of_models_of_other_kinds_equal_one_prompt_at_a_time(architecture):
    model = tiny.made(architecture, OTHERS[architecture])
    prompts = [*PROMPTS, b"more words", b"e f"]
    texts = generate(model, [list(prompt) for prompt in prompts])
    assert texts == [answer_alone(model, list(prompt)) for prompt in prompts]


ROTATED = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}


@pytest.mark.parametrize("rows_per_batch", [3, 100])
def test_a_rotation_that_depends_on_the_longest_row_changes_no_response(rows_per_batch):
    model = tiny.model("llama", max_position_embeddings=16, rope_parameters=ROTATED)
    prompts = [list(text) for text in (b"abcdefg", b"hijklmn", b"a", b"c", b"opqrs")]
    texts = generate(model, prompts, rows_per_batch=rows_per_batch, max_new_tokens=9)
    assert texts == [answer_alone(model, prompt, 9) for prompt in prompts]


MODELS = {
    "gpt2": tiny.model("gpt2", n_positions=24),
    "llama": tiny.model("llama"),
    "bart": tiny.made("bart", OTHERS["bart"] | {"max_position_embeddings": 24}),
    "rwkv": tiny.made("rwkv", OTHERS["rwkv"]),
}


@settings(max_examples=12)
@given(
    st.sampled_from(sorted(MODELS)),
    st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=6),
    st.integers(1, 6),
)
def test_a_response_depends_on_its_prompt_alone(architecture, prompts, rows_per_batch):
    model = MODELS[architecture]
    prompts = [list(prompt) for prompt in prompts]
    texts = generate(model, prompts, rows_per_batch=rows_per_batch)
    limit = 24 if architecture in ("gpt2", "bart") else 512
    assert texts == [answer_alone(model, ids, min(12, limit - len(ids))) for ids in prompts]


@given(
    st.lists(st.integers(1, 9), max_size=30),
    st.integers(1, 5),
    st.integers(0, 9),
)
def test_batches_hold_every_row_once_and_pad_only_what_may_be_padded(lengths, rows, longest):
    length_N = np.array(lengths, dtype=np.int64)
    batches = generation.plan_batches(length_N, rows, longest_padded=longest)

    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= rows
        assert len(set(length_N[batch])) == 1 or length_N[batch].max() <= longest
    together = generation.plan_batches(length_N, rows, longest_padded=9)
    assert len(together) == -(-len(lengths) // rows)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("rows_per_batch", [1, 3, 100])
def test_responses_equal_one_prompt_at_a_time(architecture, rows_per_batch):
    model = tiny.model(architecture)
    tokens = [greedy_tokens(model, prompt, 12) for prompt in PROMPTS]
    texts = generate(model, rows_per_batch=rows_per_batch)
    assert texts == [tiny.tokenizer().decode(ids, skip_special_tokens=True) for ids in tokens]


def always(token, **changes):
    """A model that answers `token` to everything."""
    model = tiny.model("gpt2", **changes)
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.fill_(1.0)
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
        model.lm_head.weight[token] = 1.0
    return model


def test_a_response_ends_before_the_end_of_sequence():
    assert generate(always(256)) == [""] * 4


def test_a_response_ends_at_the_models_own_end_tokens_too():
    model = always(ord("x"))
    assert generate(model) == ["x" * 12] * 4
    model.generation_config.eos_token_id = [5, ord("x")]
    assert generate(model) == [""] * 4


def test_sampling_and_penalties_of_the_model_are_not_used():
    model = always(ord("x"))
    own = model.generation_config
    own.update(do_sample=True, temperature=9.0, repetition_penalty=9.0, no_repeat_ngram_size=1)
    assert generate(model) == ["x" * 12] * 4
    assert model.generation_config is own and own.temperature == 9.0


def test_a_response_ends_where_the_positions_do():
    model = always(ord("x"), n_positions=32)
    assert [len(text) for text in generate(model, rows_per_batch=1)] == [3, 12, 12, 12]


def test_the_positions_that_a_long_prompt_leaves_limit_its_own_response_only():
    model = always(ord("x"), n_positions=32)
    assert [len(text) for text in generate(model, rows_per_batch=100)] == [3, 12, 12, 12]


def test_prompts_without_room_for_an_answer_are_refused():
    model = always(ord("x"), n_positions=10)
    with pytest.raises(ModelError, match=r"2 of 4 prompts fill all 10 positions .*0: 0, 2\)"):
        generate(model)


def test_no_prompts_have_no_responses_and_batches_are_reported():
    counts = []
    assert generate(tiny.model(), [], on_batch=counts.append) == []
    generate(tiny.model(), on_batch=counts.append)
    assert counts == [3, 1]
