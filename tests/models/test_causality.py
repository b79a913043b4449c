"""Models that look ahead are refused; every causal one passes."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from s2l_ray.config.training import RandomModel
from s2l_ray.errors import ModelError
from s2l_ray.models import local_models
from s2l_ray.models.causality import check_causal, looks_ahead
from tests import tiny

SIZES = {
    "vocab_size": 258,
    "hidden_size": 32,
    "embedding_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


def encoder(kind, **changes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES | changes)).eval()


@pytest.mark.parametrize("kind", ["bert", "electra", "roberta", "roformer", "rembert"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_read_both_ways_are_refused(kind, dtype):
    # Weights as large as those of trained models: bfloat16 rounds away what newly made ones see.
    model = encoder(kind, initializer_range=0.1).to(dtype)
    with pytest.raises(ModelError, match=rf"{kind}\) is not causal: .* left to right"):
        check_causal(model)


def test_newly_made_models_that_read_both_ways_are_refused():
    assert looks_ahead(encoder("bert"))
    # The same model with a causal mask.
    assert not looks_ahead(encoder("bert", is_decoder=True))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_models_pass_and_stay_as_they_were(architecture, dtype):
    model = tiny.model(architecture).to(dtype).train()
    check_causal(model)
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())


def test_a_model_that_has_diverged_is_left_to_its_losses():
    model = tiny.model()
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.nan)
    check_causal(model)


def test_a_model_that_cannot_read_tokens_is_refused_with_its_words():
    model = encoder("xmod", languages=("en", "de"), num_attention_heads=2)
    with pytest.raises(ModelError, match=r"cannot read 8 tokens \(ValueError: Input language"):
        check_causal(model)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_architecture_alone_says_it(tmp_path, kind):
    AutoConfig.for_model(kind, **SIZES).save_pretrained(tmp_path)
    if kind == "llama":
        local_models.check_causal(str(tmp_path))
        local_models.check_causal("nobody/has-this-model-here")
        return
    with pytest.raises(ModelError, match="BertLMHeadModel"):
        local_models.check_causal(str(tmp_path))


def test_a_random_model_is_tried_as_well(tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path)
    shape = {name: size for name, size in SIZES.items() if name != "embedding_size"}
    spec = RandomModel(architecture={"model_type": "bert", **shape}, tokenizer=str(tmp_path))
    with pytest.raises(ModelError, match="is not causal"):
        local_models.check_causal(spec)
