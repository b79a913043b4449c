"""`s2l init`: for every shape of rows, the printed configuration reads all of them."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from s2l_ray import cli, first_config
from s2l_ray.config import load
from s2l_ray.data.examples import read_example
from s2l_ray.data.sources import read_rows
from s2l_ray.errors import ModelError
from s2l_ray.storage.input_files import expand
from tests import tiny

NUM_ROWS = 20
SCHEMA = {"name": "weather", "description": "", "parameters": {"type": "object"}}
CALL = {"function": {"name": "weather", "arguments": '{"city": "Oslo"}'}, "type": "function"}


def asked(i):
    return {"role": "user", "content": f"Question {i}"}


def answered(i):
    return {"role": "assistant", "content": f"Answer {i}"}


def sharegpt(i, *roles):
    names = roles or ("human", "gpt")
    texts = (f"Question {i}", f"Answer {i}")
    return [{"from": role, "value": text} for role, text in zip(names, texts, strict=True)]


SHAPES = {
    "alpaca": (
        lambda i: {"instruction": f"Question {i}", "input": "", "output": f"Answer {i}"},
        {},
    ),
    "dolly": (
        lambda i: {
            "instruction": f"Question {i}",
            "context": "",
            "response": f"Answer {i}",
            "category": ["open_qa", "closed_qa"][i % 2],
        },
        {"context": "context", "response": "response", "stratum": "category"},
    ),
    "gsm8k": (
        lambda i: {"question": f"Question {i}", "answer": f"Answer {i}"},
        {"prompt": "question", "response": "answer"},
    ),
    "orca": (
        lambda i: {
            "id": f"flan.{i}",
            "system_prompt": "Be brief.",
            "question": f"Question {i}",
            "response": f"Answer {i}",
        },
        {"prompt": "question", "response": "response", "system": "system_prompt"},
    ),
    "math": (
        lambda i: {"problem": f"Question {i}", "solution": f"Answer {i}", "answer": [i]},
        {"prompt": "problem", "response": "solution", "answer": None},
    ),
    "flan": (
        lambda i: {"inputs": f"Question {i}", "targets": f"Answer {i}", "task": f"t{i % 3}"},
        {"prompt": "inputs", "response": "targets", "stratum": "task"},
    ),
    "input and output": (
        lambda i: {"input": f"Question {i}", "output": f"Answer {i}"},
        {"prompt": "input", "context": None},
    ),
    "capitals": (
        lambda i: {"Question": f"Question {i}", "Answer": f"Answer {i}"},
        {"prompt": "Question", "response": "Answer"},
    ),
    "capitals, input and output": (
        lambda i: {"Input": f"Question {i}", "Output": f"Answer {i}"},
        {"prompt": "Input", "response": "Output"},
    ),
    "capitals, with labels": (
        lambda i: {
            "ID": f"c{i}",
            "System": "Be brief.",
            "Input": f"Question {i}",
            "Context": "",
            "Output": f"Answer {i}",
            "Topic": f"t{i % 2}",
        },
        {
            "prompt": "Input",
            "context": "Context",
            "response": "Output",
            "system": "System",
            "stratum": "Topic",
            "id": "ID",
        },
    ),
    "capitals, conversational": (
        lambda i: {"Prompt": [asked(i)], "Completion": [answered(i)]},
        {"prompt": "Prompt", "response": "Completion"},
    ),
    "tools of few kinds": (
        lambda i: {
            "messages": [asked(i), answered(i)],
            "tools": json.dumps([SCHEMA | {"name": f"weather{i % 2}"}]),
        },
        {"messages": "messages"},
    ),
    "an answer that is true or false": (
        lambda i: {"question": f"Question {i}", "response": f"Answer {i}", "answer": i % 2 == 0},
        {"prompt": "question", "response": "response", "answer": None},
    ),
    "trl": (
        lambda i: {"prompt": f"Question {i}", "completion": f"Answer {i}"},
        {"prompt": "prompt", "response": "completion"},
    ),
    "trl, conversational": (
        lambda i: {"prompt": [asked(i)], "completion": [answered(i)]},
        {"prompt": "prompt", "response": "completion"},
    ),
    "trl, conversational as text": (
        lambda i: {
            "prompt": json.dumps([asked(i)]),
            "completion": json.dumps([answered(i)]),
        },
        {"prompt": "prompt", "response": "completion"},
    ),
    "messages": (lambda i: {"messages": [asked(i), answered(i)]}, {"messages": "messages"}),
    "messages beside a prompt": (
        lambda i: {
            "prompt": f"Question {i}",
            "prompt_id": f"p{i}",
            "messages": [asked(i), answered(i)],
        },
        {"messages": "messages", "id": "prompt_id"},
    ),
    "messages as text": (
        lambda i: {"messages": json.dumps([asked(i), answered(i)])},
        {"messages": "messages"},
    ),
    "preferences": (
        lambda i: {
            "prompt": f"Question {i}",
            "chosen": [asked(i), answered(i)],
            "rejected": [asked(i), answered(-1)],
        },
        {"messages": "chosen"},
    ),
    "preferences, answers alone": (
        lambda i: {
            "prompt": f"Question {i}",
            "chosen": [answered(i)],
            "rejected": [answered(-1)],
        },
        {"prompt": "prompt", "response": "chosen"},
    ),
    "sharegpt": (
        lambda i: {"conversations": sharegpt(i), "source": ["a", "b"][i % 2], "id": f"c{i}"},
        {"messages": "conversations", "stratum": "source"},
    ),
    "sharegpt with system and tools": (
        lambda i: {
            "conversations": sharegpt(i),
            "system": "Be brief.",
            "tools": json.dumps([SCHEMA]),
        },
        {"messages": "conversations"},
    ),
    "a chat of another name": (
        lambda i: {"talk": sharegpt(i, "user", "assistant"), "title": f"Talk {i}"},
        {"messages": "talk"},
    ),
    "tool calls": (
        lambda i: {
            "messages": [
                asked(i),
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "4 degrees", "tool_call_id": "c"},
                answered(i),
            ],
            "tools": [{"type": "function", "function": SCHEMA}],
        },
        {"messages": "messages"},
    ),
    "history": (
        lambda i: {
            "instruction": f"Question {i}",
            "input": "",
            "output": f"Answer {i}",
            "history": [["Hello", "Hi"]] if i % 2 else [],
        },
        {},
    ),
    "source of another kind": (
        lambda i: {"instruction": f"Question {i}", "output": f"Answer {i}", "source": {"url": i}},
        {"stratum": None},
    ),
    "source of each row": (
        lambda i: {"instruction": f"Question {i}", "output": f"Answer {i}", "source": f"doc{i}"},
        {"stratum": None},
    ),
    "ids that repeat": (
        lambda i: {"instruction": f"Question {i}", "output": f"Answer {i}", "id": i // 2},
        {"id": None},
    ),
}


def written(folder, rows, kind):
    path = folder / f"pool.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def configuration(folder, files, model=None):
    path = folder / "mine.yaml"
    path.write_text(first_config.text_of(files, model))
    return load.load(path)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_printed_configuration_reads_every_row(tmp_path, shape, kind):
    row_of, fields = SHAPES[shape]
    file = written(tmp_path, [row_of(i) for i in range(NUM_ROWS)], kind)

    config = configuration(tmp_path, [file])

    names = config.data.fields
    assert {key: getattr(names, key) for key in fields} == fields
    assert len(names.model_fields_set - set(fields)) == 0
    examples = [read_example(row.fields, names) for row in read_rows(*expand(config.data.train))]
    assert [(e.prompt, e.response) for e in examples] == [
        (f"Question {i}", f"Answer {i}") for i in range(NUM_ROWS)
    ]


@pytest.mark.parametrize(
    ("shape", "template", "model"),
    [
        ("alpaca", "alpaca", first_config.MODEL),
        ("trl", "alpaca", first_config.MODEL),
        ("orca", "chat", first_config.CHAT_MODEL),
        ("history", "chat", first_config.CHAT_MODEL),
        ("sharegpt", "chat", first_config.CHAT_MODEL),
        ("tool calls", "chat", first_config.TOOLS_MODEL),
        ("sharegpt with system and tools", "chat", first_config.TOOLS_MODEL),
    ],
)
def test_template_and_model_fit_the_rows(tmp_path, shape, template, model):
    rows = [SHAPES[shape][0](i) for i in range(NUM_ROWS)]
    config = configuration(tmp_path, [written(tmp_path, rows, "json")])

    assert (config.data.template_name, config.reference.model) == (template, model)


def test_csv_is_read_with_its_messages_as_text(tmp_path):
    path = tmp_path / "pool.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["messages", "topic"])
        writer.writerows(
            [json.dumps([asked(i), answered(i)]), f"t{i % 2}"] for i in range(NUM_ROWS)
        )

    config = configuration(tmp_path, [str(path)])

    assert (config.data.fields.messages, config.data.fields.stratum) == ("messages", "topic")


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "checkpoints", "num_clusters"),
    [(5, 8, 2, 1), (150, 16, 12, 6), (2600, 128, 12, 100)],
)
def test_numbers_fit_the_size_of_the_pool(
    tmp_path, num_rows, batch_size, checkpoints, num_clusters
):
    rows = [SHAPES["alpaca"][0](i) for i in range(num_rows)]
    config = configuration(tmp_path, [written(tmp_path, rows, "parquet")])

    assert config.reference.batch_size == batch_size
    assert config.reference.checkpoints == checkpoints
    assert config.clusters.clusters_of(num_rows) == num_clusters


@pytest.mark.parametrize(("topics", "strata"), [(2, "field"), (1, "auto")])
def test_kinds_of_rows_that_no_field_names_are_found(tmp_path, topics, strata):
    rows = [SHAPES["alpaca"][0](i) | {"source": f"t{i % topics}"} for i in range(NUM_ROWS)]
    config = configuration(tmp_path, [written(tmp_path, rows, "jsonl")])

    assert config.clusters.strata == strata
    assert config.trajectories.embeddings == (strata == "auto")


def test_a_field_of_kinds_is_the_stratum_before_one_of_sources_and_both_are_named(tmp_path):
    kinds = {"source": lambda i: f"s{i % 2}", "topic": lambda i: f"t{i % 3}"}
    rows = [
        SHAPES["alpaca"][0](i) | {name: of(i) for name, of in kinds.items()}
        for i in range(NUM_ROWS)
    ]
    text = first_config.text_of([written(tmp_path, rows, "jsonl")])
    alone = first_config.text_of(
        [written(tmp_path, [{**row, "topic": None} for row in rows], "jsonl")]
    )

    assert "fields: {stratum: topic}" in text
    assert "# The rows looked at have 3 strata, by topic; another could be source." in text
    assert "fields: {stratum: source}" in alone, "the default is written, too"
    assert "# The rows looked at have 2 strata, by source." in alone


def test_long_rows_get_the_tokens_that_they_need(tmp_path):
    rows = [{"instruction": "Q", "output": "word " * 900} for _ in range(NUM_ROWS)]
    assert configuration(tmp_path, [written(tmp_path, rows, "jsonl")]).data.max_tokens == 2048


def test_a_model_without_chat_template_gets_one_for_chats(tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    rows = [SHAPES["messages"][0](i) for i in range(NUM_ROWS)]
    file = written(tmp_path, rows, "jsonl")

    config = configuration(tmp_path, [file], str(tmp_path / "model"))

    assert config.data.chat_template == "chatml"
    assert config.reference.model == str(tmp_path / "model")


def test_rows_with_tools_need_a_model_that_knows_them(tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    file = written(tmp_path, [SHAPES["tool calls"][0](i) for i in range(NUM_ROWS)], "jsonl")

    with pytest.raises(ModelError, match="has no chat template that knows them: take another"):
        first_config.text_of([file], str(tmp_path / "model"))


def test_names_that_yaml_reads_otherwise_are_quoted(tmp_path):
    rows = [{"question": f"Q{i}", "answer": "A", "type": f"t {i % 2}"} for i in range(NUM_ROWS)]
    folder = tmp_path / "my data: no. 1, {new} #2"
    folder.mkdir()
    file = written(folder, rows, "jsonl")

    assert configuration(tmp_path, [file]).data.train == [file]


def test_rows_that_cannot_be_used_are_counted_in_a_comment(tmp_path):
    rows = [SHAPES["messages"][0](i) for i in range(NUM_ROWS)] + [{"messages": [asked(0)]}]
    text = first_config.text_of([written(tmp_path, rows, "jsonl")])

    assert (
        "# 1 of these rows cannot be used (first: missing field: 'messages' has no answer" in text
    )


def test_no_fewer_rows_are_announced_than_were_looked_at(tmp_path):
    chats = [SHAPES["messages"][0](i) for i in range(first_config.ROWS_PER_FILE + 1)]
    others = [SHAPES["gsm8k"][0](i) for i in range(150)]
    (tmp_path / "others").mkdir()
    files = [written(tmp_path, chats, "parquet"), written(tmp_path / "others", others, "jsonl")]

    found = first_config.look_at(files)

    assert (found.num_rows, found.num_read) == (1151, 1150)
    assert found.num_usable == 1151 * found.shape.num_usable // 1150
    assert "about 1,151 rows, of which the first 1,150 were looked at" in first_config.text_of(
        files
    )


def test_what_the_fields_mean_is_not_guessed(tmp_path, capsys):
    file = written(tmp_path, [{"text": "Once upon a time", "label": i} for i in range(9)], "jsonl")

    assert cli.main(["init", file]) == 2

    printed = capsys.readouterr()
    assert printed.out == ""
    assert "text (text), label (number)" in printed.err
    assert "--fields messages=FIELD for chats" in printed.err


def test_the_command_prints_the_configuration_alone(tmp_path, capsys):
    file = written(tmp_path, [SHAPES["gsm8k"][0](i) for i in range(9)], "jsonl")

    assert cli.main(["init", file]) == 0

    assert capsys.readouterr().out == first_config.text_of([file])


SENTENCE = "It depends on what you like to do, and on the weather in the town where you are."


@pytest.mark.parametrize(
    ("response", "metrics"),
    [
        ("It is 3 + 4. The answer is 7.", None),
        ("Oslo", None),
        ("<think>3 + 4</think> So we have \\boxed{7}, and this is what was asked of us.", None),
        (SENTENCE, []),
        (f"{SENTENCE}\n\n{SENTENCE} There are 3 of them.", []),
    ],
)
def test_free_text_is_not_compared_by_its_last_words(tmp_path, response, metrics):
    rows = [{"messages": [asked(i), {"role": "assistant", "content": response}]} for i in range(20)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = first_config.text_of([str(tmp_path / "pool.jsonl")])
    (line,) = [line for line in text.splitlines() if line.startswith("# evaluation: ")]
    assert yaml.safe_load(line.removeprefix("# "))["evaluation"].get("metrics") == metrics
