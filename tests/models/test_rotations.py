"""Rotations that depend on the length. Oracle: transformers on one row at a time, with a model that
has read no other row."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from s2l_ray.models import scoring
from s2l_ray.models.rotations import ANY_LENGTH, Regimes, forget_lengths, regimes
from tests import tiny
from tests.models.test_response_ranges import CPU, labels

LIMIT = 20
THETA = {"rope_theta": 1e4}
DYNAMIC = {
    "rope_parameters": THETA | {"rope_type": "dynamic", "factor": 8.0},
    "max_position_embeddings": LIMIT,
}
LONGROPE = {
    "rope_parameters": THETA
    | {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.5, 1.0, 2.0],
        "long_factor": [4.0, 2.0, 9.0, 16.0],
        "original_max_position_embeddings": LIMIT,
    },
    "max_position_embeddings": 512,
}
LINEAR = {"rope_parameters": THETA | {"rope_type": "linear", "factor": 2.0}}


def rows_around_the_limit():
    rng = np.random.default_rng(4)
    lengths = [5, 19, 20, 20, 21, 21, 22, 30, 31, 31, 31, 60, 12, 21]
    input_ids = [rng.integers(0, 256, length).astype(np.int32) for length in lengths]
    learned = [rng.random(length) < 0.4 for length in lengths]
    for row in learned:
        row[len(row) // 2] = True
    return input_ids, learned


def alone(make, ids, is_learned):
    tokens = torch.tensor(ids.astype(np.int64))[None]
    with torch.no_grad():
        return make()(input_ids=tokens, labels=labels(ids, is_learned)[None]).loss.item()


def scorer(model, tokens_per_batch, **changes):
    options = {"dtype": torch.float32, "device": CPU, "tokens_per_batch": tokens_per_batch}
    return scoring.Scorer(model, **options | changes)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("changes", [DYNAMIC, LONGROPE, LINEAR])
def test_a_loss_does_not_depend_on_the_batch(architecture, changes):
    def make():
        return tiny.model(architecture, **changes)

    input_ids, learned = rows_around_the_limit()
    expected_N = [alone(make, *row) for row in zip(input_ids, learned, strict=True)]
    model, shapes = make(), []
    model.register_forward_pre_hook(
        lambda _module, _args, inputs: shapes.append(inputs["input_ids"].shape), with_kwargs=True
    )

    for tokens_per_batch in (10_000, 64, 1):
        for embed in (None, torch.clone):
            found = scorer(model, tokens_per_batch, embed=embed).score(input_ids, learned)
            np.testing.assert_allclose(found.loss_N, expected_N, rtol=1e-5, atol=1e-5)

    # Rows do share batches, up to the limit and beyond it.
    together = {shape[1] for shape in shapes if shape[0] > 1}
    assert min(together) <= LIMIT < max(together)


@pytest.mark.parametrize("changes", [DYNAMIC, LONGROPE])
def test_without_regimes_a_long_row_would_change_a_short_one(changes):
    """The trouble is there: one plain batch of transformers."""
    model = tiny.model("llama", **changes)
    input_ids, _ = rows_around_the_limit()
    short, long = (torch.tensor(input_ids[row].astype(np.int64)) for row in (0, 11))
    batch = torch.zeros(2, 60, dtype=torch.int64)
    batch[0, :5], batch[1] = short, long
    with torch.no_grad():
        among = model(input_ids=batch).logits[0, :5]
        by_itself = model(input_ids=short[None]).logits[0]
    assert (among - by_itself).abs().max() > 1e-3


def test_a_long_row_is_forgotten():
    model = tiny.model("llama", **DYNAMIC)
    ids = torch.arange(25)[None]
    with torch.no_grad():
        fresh = model(input_ids=ids).logits
        model(input_ids=torch.arange(60)[None])
        assert not torch.allclose(model(input_ids=ids).logits, fresh)
        forget_lengths(model)
        torch.testing.assert_close(model(input_ids=ids).logits, fresh)


def test_regimes_of_lengths():
    num_tokens_N = np.array([1, 20, 21, 22, 21])
    assert ANY_LENGTH.of(num_tokens_N).tolist() == [0] * 5
    assert Regimes(two_sets_after=20).of(num_tokens_N).tolist() == [0, 0, 1, 1, 1]
    assert Regimes(each_length_after=20).of(num_tokens_N).tolist() == [0, 0, 21, 22, 21]
    assert not ANY_LENGTH.depend_on_length


def test_regimes_are_read_from_the_configuration():
    def of(kind, **values):
        return regimes(AutoConfig.for_model(kind, **values))

    assert of("llama", **DYNAMIC) == Regimes(each_length_after=LIMIT)
    assert of("llama", **LONGROPE) == Regimes(two_sets_after=LIMIT)
    assert of("llama", **LINEAR) == of("gpt2") == of("rwkv") == ANY_LENGTH
    # Phi-3 keeps the limit outside of its parameters, and older files name the kind in another way.
    scaling = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    old = {"rope_scaling": scaling, "original_max_position_embeddings": 4096}
    assert of("phi3", max_position_embeddings=131_072, **old) == Regimes(two_sets_after=4096)
    # One kind of rotation for each kind of layer.
    by_layer = {"full_attention": DYNAMIC["rope_parameters"], "sliding_attention": None}
    of_layers = of("gemma3_text", rope_parameters=by_layer, max_position_embeddings=64)
    assert of_layers == Regimes(each_length_after=64)
