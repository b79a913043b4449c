"""LoRA adapters that peft has trained or saved; oracle: peft's own model, unmerged."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from s2l_ray.artifacts.inputs import Contents
from s2l_ray.errors import ConfigError, ModelError
from s2l_ray.models import checkpoints, local_models, model_files
from s2l_ray.models.adapters import Adapter, adapter_of, tokenizer_source
from s2l_ray.storage.location import Location
from s2l_ray.training.declaration import check_reference_path, reference_base
from tests import tiny

IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7]])


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A base with its tokenizer, and the adapters of two steps of the Trainer with peft."""
    folder = tmp_path_factory.mktemp("lora")
    base = tiny.save(folder / "base", "llama")
    ids = [[1, 2, 3, 4]] * 4
    arguments = TrainingArguments(
        output_dir=str(folder / "out"),
        max_steps=2,
        save_steps=1,
        learning_rate=0.1,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
    Trainer(model, arguments, train_dataset=rows).train()
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    return Path(shutil.copytree(trained / "out", tmp_path / "out"))


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def unmerged(base, adapter):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)


def saved_adapter(folder, config, *, architecture="llama", change=lambda model: None):
    """An adapter with random weights on a new base; returns both folders."""
    base = tiny.save(folder / "base", architecture)
    model = AutoModelForCausalLM.from_pretrained(base)
    change(model)
    wrapped = get_peft_model(model, config)
    torch.manual_seed(3)
    for name, weight in wrapped.named_parameters():
        if "lora_" in name or "modules_to_save" in name or "magnitude" in name:
            torch.nn.init.normal_(weight, std=0.2)
    wrapped.save_pretrained(folder / "adapter")
    return base, folder / "adapter"


def test_a_checkpoint_of_lora_computes_as_base_and_adapter_do(trained, folder):
    last = folder / "checkpoint-2"
    assert (last / "training_args.bin").exists() and not (last / "config.json").exists()
    expected = logits(unmerged(trained / "base", last))
    assert not torch.allclose(expected, logits(tiny.model("llama")), atol=1e-2)

    loaded = checkpoints.load_model(str(last))
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-5)
    assert all(weight.requires_grad for weight in loaded.parameters())
    assert not [name for name in loaded.state_dict() if "lora" in name]
    half = checkpoints.load_model(str(last), dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16


def test_checkpoints_of_lora_pass_as_a_reference_and_name_their_base(trained, folder):
    check_reference_path(str(folder), needs_tokenizer=True)
    assert reference_base(str(folder)) == str(trained / "base")
    assert tokenizer_source(str(folder / "checkpoint-1")) == str(trained / "base")
    tokenizer = checkpoints.load_tokenizer(str(folder / "checkpoint-1"))
    assert tokenizer("é").input_ids == tiny.tokenizer()("é").input_ids
    assert local_models.shape(str(folder / "checkpoint-1")) == local_models.shape(
        str(trained / "base")
    )


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("gpt2", {"target_modules": ["c_attn"]}),
        ("gpt_neox", {"target_modules": "all-linear", "use_dora": True}),
        ("llama", {"target_modules": ["q_proj"], "use_rslora": True}),
        ("llama", {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]}),
    ],
)
def test_adapters_of_several_kinds_are_merged(tmp_path, architecture, config):
    base, adapter = saved_adapter(
        tmp_path, LoraConfig(r=2, task_type="CAUSAL_LM", **config), architecture=architecture
    )
    expected = logits(unmerged(base, adapter))
    loaded = checkpoints.load_model(str(adapter))
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-4)
    loaded.save_pretrained(tmp_path / "saved")
    again = checkpoints.load_model(str(tmp_path / "saved"))
    torch.testing.assert_close(logits(again), logits(loaded), rtol=0, atol=0)


def test_an_adapter_with_more_tokens_than_its_base_brings_their_embeddings(tmp_path):
    lora = LoraConfig(
        r=2,
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens", "lm_head"],
        task_type="CAUSAL_LM",
    )
    grown = tiny.NUM_TOKENS + 5
    base, adapter = saved_adapter(
        tmp_path, lora, change=lambda model: model.resize_token_embeddings(grown)
    )
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(grown)
    expected = logits(PeftModel.from_pretrained(model, adapter))

    loaded = checkpoints.load_model(str(adapter))
    assert loaded.get_input_embeddings().num_embeddings == grown
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-4)


def test_weights_that_the_base_has_no_place_for_are_refused(folder, tmp_path):
    other = tiny.save(tmp_path / "gpt2", "gpt2")
    settings = json.loads((folder / "checkpoint-2" / "adapter_config.json").read_text())
    settings |= {"base_model_name_or_path": str(other), "target_modules": ["c_attn"]}
    (folder / "checkpoint-2" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="weights of the adapter are not those that its base"):
        checkpoints.load_model(str(folder / "checkpoint-2"))


def test_the_base_of_an_adapter_is_part_of_its_contents_and_keeps_its_commit(trained, folder):
    last = folder / "checkpoint-2"
    inputs = Contents().model_inputs("target.model contents", str(last))
    base = Contents().model_inputs("x contents", str(trained / "base"))["x contents"]
    assert inputs["target.model base contents"] == base

    settings = json.loads((last / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "org/base"
    (last / "adapter_config.json").write_text(json.dumps(settings))
    contents = Contents({"model org/base": [0, "", "c" * 40]})
    assert contents.loadable(str(last)) == Adapter(str(last), "org/base@" + "c" * 40)
    assert contents.model_inputs("k contents", str(last))["k base contents"] == "c" * 40
    assert local_models.shape(str(last)) is None


def test_the_revision_that_an_adapter_names_is_used(folder):
    file = folder / "checkpoint-1" / "adapter_config.json"
    settings = json.loads(file.read_text()) | {
        "base_model_name_or_path": "org/base",
        "revision": "v2",
    }
    file.write_text(json.dumps(settings))
    assert adapter_of(str(folder / "checkpoint-1")).base == "org/base@v2"


def test_adapters_of_different_bases_are_no_checkpoints_of_one_training(folder):
    file = folder / "checkpoint-1" / "adapter_config.json"
    settings = json.loads(file.read_text()) | {"base_model_name_or_path": "org/base"}
    file.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"different models .*adapter of org/base"):
        model_files.check_checkpoints(Location.of(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model_name_or_path": "/gone/base"}, "adapter of the model /gone/base, which is no"),
        ({"base_model_name_or_path": None}, "names no base_model_name_or_path"),
        ({"peft_type": "IA3"}, "an adapter of type IA3.*merge_and_unload"),
        ({"task_type": "SEQ_CLS"}, "adapter for SEQ_CLS"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused(folder, change, message):
    file = folder / "checkpoint-2" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    for read in (checkpoints.check_model, checkpoints.load_model):
        with pytest.raises(ModelError, match=message):
            read(str(folder / "checkpoint-2"))


def test_an_adapter_that_names_itself_as_its_base_is_refused(folder):
    last = folder / "checkpoint-2"
    file = last / "adapter_config.json"
    settings = json.loads(file.read_text()) | {"base_model_name_or_path": f"{last}/"}
    file.write_text(json.dumps(settings))
    for read in (checkpoints.check_model, checkpoints.load_model):
        with pytest.raises(ModelError, match="names its own folder as base_model_name_or_path"):
            read(str(last))


def test_a_prompt_that_was_tuned_is_no_lora(tmp_path):
    base = tiny.save(tmp_path / "base", "llama")
    config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(ModelError, match="adapter of type PROMPT_TUNING; only LORA"):
        checkpoints.check_model(str(tmp_path / "tuned"))


def test_a_pickled_adapter_and_one_beside_a_model_are_refused(trained, folder):
    last = folder / "checkpoint-2"
    shutil.copy(trained / "base" / "model.safetensors", last)
    with pytest.raises(ModelError, match=r"holds a model .* and an adapter"):
        checkpoints.check_model(str(last))
    (last / "model.safetensors").unlink()
    (last / "adapter_model.safetensors").rename(last / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"pickled weights only \(adapter_model\.bin\).*save_file"):
        checkpoints.check_model(str(last))


def test_without_peft_the_message_names_the_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    for read in (checkpoints.check_model, checkpoints.load_model):
        with pytest.raises(ConfigError, match=r"pip install 's2l-ray\[lora\]'"):
            read(str(folder / "checkpoint-2"))
    with pytest.raises(ConfigError, match=r"pip install 's2l-ray\[lora\]'"):
        check_reference_path(str(folder), needs_tokenizer=False)
