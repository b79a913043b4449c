"""Rows that cannot be used: what is said of them, and how many are borne."""

import pytest

from s2l_ray.config.data import FieldNames
from s2l_ray.errors import DataError
from s2l_ray.storage.location import Location
from tests.data import chat_templates
from tests.data.chat_templates import tokenizer_with
from tests.data.test_prepare import jsonl, prepare_here, rejected, row, settings


def test_an_excerpt_tells_what_is_wrong_and_begins_the_row(tmp_path):
    bad = [row(0, output=5), row(1, output="", note="n" * 500), b"{nonsense"]
    path = jsonl(tmp_path / "pool.jsonl", [*bad, row(3)])
    prepare_here(tmp_path / "out", [path], settings())
    found = (Location.of(tmp_path / "out") / "rejected.parquet").read_table()
    wrong, empty, broken = found["excerpt"].to_pylist()
    assert wrong.startswith('\'output\' is of type int, not text: {"instruction": "say 0"')
    assert empty.startswith("'output' holds no text: ") and len(empty) == 200
    assert broken == "{nonsense"


def test_too_many_rejected_rows_are_listed_by_reason_with_their_first_places(tmp_path):
    rows = [b"{", row(1), row(2, output=None), *[b"{"] * 4, *(row(i) for i in range(7, 20))]
    path = jsonl(tmp_path / "pool.jsonl", rows)
    with pytest.raises(DataError) as caught:
        prepare_here(tmp_path / "out", [path], settings(max_rejected=0.29))
    assert str(caught.value).splitlines() == [
        "data.train: 6 of 20 rows cannot be used (30.00%; the limit data.max_rejected is 29.00%):",
        f"  5 malformed JSON (first: {path} row 0 (from 0); {path} row 3 (from 0); "
        f"{path} row 4 (from 0))",
        f"  1 empty field (first: {path} row 2 (from 0))",
        f"All of them are listed in {tmp_path}/out/rejected.parquet. Correct the data or "
        "data.fields, or raise data.max_rejected.",
    ]
    assert len(rejected(tmp_path / "out")) == 6


def test_a_rejected_share_at_the_limit_is_accepted_and_zero_forbids_any(tmp_path):
    path = jsonl(tmp_path / "pool.jsonl", [b"{", *(row(i) for i in range(3))])
    assert prepare_here(tmp_path / "at", [path], settings(max_rejected=0.25))["kept"] == 3
    with pytest.raises(DataError, match="1 of 4 rows"):
        prepare_here(tmp_path / "zero", [path], settings(max_rejected=0.0))


def test_a_pool_without_a_usable_row_is_refused_whatever_the_limit(tmp_path):
    path = jsonl(tmp_path / "pool.jsonl", [b"{"] * 5)
    with pytest.raises(DataError, match=r"5 of 5 rows cannot be used") as caught:
        prepare_here(tmp_path / "out", [path], settings(max_rejected=1.0))
    assert "raise data.max_rejected" not in str(caught.value)


def test_the_error_has_the_words_of_the_template(tmp_path):
    made = tokenizer_with(chat_templates.GEMMA)
    made.save_pretrained(tmp_path / "tokenizer")
    said = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    chat = {"messages": [*said, {"role": "assistant", "content": "A"}]}
    path = jsonl(tmp_path / "pool.jsonl", [chat] * 3)
    config = settings(fields=FieldNames(messages="messages"), template="chat")

    with pytest.raises(DataError) as caught:
        prepare_here(tmp_path / "out", [path], config, tokenizer=str(tmp_path / "tokenizer"))

    words = "the tokenizer's chat template refuses the messages: System role not supported"
    assert f"3 refused by the template (first: {path} row 0 (from 0): {words}; " in str(
        caught.value
    )


def test_what_an_older_version_left_of_a_part_is_done_again(tmp_path):
    path = jsonl(tmp_path / "pool.jsonl", [row(0), row(1)])
    staged = Location.of(tmp_path / "out" / "staged")
    (staged / "file-000000.json").write_json({"number": 0, "parts": []})
    for name in ("done-000000.json", "tokenised-000000.json"):
        (staged / name).write_json({"part": 0, "rows": 9, "kept": 9})

    assert prepare_here(tmp_path / "out", [path], settings())["kept"] == 2
