"""Rows for trainers, as the source of each trainer reads them."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from s2l_ray.config.data import DataConfig
from s2l_ray.errors import DataError
from s2l_ray.export import folder
from s2l_ray.export.names import NAMES
from s2l_ray.export.trainers import TRAINERS
from s2l_ray.storage.location import Location

TEXT = [
    {"instruction": "add 1", "input": "to 2", "output": "3", "example_id": "t0"},
    {"instruction": "say {x}", "output": "x", "example_id": "t1"},
]
ASKED = {"role": "user", "content": "q"}
ANSWERED = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "be brief"}
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {}}}},
}
CALL = {"type": "function", "id": "1", "function": {"name": "f", "arguments": {"x": 1}}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RETURNED = {"role": "tool", "content": "7", "tool_call_id": "1"}


def chat(*messages, tools=None, example_id="c0"):
    row = {"messages": list(messages), "example_id": example_id}
    return row | ({"tools": tools} if tools else {})


SEVERAL = chat(
    *(
        ASKED,
        ANSWERED | {"weight": 0},
        ASKED,
        ANSWERED,
        ASKED,
        {"role": "assistant", "content": "z"},
    )
)
WITH_TOOLS = chat(ASKED, CALLED, RETURNED, RETURNED, ANSWERED, tools=[TOOL])


@pytest.fixture
def exported(tmp_path):
    """`exported("trl", rows)`: the outcome, the rows of the file, and the configuration."""

    def export(trainer, rows, template=None, **data):
        is_chat = "messages" in rows[0]
        fields = {"fields": {"messages": "messages"}} if is_chat else {}
        config = DataConfig(train=["x"], **fields, **data)
        place = Location.of(tmp_path / trainer)
        done = folder.export(lambda: iter(rows), config, trainer, place, template)
        file = tmp_path / trainer / done.files[0]
        if file.suffix == ".parquet":
            found = pq.read_table(file).to_pylist()
        else:
            found = [json.loads(line) for line in file.read_text().splitlines()]
        assert len(found) == done.num_rows
        names = [name for name in done.files if name.endswith((".yaml", ".json"))]
        files = {name: yaml.safe_load((tmp_path / trainer / name).read_text()) for name in names}
        return done, found, files

    return export


def test_every_trainer_has_its_row_in_the_table():
    assert tuple(TRAINERS) == NAMES


def test_trl_gets_the_texts_that_were_scored(exported):
    done, rows, files = exported("trl", TEXT, max_tokens=99)

    assert rows[0]["prompt"].endswith(
        "### Instruction:\nadd 1\n\n### Input:\nto 2\n\n### Response:\n"
    )
    assert rows[1]["prompt"].endswith("### Instruction:\nsay {x}\n\n### Response:\n")
    assert [row["completion"] for row in rows] == ["3", "x"]
    assert [row["example_id"] for row in rows] == ["t0", "t1"]
    assert files["sft.yaml"] == {"dataset_name": done.path, "max_length": 99}
    assert done.notes == ()


def test_trl_gets_prompt_and_completion_if_one_answer_is_learned(exported):
    """Its loss is then on the completion, whatever the chat template has."""
    exempt = chat(SYSTEM, ASKED, ANSWERED | {"train": False}, ASKED, ANSWERED)
    done, rows, files = exported("trl", [exempt, chat(ASKED, ANSWERED)])

    assert [row["prompt"] for row in rows] == [[SYSTEM, ASKED, ANSWERED, ASKED], [ASKED]]
    assert [row["completion"] for row in rows] == [[ANSWERED]] * 2
    assert "assistant_only_loss" not in files["sft.yaml"] and done.notes == ()


def test_trl_gets_messages_if_several_answers_are_learned(exported):
    done, rows, files = exported("trl", [SEVERAL, WITH_TOOLS])

    assert rows[0]["messages"][1] == ANSWERED
    assert files["sft.yaml"]["assistant_only_loss"] is True
    assert done.notes == (
        "earlier answers without loss, which this trainer learns, too: 1 of 2 rows",
    )
    assert rows[0]["tools"] is None and json.loads(rows[1]["tools"]) == [TOOL]
    assert rows[1]["messages"][1:3] == [CALLED, RETURNED]


def test_with_the_last_turn_alone_trl_gets_its_prompt(exported):
    _, rows, _ = exported("trl", [SEVERAL], turns="last")

    assert rows[0]["completion"] == [{"role": "assistant", "content": "z"}]
    assert len(rows[0]["prompt"]) == 5


def test_the_chat_template_of_the_run_is_named(exported):
    done, _, _ = exported("trl", [chat(ASKED, ANSWERED)], chat_template="chatml")
    assert done.notes == (
        "the run has scored rows with data.chat_template: chatml; give TRL the same",
    )


MARKED = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
OWN = {"chat_template": "mine.jinja"}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.jinja").write_text(MARKED)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("mine")
def test_trl_and_axolotl_train_with_the_chat_template_of_the_run(exported):
    done, _, files = exported("trl", [SEVERAL], MARKED, **OWN)
    other, _, other_files = exported("axolotl", [SEVERAL], MARKED, **OWN)

    assert files["sft.yaml"]["chat_template_path"] == f"{done.path}/chat_template.jinja"
    assert f"chat_template_path='{done.path}/chat_template.jinja'" in read(done, "sft.py")
    settings = other_files["datasets.yaml"]
    assert settings["chat_template"] == "jinja"
    assert settings["chat_template_jinja"] == f"{other.path}/chat_template.jinja"
    for each in (done, other):
        assert read(each, "chat_template.jinja") == MARKED
        assert "data.chat_template" not in " ".join(each.notes)


@pytest.mark.usefixtures("mine")
def test_trl_without_marks_in_the_template_is_warned_of(exported, tmp_path):
    bare = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")

    assert "no {% generation %} marks" in exported("trl", [SEVERAL], bare, **OWN)[0].notes[-1]
    (tmp_path / "trl").rename(tmp_path / "before")
    done, _, files = exported("trl", [chat(ASKED, ANSWERED)], bare, **OWN)
    assert done.notes == () and files["sft.yaml"]["chat_template_path"]


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("trainer", "advice"),
    [
        ("llamafactory", "LLaMA-Factory knows templates by name alone"),
        ("open-instruct", "open-instruct knows templates by name alone"),
        ("torchtune", "torchtune knows templates by name alone"),
        ("verl", "verl takes the text of chat_template.jinja as model.custom_chat_template"),
    ],
)
def test_other_trainers_are_to_be_told_the_template(exported, trainer, advice):
    done, _, _ = exported(trainer, [chat(ASKED, ANSWERED)], MARKED, **OWN)

    assert (
        f"the run has scored rows with data.chat_template: mine.jinja; {advice}" in done.notes[-1]
    )
    assert read(done, "chat_template.jinja") == MARKED


def test_rows_in_a_template_of_text_have_no_chat_template(exported):
    done, _, files = exported("trl", TEXT, MARKED)

    assert "chat_template_path" not in files["sft.yaml"] and "chat_template.jinja" not in done.files


def read(done, name) -> str:
    return Path(done.path, name).read_text()


def test_axolotl_learns_exactly_the_answers_that_are_learned(exported):
    done, rows, files = exported("axolotl", [SEVERAL, WITH_TOOLS])

    learned = [[message["train"] for message in row["messages"]] for row in rows]
    assert learned == [[False, False, False, True, False, True], [False, True, False, False, True]]
    (source,) = files["datasets.yaml"]["datasets"]
    assert source["path"] == f"{done.path}/selected.jsonl" and source["ds_type"] == "json"
    assert source["type"] == "chat_template" and source["message_field_training"] == "train"
    assert source["message_property_mappings"]["tool_calls"] == "tool_calls"
    assert source["roles_to_train"] == [] and source["field_tools"] == "tools"
    assert done.notes == ()


def test_axolotl_gets_the_texts_that_were_scored(exported):
    _, rows, files = exported("axolotl", TEXT)

    form = files["datasets.yaml"]["datasets"][0]["type"]
    assert (
        form["no_input_format"]
        .format(instruction=rows[1][form["field_instruction"]])
        .endswith("say {x}\n\n### Response:\n")
    )
    assert rows[1][form["field_output"]] == "x" and not form["system_prompt"]


def test_llamafactory_gets_alpaca_columns_for_instructions(exported):
    done, rows, files = exported("llamafactory", TEXT)

    assert rows[0] == TEXT[0]
    assert rows[1] == TEXT[1] | {"input": ""}
    assert files["dataset_info.json"]["selected"] == {
        "file_name": "selected.jsonl",
        "formatting": "alpaca",
        "columns": {"prompt": "instruction", "query": "input", "response": "output"},
    }
    assert files["sft.yaml"]["dataset"] == "selected"
    assert files["sft.yaml"]["dataset_dir"] == done.path
    assert (
        "by its own template; the run has scored them with data.template: alpaca" in done.notes[0]
    )


def test_llamafactory_gets_turns_that_alternate(exported):
    """Its reader skips a chat that does not, with a warning."""
    twice = chat(SYSTEM, ASKED, ASKED, ANSWERED, ASKED, ANSWERED, example_id="c1")
    broken = chat(ASKED, ANSWERED, CALLED, RETURNED, ANSWERED, example_id="c2")
    done, rows, files = exported("llamafactory", [WITH_TOOLS, twice, broken])

    tags = [[turn["from"] for turn in row["conversations"]] for row in rows]
    assert tags == [
        ["human", "function_call", "observation", "gpt"],
        ["system", "human", "gpt", "human", "gpt"],
    ]
    assert json.loads(rows[0]["conversations"][1]["value"]) == [
        {"name": "f", "arguments": {"x": 1}}
    ]
    assert rows[1]["conversations"][1]["value"] == "q\n\nq"
    assert json.loads(rows[0]["tools"]) == [TOOL] and rows[1]["tools"] == ""
    assert files["dataset_info.json"]["selected"]["columns"]["tools"] == "tools"
    assert files["sft.yaml"]["mask_history"] is False
    first = "left out, because an answer or a system message stands after another answer"
    assert done.notes[0] == f"{first}: 1 of 3 rows (first: c2)"
    assert "messages of one side in succession, which are joined: 2 of 3 rows" in done.notes


def test_llamafactory_learns_the_last_turn_alone_if_the_run_does(exported):
    done, _, files = exported("llamafactory", [SEVERAL], turns="last")

    assert files["sft.yaml"]["mask_history"] is True
    assert done.notes == ()


def test_reasoning_and_text_beside_calls_stay_for_llamafactory(exported):
    thought = chat(ASKED, CALLED | {"content": "so:", "reasoning_content": "hm"}, tools=[TOOL])
    done, rows, _ = exported("llamafactory", [thought])

    called = json.dumps([{"name": "f", "arguments": {"x": 1}}])
    assert rows[0]["conversations"][1] == {
        "from": "function_call",
        "value": f"<think>\nhm\n</think>\n\nso:<tool_call>{called}</tool_call>",
    }
    assert [note.partition(",")[0] for note in done.notes] == [
        "reasoning",
        "text beside calls of tools",
    ]


def test_torchtune_gets_users_and_assistants_in_turn(exported):
    """Its reader refuses a whole data set for an answer that follows no user."""
    called = chat(SYSTEM, ASKED, CALLED, tools=[TOOL], example_id="c1")
    done, rows, files = exported("torchtune", [WITH_TOOLS, called])

    assert [message["role"] for message in rows[0]["messages"]] == ["system", "user", "assistant"]
    assert json.loads(rows[0]["messages"][2]["content"])[0]["name"] == "f"
    assert files["dataset.yaml"]["dataset"]["data_files"] == f"{done.path}/selected.jsonl"
    assert files["dataset.yaml"]["dataset"]["conversation_style"] == "openai"
    assert [note.rpartition(": ")[2] for note in done.notes] == [
        "c0)",
        "1 of 2 rows",
        "1 of 2 rows",
    ]


def test_a_trainer_that_can_hold_no_row_gets_no_file(exported, tmp_path):
    with pytest.raises(
        DataError, match=r"torchtune can hold none of 1 rows: left out, because a t"
    ):
        exported("torchtune", [WITH_TOOLS])
    assert list((tmp_path / "torchtune").iterdir()) == []


def test_open_instruct_gets_messages_as_they_are(exported):
    done, rows, _ = exported("open-instruct", [WITH_TOOLS, chat(ASKED, ANSWERED, example_id="c1")])

    assert rows[0]["messages"] == [ASKED, CALLED, RETURNED, RETURNED, ANSWERED]
    assert f"--dataset_mixer_list {done.path}/selected.jsonl 1.0" in done.command
    assert done.notes == ("tools, which this trainer does not show to the model: 1 of 2 rows",)


def test_verl_gets_parquet_with_messages_and_tools(exported):
    other = {"type": "function", "function": {"name": "g", "strict": True}}
    rows = [WITH_TOOLS, chat(ASKED, ANSWERED), chat(ASKED, ANSWERED, tools=[other])]
    done, found, _ = exported("verl", rows)

    first = found[0]["messages"]
    assert [message["role"] for message in first][:3] == ["user", "assistant", "tool"]
    assert json.loads(first[1]["tool_calls"][0]["function"]["arguments"]) == {"x": 1}
    assert first[2]["tool_call_id"] == "1" and first[0]["tool_calls"] is None
    # A list, also where there are none: verl's reader takes a null for a value.
    assert [[tool["function"]["name"] for tool in row["tools"]] for row in found] == [
        ["f"],
        [],
        ["g"],
    ]
    assert f"data.train_files={done.path}/selected.parquet" in done.command


def test_tools_that_no_column_can_hold_are_refused(exported, tmp_path):
    odd = [TOOL, {"type": "function", "function": {"name": "g", "parameters": "none"}}]
    with pytest.raises(DataError, match="do not fit into columns of Parquet"):
        exported("verl", [chat(ASKED, ANSWERED, tools=odd)])
    assert list((tmp_path / "verl").iterdir()) == []
