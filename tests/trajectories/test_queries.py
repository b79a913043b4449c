"""Query rows become tokens as the pool's rows do."""

import json

import pytest

from s2l_ray.config.data import DataConfig, FieldNames
from s2l_ray.data.examples import read_example
from s2l_ray.data.templates import load_template
from s2l_ray.data.tokenise import tokenise
from s2l_ray.errors import DataError
from s2l_ray.storage import input_files
from s2l_ray.storage.location import Location
from s2l_ray.trajectories import queries
from tests import tiny

ROWS = [{"ask": f"say {word}", "reply": word} for word in ("a", "bb", "ccc")]


@pytest.fixture
def asked(tmp_path):
    """Queries out of these rows (or lines), by the names of `fields`."""
    tiny.tokenizer().save_pretrained(tmp_path / "tokenizer")

    def made(rows, **changes):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / "queries.jsonl").write_text("".join(f"{line}\n" for line in lines))
        fields = FieldNames(prompt="ask", response="reply")
        data = DataConfig(train=["pool.jsonl"], fields=fields, max_tokens=200, **changes)
        files = input_files.expand([str(tmp_path / "queries.jsonl")])
        return queries.Queries(files, data, str(tmp_path / "tokenizer"))

    return made


def test_queries_are_tokenised_as_the_pool_is(asked, tmp_path):
    folder = Location.of(tmp_path / "parts")
    parts, counts = queries.write_query_parts(asked(ROWS, rows_per_part=2), folder)

    assert counts == {"num_query_rows": 3, "rejected_query_rows": 0, "notes": []}
    found = [row for table in parts.tables() for row in table.to_pylist()]
    assert [len(table) for table in parts.tables()] == [2, 1]
    examples = [read_example(row, FieldNames(prompt="ask", response="reply")) for row in ROWS]
    template = load_template(DataConfig(train=["pool.jsonl"], template="alpaca"))
    for row, tokens in zip(found, tokenise(examples, template, tiny.tokenizer(), 200), strict=True):
        assert row["input_ids"] == tokens.input_ids
        assert row["num_prompt_tokens"] == tokens.num_prompt_tokens
    assert [row["example_id"].rpartition("/")[2] for row in found] == [
        f"queries.jsonl row {number}" for number in range(3)
    ]


def test_queries_that_cannot_be_used_are_counted_by_reason(asked, tmp_path):
    rows = [*ROWS, "{", {"ask": "no reply"}, {"ask": "x" * 300, "reply": "cut away"}]
    with pytest.raises(DataError, match=r"trajectories\.queries: 3 of 6 rows cannot be used") as e:
        queries.write_query_parts(asked(rows), Location.of(tmp_path / "parts"))
    for reason in ("1 malformed JSON", "1 missing field", "1 no response tokens left"):
        assert reason in str(e.value)
    kept, counts = queries.write_query_parts(
        asked(rows, max_rejected=0.5), Location.of(tmp_path / "parts")
    )
    assert sum(table.num_rows for table in kept.tables()) == 3
    (note,) = counts.pop("notes")
    assert counts == {"num_query_rows": 3, "rejected_query_rows": 3}
    reasons = "1 malformed JSON, 1 missing field, 1 no response tokens left"
    start = f"3 of 6 rows of trajectories.queries cannot be used: {reasons} (first: {tmp_path}"
    assert note.startswith(start)
    assert [place.rpartition("/")[2] for place in note.rstrip(")").split(", ")[-3:]] == [
        f"queries.jsonl row {number}" for number in (3, 4, 5)
    ]


def test_queries_of_which_none_can_be_used_are_refused_whatever_the_limit(asked, tmp_path):
    with pytest.raises(
        DataError, match=r"3 of 3 rows cannot.*\n.*3 missing field.*\nCorrect the data"
    ):
        queries.write_query_parts(
            asked([{"ask": "?"}] * 3, max_rejected=1.0), Location.of(tmp_path / "p")
        )


def test_queries_without_rows_are_refused(asked, tmp_path):
    with pytest.raises(DataError, match=r"trajectories\.queries: there are no rows"):
        queries.write_query_parts(asked([]), Location.of(tmp_path / "parts"))
