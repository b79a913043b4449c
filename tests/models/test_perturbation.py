"""Perturbed models: noise that is added by hand is the oracle."""

import numpy as np
import pytest
import torch

from s2l_ray import hashing
from s2l_ray.models.perturbation import Noise, perturb
from tests import tiny


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def perturbed(noise, architecture="llama", **changes):
    model = tiny.model(architecture, **changes)
    perturb(model, noise)
    return model


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2"])
def test_noise_is_what_is_added_by_hand(architecture):
    noise = Noise(scale=0.25, seed=7, number=3)
    (key,) = hashing.mixed(np.array([3], np.uint64), 7)
    drawn = torch.Generator().manual_seed(int(key) // 2)

    expected = weights(tiny.model(architecture))
    for weight in expected.values():
        if weight.ndim > 1:
            z = torch.randn(weight.shape, generator=drawn)
            weight += 0.25 * float(np.std(weight.numpy().astype(np.float64))) * z

    found = weights(perturbed(noise, architecture))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-6, atol=1e-7)


def test_noise_has_the_size_that_was_asked_for_and_vectors_stay():
    before, after = weights(tiny.model()), weights(perturbed(Noise(0.1, 1, 1), "gpt_neox"))
    moved = {name: after[name] - before[name] for name in before}
    for name, difference in moved.items():
        if difference.ndim < 2:
            assert not difference.any()
        elif difference.numel() > 500:
            assert float(difference.std() / before[name].std()) == pytest.approx(0.1, rel=0.15)


def test_copies_differ_by_number_and_seed_and_the_same_noise_is_the_same_bits():
    kinds = [Noise(0.1, seed, number) for seed in (1, 2) for number in (1, 2)]
    first = [next(perturbed(noise).parameters()).flatten() for noise in kinds]
    again = next(perturbed(kinds[0]).parameters()).flatten()
    state = torch.get_rng_state()
    perturbed(kinds[0])
    assert torch.equal(first[0], again)
    assert len({tuple(values[:4].tolist()) for values in first}) == 4
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_that_are_shared_stay_shared():
    model = perturbed(Noise(0.1, 1, 1), tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    plain = tiny.model("llama", tie_word_embeddings=True)
    assert not torch.equal(model.lm_head.weight, plain.lm_head.weight)


def test_weights_keep_their_type():
    model = tiny.model("llama").to(torch.bfloat16)
    before = weights(model)
    perturb(model, Noise(0.1, 1, 1))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not torch.equal(next(iter(before.values())), next(model.parameters()))
