"""Rows and tokens of files; expected values are counted from the rows that were written."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ray.artifacts.amounts import Amount, Pool
from s2l_ray.config.data import DataConfig
from s2l_ray.data import first_rows
from s2l_ray.errors import DataError
from s2l_ray.estimate import sizes
from tests import tiny

ROWS = [
    {"instruction": f"question {number} " * (1 + number % 9), "output": "42 " * (1 + number % 50)}
    for number in range(3_000)
]


def write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def pool(data, summary=None, counter=None) -> Pool:
    return sizes.pool(data, summary, counter or sizes.by_characters(data))


def test_a_subset_of_average_rows_has_its_share_of_the_tokens():
    assert Amount(30, 1_200, 300).scaled_to(10) == Amount(10, 400, 100)
    assert Amount(0, 0, 0).scaled_to(10) == Amount(10, 0, 0)


def test_amounts_add_up():
    assert Amount(1, 20, 3, 1) + Amount(4, 50, 6, 2) == Amount(5, 70, 9, 3)


def test_cut_rows_are_counted_as_a_run_counts_them(tmp_path):
    (tmp_path / "template.txt").write_text("{prompt}")
    rows = [{"instruction": "abc", "output": "b" * (9 if n % 4 else 6)} for n in range(20)]
    data = DataConfig(
        train=write(tmp_path / "pool.jsonl", rows),
        template=str(tmp_path / "template.txt"),
        max_tokens=10,
    )
    assert pool(data, counter=sizes.by_tokenizer(data, tiny.tokenizer())).amount.cut == 15
    # The same by characters, four for a token and thirty tokens of a template.
    assert pool(data).amount.cut == 20


def test_a_tokenizer_counts_what_a_run_would(tmp_path):
    (tmp_path / "template.txt").write_text("Q: {prompt} A: ")
    data = DataConfig(
        train=write(tmp_path / "pool.jsonl", ROWS[:20]), template=str(tmp_path / "template.txt")
    )
    found = pool(data, counter=sizes.by_tokenizer(data, tiny.tokenizer())).amount

    # A token is a byte, and one more ends the response.
    prompts = sum(len(f"Q: {row['instruction']} A: ") for row in ROWS[:20])
    responses = sum(len(row["output"]) + 1 for row in ROWS[:20])
    assert found == Amount(20, prompts + responses, responses)


def test_rows_without_a_response_token_are_no_part_of_the_pool(tmp_path):
    (tmp_path / "template.txt").write_text("{prompt}")
    rows = [{"instruction": "a" * (5 if number % 4 else 50), "output": "b"} for number in range(20)]
    data = DataConfig(
        train=write(tmp_path / "pool.jsonl", rows),
        template=str(tmp_path / "template.txt"),
        max_tokens=10,
        max_rejected=0.25,
    )

    assert pool(data, counter=sizes.by_tokenizer(data, tiny.tokenizer())).amount.rows == 15


def test_without_a_tokenizer_four_characters_are_a_token(tmp_path):
    rows = [{"instruction": "a" * 40, "output": "b" * 80}] * 5
    data = DataConfig(train=write(tmp_path / "pool.jsonl", rows))

    # 10 and 20 tokens, and 30 for the template.
    assert pool(data).amount == Amount(5, 5 * 60, 5 * 20)


CHAT = [
    {"role": "user", "content": "a" * 40},
    {"role": "assistant", "content": "b" * 80},
    {"role": "user", "content": "c" * 20},
    {"role": "assistant", "content": "d" * 8},
    {"role": "user", "content": "thanks"},
]


@pytest.mark.parametrize(("turns", "responses"), [("all", 22), ("last", 2)])
def test_without_a_tokenizer_every_answer_of_a_chat_counts(tmp_path, turns, responses):
    data = DataConfig(
        train=write(tmp_path / "pool.jsonl", [{"messages": CHAT}] * 5),
        fields={"messages": "messages"},
        turns=turns,
    )

    # 37 tokens up to the last answer, and 30 for the template.
    assert pool(data).amount == Amount(5, 5 * 67, 5 * responses)


@pytest.mark.parametrize("turns", ["all", "last"])
def test_with_a_tokenizer_the_answers_of_a_chat_are_counted_as_a_run_does(tmp_path, turns):
    data = DataConfig(
        train=write(tmp_path / "pool.jsonl", [{"messages": CHAT}] * 5),
        fields={"messages": "messages"},
        turns=turns,
        chat_template="chatml",
    )

    found = pool(data, counter=sizes.by_tokenizer(data, tiny.tokenizer())).amount

    answers = [80, 8] if turns == "all" else [8]
    assert found.responses == 5 * sum(length + 1 for length in answers)  # and its end


def test_no_row_counts_more_tokens_than_it_may_have(tmp_path):
    rows = [{"instruction": "a" * 40, "output": "b" * 80}] * 5
    data = DataConfig(train=write(tmp_path / "pool.jsonl", rows), max_tokens=45)

    assert pool(data).amount == Amount(5, 5 * 45, 5 * 5, cut=5)


@pytest.mark.parametrize("kind", ["jsonl", "json", "jsonl.gz", "csv", "parquet"])
def test_a_large_pool_is_estimated_from_its_first_rows_within_a_quarter(
    tmp_path, monkeypatch, kind
):
    monkeypatch.setattr(first_rows, "READ_ROWS", 1_000)
    path = tmp_path / f"large.{kind}"
    text = "".join(f"{json.dumps(row)}\n" for row in ROWS)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == "csv":
        named = ["instruction,output", *(",".join(row.values()) for row in ROWS)]
        path.write_text("".join(f"{line}\n" for line in named))
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    else:
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())

    found = pool(DataConfig(train=str(path), rows_per_part=1_000))
    assert (found.counted, found.whole) == (False, False)
    assert len(ROWS) * 0.75 < found.amount.rows < len(ROWS) * 1.25
    characters = sum(len(value) for row in ROWS for value in row.values())
    expected = characters / sizes.CHARACTERS_PER_TOKEN + sizes.TEMPLATE_TOKENS * len(ROWS)
    assert 0.75 < found.amount.tokens / expected < 1.25
    assert found.parts in (3, 4)


def test_a_pool_that_is_read_to_its_end_has_all_its_rows_and_strata(tmp_path):
    rows = [{**row, "source": f"s{number // 1_000}"} for number, row in enumerate(ROWS)]
    data = DataConfig(
        train=[write(tmp_path / f"{part}.jsonl", rows[part::2]) for part in range(2)],
        rows_per_part=1_000,
    )
    found = pool(data)

    # Two files of 1,500 rows are two parts each.
    assert (found.amount.rows, found.strata, found.parts, found.whole) == (3_000, 3, 4, True)


def test_a_prepared_pool_is_not_estimated():
    summary = {
        "kept": 30,
        "tokens": 1_234,
        "prompt_tokens": 734,
        "strata": {"a": 10, "b": 20},
        "rows_per_part": [10, 20],
        "rows": 32,
        "rejected": {"empty field": 2},
    }
    found = pool(DataConfig(train="nowhere.jsonl"), summary)

    rejected = "2 of 32 rows cannot be used (6.25%): 2 empty field"
    assert found == Pool(Amount(30, 1_234, 500), 2, 2, counted=True, rejected=rejected)


def test_rows_that_were_prepared_without_a_tokenizer_have_estimated_tokens(tmp_path):
    data = DataConfig(train=write(tmp_path / "pool.jsonl", ROWS[:40]))
    summary = {"kept": 20, "tokens": 0, "prompt_tokens": 0, "strata": {}, "rows_per_part": [20]}
    found = pool(data, summary)

    assert found.counted and found.amount == pool(data).amount.scaled_to(20)


def test_held_out_rows_are_no_more_than_are_evaluated(tmp_path):
    held = write(tmp_path / "held.jsonl", ROWS[:40])
    data = DataConfig(train="nowhere.jsonl", eval={"held": held})
    counter = sizes.by_characters(data)
    everything = sizes.held_out("held", data, counter, None)

    assert everything.rows == 40
    assert sizes.held_out("held", data, counter, 10) == everything.scaled_to(10)
    assert sizes.held_out("held", data, counter, 100) == everything


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"data.eval.held: there are no rows in its files"),
        ([{"question": "1"}], r"data.eval.held: none of the first 1 rows .* no 'instruction'"),
    ],
)
def test_held_out_rows_that_cannot_be_used_are_named(tmp_path, rows, message):
    data = DataConfig(train="nowhere.jsonl", eval={"held": write(tmp_path / "held.jsonl", rows)})
    with pytest.raises(DataError, match=message):
        sizes.held_out("held", data, sizes.by_characters(data), None)


def trajectories(path, num_rows, num_checkpoints):
    losses = pa.array([[1.0] * num_checkpoints] * num_rows, pa.list_(pa.float32()))
    ids = pa.array([f"e{number}" for number in range(num_rows)], pa.string())
    pq.write_table(pa.table({"example_id": ids, "loss_nats": losses}), path)


def test_brought_trajectories_are_counted_by_their_footers(tmp_path):
    trajectories(tmp_path / "a.parquet", 7, 3)
    trajectories(tmp_path / "b.parquet", 5, 3)
    trajectories(tmp_path / "c.parquet", 0, 0)

    assert sizes.imported(f"{tmp_path}/*.parquet", None) == (12, 3)


@pytest.mark.parametrize(
    ("sizes_of_files", "message"),
    [
        ([(7, 3), (5, 4)], r"loss_nats has 3 values per row in .* and 4 in"),
        ([(0, 0)], r"trajectories.path: no rows in 1 file"),
    ],
)
def test_brought_trajectories_that_cannot_be_used_are_refused(tmp_path, sizes_of_files, message):
    for number, size in enumerate(sizes_of_files):
        trajectories(tmp_path / f"{number}.parquet", *size)
    with pytest.raises(DataError, match=message):
        sizes.imported(f"{tmp_path}/*.parquet", None)


def test_finished_trajectories_are_counted_by_their_manifest():
    assert sizes.imported("nowhere.parquet", {"rows": 9, "steps": [1, 2]}) == (9, 2)


@pytest.mark.parametrize(
    ("limit", "expected"), [(None, (10, 500, 200)), (50, (10, 500, 200)), (5, (10, 350, 50))]
)
def test_responses_of_a_limited_length_leave_the_prompts_as_they_are(limit, expected):
    found = Amount(rows=10, tokens=500, responses=200).with_responses_of(limit)
    assert (found.rows, found.tokens, found.responses) == expected
