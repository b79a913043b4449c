"""Oracle: the operations that torch counts while a model computes."""

import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from s2l_ray.artifacts.amounts import Amount
from s2l_ray.config.sections import EvaluationConfig
from s2l_ray.config.training import LoraConfig, RandomModel
from s2l_ray.errors import ModelError
from s2l_ray.estimate import trial
from s2l_ray.evaluation.work import evaluation_work
from s2l_ray.models import dimensions, flops, local_models
from s2l_ray.models.generation import Generator
from s2l_ray.models.output_layer import response_logits
from s2l_ray.models.scoring import Scorer, after_prompts
from tests import tiny

ROWS, LENGTH, RESPONSE = 3, 40, 15
# The counter knows neither fused attention nor experts that are multiplied in one call.
COUNTABLE = {"attn_implementation": "eager", "experts_implementation": "eager"}

# Beside this many layers, what the output layer or an adapter adds is little.
LARGER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}


def countable(architecture="llama", **changes):
    return tiny.model(architecture, **COUNTABLE, **changes)


def forward(model):
    """Logits of the last RESPONSE positions of ROWS rows."""
    input_ids_BL = torch.randint(0, 200, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    mask_BL = (torch.arange(LENGTH) >= LENGTH - RESPONSE).expand(ROWS, LENGTH)
    return response_logits(model, input_ids_BL, mask_BL)


def counted(work) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def expected_forward(model) -> float:
    shape = dimensions.shape_of(model)
    tokens, logits = ROWS * LENGTH, ROWS * RESPONSE
    return flops.forward(shape, tokens=tokens, logits=logits, context=LENGTH)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_forward_pass_has_the_operations_that_torch_counts(architecture):
    model = countable(architecture)

    assert expected_forward(model) == pytest.approx(counted(lambda: forward(model)), rel=0.01)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_training_has_the_operations_that_torch_counts(architecture):
    model = countable(architecture).train()
    passes = flops.training_passes()

    found = counted(lambda: forward(model).sum().backward())

    assert passes * expected_forward(model) == pytest.approx(found, rel=0.01)


def test_recomputed_activations_cost_one_more_pass_through_the_layers():
    model = countable(**LARGER).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    passes = flops.training_passes(recomputed=True)

    found = counted(lambda: forward(model).sum().backward())

    # Neither the output layer nor the last product of a layer is recomputed.
    assert passes * expected_forward(model) == pytest.approx(found, rel=0.1)


def test_adapters_cost_one_pass_less():
    from s2l_ray.training import lora

    model = countable(**LARGER).train()
    expected = flops.training_passes(frozen=True) * expected_forward(model)
    lora.add_adapters(model, LoraConfig(rank=1), seed=0)

    found = counted(lambda: forward(model).sum().backward())

    assert expected == pytest.approx(found, rel=0.1)


def test_evaluation_has_the_operations_of_scoring_and_answering():
    model, tokenizer = countable(hidden_size=64), tiny.tokenizer()
    ids = [np.arange(row, row + LENGTH, dtype=np.int32) for row in range(ROWS)]
    prompts = [row[:-RESPONSE].tolist() for row in ids]
    on_cpu = {"dtype": torch.float32, "device": torch.device("cpu")}
    config = EvaluationConfig(sets=["held"], max_new_tokens=12)

    def evaluate():
        num_prompt_N = np.full(ROWS, LENGTH - RESPONSE)
        learned = after_prompts(ids, num_prompt_N)
        Scorer(model, tokens_per_batch=1_000, **on_cpu).score(ids, learned)
        generator = Generator(model, tokenizer, max_new_tokens=12, rows_per_batch=ROWS, **on_cpu)
        assert len(generator.generate(prompts)) == ROWS

    amount = Amount(ROWS, ROWS * LENGTH, ROWS * RESPONSE)
    work = evaluation_work(config, {"held": amount}, dimensions.shape_of(model))
    assert work.flops == pytest.approx(counted(evaluate), rel=0.1)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_sizes_of_a_saved_model_are_known_without_its_weights(tmp_path, architecture):
    tiny.save(tmp_path / "model", architecture)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")

    assert local_models.shape(str(tmp_path / "model")) == dimensions.shape_of(
        tiny.model(architecture)
    )


def test_the_sizes_of_a_random_model_follow_from_its_architecture_and_tokenizer(tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path)
    architecture = {"model_type": "gpt_neox", **tiny.ARCHITECTURES["gpt_neox"]}
    spec = RandomModel(architecture=architecture, tokenizer=str(tmp_path))

    # Two layers of 4 x 16 x 16 and 2 x 16 x 32; 258 tokens; two layers of two heads of 8.
    assert local_models.shape(spec) == flops.Shape(body=4_096, output=4_128, attention=32, width=16)


def test_embeddings_that_are_the_output_layer_count_once():
    tied, apart = (
        dimensions.shape_of(tiny.model("llama", tie_word_embeddings=tie)) for tie in (True, False)
    )

    assert tied == apart


def test_a_token_goes_through_the_experts_that_it_is_sent_to():
    one, two, all_of_them = (
        dimensions.shape_of(tiny.model("mixtral", num_experts_per_tok=number)).body
        for number in (1, 2, 4)
    )

    # Two layers of experts of 3 x 16 x 32.
    assert two - one == 2 * 3 * 16 * 32
    assert all_of_them - two == 2 * (two - one)


@pytest.mark.parametrize("name", ["nobody/nothing", "nobody/nothing@main", "s3://bucket/model"])
def test_a_model_that_is_not_on_this_machine_is_unknown_and_no_error(name):
    assert local_models.shape(name) is None
    assert local_models.tokenizer(name) is None


def test_a_model_that_is_here_and_cannot_be_used_is_an_error(tmp_path):
    tiny.save(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_size": 15}))
    (tmp_path / "model" / "tokenizer.json").write_text("{}")

    with pytest.raises(ModelError, match=r"model .*/model cannot be loaded"):
        local_models.shape(str(tmp_path / "model"))
    with pytest.raises(ModelError, match=r"tokenizer .*/model cannot be loaded"):
        local_models.tokenizer(str(tmp_path / "model"))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_sample_is_as_wide_and_no_longer_than_it_needs_to_be(tmp_path, monkeypatch, architecture):
    tiny.save(tmp_path / "model", architecture, hidden_size=32)
    spec = str(tmp_path / "model")
    monkeypatch.setattr(local_models, "PREFERRED_WEIGHTS", 6_400.0)
    found, whole = local_models.miniature(spec), local_models.shape(spec)

    # One layer of each kind.
    kept = len(set(getattr(found.config, "layer_types", None) or [""]))
    assert found.config.num_hidden_layers == kept and found.dtype == torch.float32
    assert found.get_input_embeddings().weight.shape[0] == min(
        6_400 // whole.width, tiny.NUM_TOKENS
    )
    shape = dimensions.shape_of(found)
    assert shape.attention * 2 == whole.attention * kept
    # OPT has some weights outside of its two layers.
    assert shape.body * 2 == pytest.approx(whole.body * kept, rel=0.1)
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    rows = trial.BatchShape(2, 5, 3, new_tokens=2)
    tried = trial.Trial(found, rows, torch.bfloat16, torch.device("cpu"))
    for stage in trial.MEASURED:
        assert trial.flops_per_second(stage, tried, num_threads=1) > 0
    monkeypatch.setattr(local_models, "MAX_LAYER_WEIGHTS", 1_000.0)
    assert local_models.miniature(spec) is None


def test_a_sample_of_a_small_model_is_that_model(tmp_path):
    tiny.save(tmp_path / "model")

    assert dimensions.shape_of(
        local_models.miniature(str(tmp_path / "model"))
    ) == local_models.shape(str(tmp_path / "model"))
    assert local_models.miniature("nobody/nothing") is None
