"""Oracle: the whole model run again on one row for every new token, and the largest logit."""

import pytest
import torch

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


def test_prompts_without_room_for_an_answer_are_refused():
    model = always(ord("x"), n_positions=10)
    with pytest.raises(ModelError, match=r"2 of 4 prompts fill all 10 positions .*0: 0, 2\)"):
        generate(model)


def test_no_prompts_have_no_responses_and_batches_are_reported():
    counts = []
    assert generate(tiny.model(), [], on_batch=counts.append) == []
    generate(tiny.model(), on_batch=counts.append)
    assert counts == [3, 1]
