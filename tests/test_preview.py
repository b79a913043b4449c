"""`s2l preview`: rows of every shape, as a model reads them."""

import json
import re

import pytest
import yaml

from tests.data_shapes import END, SHAPES, TEMPLATE, Shape, chat, lines
from tests.program import called


def configured(tmp_path, shape: Shape) -> str:
    tree = {"run_dir": str(tmp_path / "run"), "data": shape.write(tmp_path)}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tree))
    return str(tmp_path / "mine.yaml")


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_row_of_every_shape_is_learned_as_it_should_be(tmp_path, shape):
    config = configured(tmp_path, shape)
    if shape.refused:
        done = called("preview", config)
        assert done.returncode == 2 and shape.refused in done.stderr
        return
    done = called("preview", config, "--rows", "20", "--json")

    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    usable = [row for row in found if "rejected" not in row]
    learned = [[s["text"] for s in row["segments"] if s["loss"]] for row in usable]
    assert learned == shape.learned
    first_read = "".join(s["text"] for s in usable[0]["segments"] if not s["loss"])
    assert all(text in first_read for text in shape.read)
    rejected = [row["rejected"] for row in found if "rejected" in row]
    assert len(rejected) == len(shape.rejected)
    for reason, beginning in zip(rejected, shape.rejected, strict=True):
        assert reason.startswith(beginning)


QA = lines(*(chat(("user", f"{k} + 1?"), ("assistant", f"{k + 1}")) for k in range(4)))
CHATS = Shape("chats", {"a.jsonl": QA + b"{oops\n"}, {"fields": {"messages": "messages"}})


def test_texts_joined_are_what_the_template_renders(tmp_path):
    done = called("preview", configured(tmp_path, CHATS), "--json", "--rows", "1")

    (row,) = map(json.loads, done.stdout.splitlines())
    whole = "".join(segment["text"] for segment in row["segments"])
    assert whole == f"<|user|>\n0 + 1?{END}\n<|assistant|>\n1{END}"
    assert TEMPLATE.startswith("{% if tools %}") and re.fullmatch("[0-9a-f]{32}", row["example_id"])


def test_a_rejected_row_is_named(tmp_path):
    done = called("preview", configured(tmp_path, CHATS), "--json", "--rows", "9")

    *good, bad = map(json.loads, done.stdout.splitlines())
    assert len(good) == 4
    assert (bad["row"], bad["file"]) == (4, str(tmp_path / "pool" / "a.jsonl"))
    assert bad["rejected"].startswith("malformed JSON")


def test_without_colour_the_loss_is_in_brackets(tmp_path):
    limit = ("--set", "data.max_rejected=0.1")
    done = called("preview", configured(tmp_path, CHATS), "--rows", "2", *limit)

    assert done.returncode == 0, done.stderr
    assert f"0 + 1?{END}\n<|assistant|>\n[[1{END}]]\n" in done.stdout
    assert f"[[2{END}]]" in done.stdout and f"[[3{END}]]" not in done.stdout
    assert "2 with loss" in done.stdout  # the digit and the end
    assert "1 of the 5 rows would be rejected:\n  1 malformed JSON (first: " in done.stdout
    assert "a.jsonl row 4 (from 0): {oops)\n" in done.stdout  # the reason once
    assert "more than data.max_rejected (10.00%)" in done.stdout


def test_what_is_left_out_of_rows_is_counted(tmp_path):
    turns = ("user", "1 + 1?"), ("assistant", "2"), ("user", "Thanks!")
    thanks = Shape("thanks", {"a.jsonl": lines(chat(*turns), chat(*turns, turns[0]))}, CHATS.data)
    done = called("preview", configured(tmp_path, thanks))

    assert done.returncode == 0, done.stderr
    assert (
        "row 0 (from 0) · " in done.stdout
        and "· 1 messages after the last answer left out" in done.stdout
    )
    assert "\n3 messages after the last answer left out\n" in done.stdout
    assert "max_rejected" not in done.stdout


def test_rows_cannot_rule_the_terminal(tmp_path):
    evil = Shape(
        "evil",
        {"a.jsonl": lines(chat(("user", "\x1b[2Jq"), ("assistant", "[red]a\x07")))},
        {"fields": {"messages": "messages"}},
    )
    done = called("preview", configured(tmp_path, evil))

    assert "\x1b" not in done.stdout and "\x07" not in done.stdout
    assert "\\x1b[2Jq" in done.stdout and "[red]a\\x07" in done.stdout


def test_without_a_tokenizer_there_is_nothing_to_preview(tmp_path):
    shape = Shape("none", {"a.jsonl": QA}, {"tokenizer": None})
    done = called("preview", configured(tmp_path, shape))
    assert done.returncode == 2 and "Give `data`, and a tokenizer" in done.stderr
