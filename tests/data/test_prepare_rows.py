"""Prepared rows come back as they came, whatever they hold and wherever they were."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ray.artifacts.tables import original_rows
from tests.data.test_prepare import jsonl, prepare_here, rejected, row, settings, tables


def test_parts_have_their_documented_types_even_where_all_rows_are_rejected(tmp_path):
    path = jsonl(tmp_path / "pool.jsonl", [b"{"] * 2 + [row(2)])
    prepare_here(tmp_path / "out", [path], settings(rows_per_part=2))
    empty, full = tables(tmp_path / "out")
    assert (empty.num_rows, full.num_rows) == (0, 1)
    assert [(field.name, str(field.type)) for field in empty.schema] == [
        ("example_id", "string"),
        ("stratum", "string"),
        ("input_ids", "list<element: int32>"),
        ("response_starts", "list<element: int32>"),
        ("response_ends", "list<element: int32>"),
        ("num_prompt_tokens", "int32"),
        ("num_tokens", "int32"),
    ]
    assert empty.schema == full.schema


def test_a_part_never_spans_two_files_and_rows_count_from_zero_in_each(tmp_path):
    one = jsonl(tmp_path / "one.jsonl", [row(i) for i in range(6)])
    none = jsonl(tmp_path / "none.jsonl", [])
    (tmp_path / "two.csv").write_text("instruction,output\na,b\nc\ne,f\n")
    two = str(tmp_path / "two.csv")
    prepare_here(tmp_path / "out", [one, none, two], settings())

    places = [
        [(item["file"], item["row"]) for item in table.to_pylist()]
        for table in tables(tmp_path / "out", "rows")
    ]
    assert places == [
        [(one, 0), (one, 1), (one, 2), (one, 3)],
        [(one, 4), (one, 5)],
        [(two, 0), (two, 2)],
    ]
    assert rejected(tmp_path / "out") == [(two, 1, "malformed row")]


UNUSUAL = {
    "null": None,
    "yes": True,
    "int": -3,
    "big": 2**70,
    "exponent": 1e-300,
    "infinite": float("inf"),
    "minus zero": -0.0,
    "empty": "",
    "text": 'a\u2028"\\\x00\U0001f600',
    "list": [1, "two", None, [], {}],
    "object": {"a": {"b": [1.5]}, "": None},
    "empty list": [],
    "empty object": {},
    "": "no name",
    "file": "theirs",
    "original:row": "another",
    "row": 12,
    "example_id": "theirs",
    "original:x": [1],
}


@pytest.mark.parametrize("beside", [[], [row(1)], [row(1) | dict.fromkeys(UNUSUAL, "text")]])
def test_a_row_of_every_unusual_type_comes_back_as_it_came(tmp_path, beside):
    rows = [row(0) | UNUSUAL, *beside]
    path = jsonl(tmp_path / "pool.jsonl", rows)
    prepare_here(tmp_path / "out", [path], settings())
    [table] = tables(tmp_path / "out", "rows")
    assert list(map(repr_sorted, original_rows(table))) == list(map(repr_sorted, rows))


def repr_sorted(fields):
    """Tells 1 from True and 0.0 from -0.0, which == does not."""
    return sorted((name, repr(value)) for name, value in fields.items())


@pytest.mark.parametrize("depth", [300, 900, 980, 1000, 5000, 100_000])
def test_a_row_of_any_depth_is_kept_or_rejected(tmp_path, depth):
    deep = b'{"instruction": "a", "output": "b", "deep": ' + b"[" * depth + b"]" * depth + b"}"
    wrong = b'{"instruction": "a", "output": ' + b"[" * depth + b"]" * depth + b"}"
    path = jsonl(tmp_path / "pool.jsonl", [deep, wrong, row(0)])
    summary = prepare_here(tmp_path / "out", [path], settings())
    assert summary["rows"] == 3 and summary["kept"] == 3 - len(rejected(tmp_path / "out"))
    assert rejected(tmp_path / "out")[-1][1] == 1


def test_rows_of_parquet_keep_their_numbers_and_values(tmp_path):
    columns = {
        "instruction": [None, "b", "c"],
        "output": ["x", "y", "z"],
        "turns": [[{"n": 1}], [], None],
    }
    pq.write_table(pa.table(columns), tmp_path / "pool.parquet")
    path = str(tmp_path / "pool.parquet")
    prepare_here(tmp_path / "out", [path], settings())
    [table] = tables(tmp_path / "out", "rows")
    assert table["row"].to_pylist() == [1, 2]
    assert list(original_rows(table)) == [
        {"instruction": "b", "output": "y", "turns": []},
        {"instruction": "c", "output": "z", "turns": None},
    ]
    assert rejected(tmp_path / "out") == [(path, 0, "empty field")]
