"""Folders as trainers leave them, whole and broken, and the commands that convert them."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from s2l_ray.errors import DataError, ModelError
from s2l_ray.models import checkpoints, model_files
from s2l_ray.storage.location import Location
from s2l_ray.training.declaration import check_reference_path
from tests import tiny


class Bomb:
    """An object whose pickle writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The checkpoints of two steps of Hugging Face's Trainer, without a tokenizer."""
    folder = tmp_path_factory.mktemp("trainer")
    ids = [[1, 2, 3, 4]] * 4
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
    Trainer(tiny.model("llama"), arguments, train_dataset=rows).train()
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "trained"))


def refused(path):
    with pytest.raises(ModelError) as caught:
        model_files.check_model_files(Location.of(path))
    return str(caught.value)


def command_of(message):
    """The arguments of the command that a message ends with, or has before a comma."""
    words = shlex.split(message[message.index("once: ") + 6 :])
    return words


def test_checkpoints_of_the_trainer_are_read_and_the_state_beside_them_is_never_opened(
    folder, tmp_path
):
    last = folder / "checkpoint-2"
    assert {"training_args.bin", "optimizer.pt", "trainer_state.json"} <= {
        file.name for file in last.iterdir()
    }
    bomb = tmp_path / "exploded"
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save(Bomb(bomb), last / name)

    assert model_files.check_checkpoints(Location.of(folder)) == [
        (1, "checkpoint-1"),
        (2, "checkpoint-2"),
    ]
    check_reference_path(str(folder), needs_tokenizer=False)
    loaded = checkpoints.load_model(str(last))
    expected = AutoModelForCausalLM.from_pretrained(last)
    torch.testing.assert_close(loaded.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert not bomb.exists()


def test_without_a_tokenizer_the_key_that_names_one_is_said(folder):
    with pytest.raises(ModelError, match=r"checkpoint-1 has no tokenizer.*data\.tokenizer"):
        check_reference_path(str(folder), needs_tokenizer=True)
    tiny.tokenizer().save_pretrained(folder / "checkpoint-1")
    check_reference_path(str(folder), needs_tokenizer=True)


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda last: (last / "model.safetensors").unlink(), "has pickled weights|has no model"),
        (lambda last: (last / "config.json").unlink(), "checkpoint-2 has no config.json"),
        (lambda last: shutil.rmtree(last) or last.mkdir(), "checkpoint-2 has no config.json"),
        (
            lambda last: (last / "model.safetensors").write_bytes(
                (last / "model.safetensors").read_bytes()[:-9]
            ),
            "model.safetensors is cut short",
        ),
    ],
)
def test_a_checkpoint_that_was_not_written_to_its_end_is_named(folder, break_it, reason):
    break_it(folder / "checkpoint-2")
    with pytest.raises(ModelError, match=rf"1 of 2 checkpoints .*\(checkpoint-2\).*({reason})"):
        model_files.check_checkpoints(Location.of(folder))


def test_checkpoints_of_different_models_are_refused(folder):
    tiny.save(folder / "checkpoint-3", "gpt2")
    with pytest.raises(ModelError, match=r"different models \(checkpoint-1: llama.*-3: gpt2"):
        model_files.check_checkpoints(Location.of(folder))


def test_a_folder_of_checkpoints_is_no_model_and_a_model_no_folder_of_checkpoints(folder):
    assert refused(folder).endswith(f"such as {folder}/checkpoint-2")
    with pytest.raises(DataError, match="which is itself a model"):
        model_files.check_checkpoints(Location.of(folder / "checkpoint-2"))


def test_checkpoints_of_other_names_are_listed_with_the_command_that_renames_one(tmp_path):
    for epoch in (0, 1):
        tiny.save(tmp_path / f"epoch_{epoch}")
    with pytest.raises(DataError, match=r"epoch_0, epoch_1\. .* mv epoch_0 checkpoint-0"):
        model_files.check_checkpoints(Location.of(tmp_path))


def test_shards_without_their_index_are_named(tmp_path):
    tiny.model().save_pretrained(tmp_path, max_shard_size="20KB")
    model_files.check_model_files(Location.of(tmp_path))
    (tmp_path / "model.safetensors.index.json").unlink()
    assert "has shards (model-00001-of-" in refused(tmp_path)


@pytest.mark.parametrize(
    ("files", "command"),
    [
        (
            ["config.json", "global_step500/zero_pp_rank_0_mp_rank_00_optim_states.pt", "latest",
             "zero_to_fp32.py", "training_args.bin"],
            "python {0}/zero_to_fp32.py {0} {0} --safe_serialization",
        ),
        (
            ["config.json", "global_step500/mp_rank_00_model_states.pt"],
            "python -m deepspeed.utils.zero_to_fp32 {0} {0} --safe_serialization",
        ),
        (
            ["config.json", "pytorch_model_fsdp_0/__0_0.distcp", "optimizer_0/__0_0.distcp"],
            "accelerate merge-weights {0}/pytorch_model_fsdp_0 {0}",
        ),
        (
            ["pytorch_model_fsdp_0/.metadata"],
            "accelerate merge-weights {0}/pytorch_model_fsdp_0 {0}, then copy the model's "
            "config.json into it",
        ),
        (["__0_0.distcp", "config.json"], "accelerate merge-weights {0} {0}"),
    ],
)  # fmt: skip
def test_weights_in_the_pieces_of_a_trainer_are_refused_with_the_command(tmp_path, files, command):
    folder = tmp_path / "checkpoint-500"
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("{}")
    assert refused(folder).endswith(f"Convert them once: {command.format(folder)}")


def test_a_partition_of_deepspeed_itself_is_refused_with_the_command_for_its_parent(tmp_path):
    (tmp_path / "global_step7").mkdir()
    (tmp_path / "global_step7" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    message = refused(tmp_path / "global_step7")
    assert message.endswith(f"{tmp_path} {tmp_path} --safe_serialization --tag global_step7")


def test_whole_weights_beside_the_pieces_of_a_trainer_are_read(folder):
    (folder / "checkpoint-2" / "global_step2").mkdir()
    (folder / "checkpoint-2" / "zero_to_fp32.py").write_text("raise SystemExit('code was run')")
    checkpoints.load_model(str(folder / "checkpoint-2"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model_fsdp.bin"])
def test_the_command_for_pickled_weights_converts_them(tmp_path, name):
    model = tiny.model("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / name)
    python, *arguments = command_of(refused(tmp_path))
    assert python == "python"
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    loaded = checkpoints.load_model(str(tmp_path))
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_an_index_that_names_nothing_is_refused(tmp_path):
    tiny.model().config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
    assert "has no weight_map" in refused(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "is not JSON"), (b"\xff\xfe", "is not JSON"), (b"[1]", "holds no settings")],
)
def test_a_configuration_that_cannot_be_read_is_refused_before_anything_runs(
    tmp_path, content, message
):
    folder = tiny.save(tmp_path / "model", "llama")
    checkpoints.check_model(str(folder))
    (Path(folder) / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=rf"config\.json {message}"):
        checkpoints.check_model(str(folder))
