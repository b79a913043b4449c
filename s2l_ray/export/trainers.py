"""The trainers that rows can be exported for: a row in a table for each."""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from s2l_ray.export import rows
from s2l_ray.export.conversation import Conversation, Survey

CHAT_TEMPLATE = "chat_template.jinja"
"""The file of the run's own chat template."""
ToRow = Callable[[Conversation, Survey], tuple[rows.Row, rows.Notes]]


@dataclass(frozen=True)
class Written:
    """Rows that are written, as their configuration names them.

    Attributes:
        folder: path or URI of the export.
        file: path or URI of the rows.
        survey: what the rows have in common.
        max_tokens: the most tokens of a row, as in the run.
        chat_template: path or URI of the run's own chat template, where rows are chats; else "".
    """

    folder: str
    file: str
    survey: Survey
    max_tokens: int
    chat_template: str = ""


@dataclass(frozen=True)
class Trainer:
    """A trainer.

    Attributes:
        title: its name as it writes it.
        to_row: turns a conversation into its row.
        files: returns the files of configuration, name -> text.
        command: returns the command that trains, with MODEL and OUT to fill in.
        tested: the version whose own loader has read such rows, or whose source was read.
        suffix: of the file of rows.
        renders: whether the trainer renders all rows by its own template.
        template: what to do, so that it renders by the run's chat template; "" where the
            configuration says it.
        needs_marks: whether only what a template marks as generated is learned of several answers.
    """

    title: str
    to_row: ToRow
    files: Callable[[Written], dict[str, str]]
    command: Callable[[Written], str]
    tested: str
    suffix: str = "jsonl"
    renders: bool = True
    template: str = "knows templates by name alone: take the one that writes the same, if it has it"
    needs_marks: bool = False


def _yaml(value: dict[str, Any], comment: str) -> str:
    return f"# {comment}\n{yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000)}"


def _masks_answers(written: Written) -> bool:
    return written.survey.has_several_answers and not written.survey.is_text


def _trl_files(written: Written) -> dict[str, str]:
    options: dict[str, Any] = {"max_length": written.max_tokens}
    if _masks_answers(written):
        options["assistant_only_loss"] = True
    if written.chat_template:
        options["chat_template_path"] = written.chat_template
    arguments = "".join(f", {name}={value!r}" for name, value in options.items())
    return {
        "sft.yaml": _yaml({"dataset_name": written.folder, **options}, _trl_command(written)),
        "sft.py": f"""\
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

trainer = SFTTrainer(
    model="MODEL",
    args=SFTConfig(output_dir="OUT"{arguments}),
    train_dataset=load_dataset({written.folder!r}, split="train"),
)
trainer.train()
""",
    }


def _trl_command(written: Written) -> str:
    config = shlex.quote(f"{written.folder}/sft.yaml")
    return f"trl sft --config {config} --model_name_or_path MODEL --output_dir OUT"


def _axolotl_files(written: Written) -> dict[str, str]:
    source = {"path": written.file, "ds_type": "json"}
    if written.survey.is_text:
        form: dict[str, Any] = {
            "type": {
                "system_prompt": "",
                "field_instruction": "prompt",
                "field_output": "completion",
                "format": "{instruction}",
                "no_input_format": "{instruction}",
            }
        }
    else:
        form = {
            "type": "chat_template",
            "field_messages": "messages",
            # Those that are not named reach a template only if axolotl finds them in its text.
            "message_property_mappings": {
                key: key for key in ("role", "content", "tool_calls", *rows.TEXT_KEYS)
            },
            "message_field_training": "train",
            "roles_to_train": [],
            "train_on_eos": "turn",
        }
        if written.survey.has_tools:
            form["field_tools"] = "tools"
    block = {
        "datasets": [source | form],
        "sequence_len": written.max_tokens,
        "train_on_inputs": False,
    }
    if written.chat_template:
        block |= {"chat_template": "jinja", "chat_template_jinja": written.chat_template}
    return {"datasets.yaml": _yaml(block, "Part of the configuration of axolotl.")}


def _llamafactory_files(written: Written) -> dict[str, str]:
    survey = written.survey
    if survey.is_plain:
        columns = {"prompt": "instruction", "query": "input", "response": "output"}
        entry: dict[str, Any] = {"formatting": "alpaca", "columns": columns}
    else:
        columns = {"messages": "conversations"}
        if survey.has_tools:
            columns["tools"] = "tools"
        tags = {
            "role_tag": "from",
            "content_tag": "value",
            "user_tag": "human",
            "assistant_tag": "gpt",
            "observation_tag": "observation",
            "function_tag": "function_call",
            "system_tag": "system",
        }
        entry = {"formatting": "sharegpt", "columns": columns, "tags": tags}
    info = {"selected": {"file_name": "selected.jsonl", **entry}}
    training = {
        "stage": "sft",
        "dataset_dir": written.folder,
        "dataset": "selected",
        "cutoff_len": written.max_tokens,
        "mask_history": not survey.has_several_answers,
    }
    return {
        "dataset_info.json": json.dumps(info, indent=2) + "\n",
        "sft.yaml": _yaml(training, "Part of a configuration; `template` is that of the model."),
    }


def _open_instruct_command(written: Written) -> str:
    return " \\\n  ".join(
        [
            "accelerate launch open_instruct/finetune.py --model_name_or_path MODEL",
            f"--dataset_mixer_list {shlex.quote(written.file)} 1.0",
            "--dataset_mixer_list_splits train",
            f"--max_seq_length {written.max_tokens} --output_dir OUT",
        ]
    )


def _torchtune_files(written: Written) -> dict[str, str]:
    component = {
        "_component_": "torchtune.datasets.chat_dataset",
        "source": "json",
        "data_files": written.file,
        "split": "train",
        "conversation_column": "messages",
        "conversation_style": "openai",
        "train_on_input": False,
    }
    comment = f"In the recipe's configuration, with tokenizer.max_seq_len: {written.max_tokens}."
    return {"dataset.yaml": _yaml({"dataset": component}, comment)}


def _verl_command(written: Written) -> str:
    options = [
        f"data.train_files={shlex.quote(written.file)}",
        "data.messages_key=messages",
        "data.tools_key=tools",
        f"data.max_length={written.max_tokens} data.truncation=right",
        "model.path=MODEL trainer.default_local_dir=OUT",
    ]
    first = "torchrun --standalone --nproc_per_node=1 -m verl.trainer.sft_trainer"
    return " \\\n  ".join([first, *options])


TRAINERS: dict[str, Trainer] = {
    "trl": Trainer(
        "TRL",
        rows.trl,
        _trl_files,
        _trl_command,
        "1.16.0",
        renders=False,
        template="",
        needs_marks=True,
    ),
    "axolotl": Trainer(
        "axolotl",
        rows.axolotl,
        _axolotl_files,
        lambda written: "axolotl train CONFIG.yaml  # with the lines of datasets.yaml in it",
        "0.19.0",
        renders=False,
        template="",
    ),
    "llamafactory": Trainer(
        "LLaMA-Factory",
        rows.llamafactory,
        _llamafactory_files,
        lambda written: "llamafactory-cli train CONFIG.yaml  # with the lines of sft.yaml in it",
        "0.9.5",
    ),
    "open-instruct": Trainer(
        "open-instruct",
        rows.open_instruct,
        lambda written: {"finetune.sh": f"{_open_instruct_command(written)}\n"},
        _open_instruct_command,
        "its source of 2025",
    ),
    "torchtune": Trainer(
        "torchtune",
        rows.torchtune,
        _torchtune_files,
        lambda written: "tune run RECIPE --config CONFIG.yaml  # with dataset.yaml in it",
        "0.6.1",
    ),
    "verl": Trainer(
        "verl",
        rows.verl,
        lambda written: {"sft.sh": f"{_verl_command(written)}\n"},
        _verl_command,
        "0.9.1",
        suffix="parquet",
        template=f"takes the text of {CHAT_TEMPLATE} as model.custom_chat_template",
    ),
}
"""Name -> the trainer."""
