"""Files that are not one row on each line: read where it is clear what they hold, else named."""

import json

import datasets
import pyarrow as pa
import pytest

from s2l_ray.data import sources
from s2l_ray.errors import DataError
from s2l_ray.storage import input_files

ROWS = [{"instruction": f"say {n}", "output": "x", "n": n} for n in range(5)]


def read(path):
    return [row for file in input_files.expand([str(path)]) for row in sources.read_rows(file)]


def write(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize("indent", [None, 1, 4])
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json"])
def test_an_array_of_objects_is_read_whatever_its_file_is_called(tmp_path, name, indent):
    rows = read(write(tmp_path / name, "\n " + json.dumps(ROWS, indent=indent)))
    assert [(row.row, row.fields) for row in rows] == list(enumerate(ROWS))


COLUMNS = {name: {str(n): ROWS[n][name] for n in range(5)} for name in ROWS[0]}
LISTS = {name: [row[name] for row in ROWS] for name in ROWS[0]}


@pytest.mark.parametrize(
    ("name", "content", "indent", "keys", "advice"),
    [
        ("a.json", {"data": ROWS}, None, "data", r"jq -c '\.data\[\]'"),
        ("a.json", {"data": ROWS}, 2, "data", r"jq -c '\.data\[\]'"),
        ("a.jsonl", {"data": ROWS}, 2, "data", r"jq -c '\.data\[\]'"),
        ("a.json", {"version": 1, "Rows": ROWS}, None, "version, Rows", r"jq -c '\.Rows\[\]'"),
        ("a.json", {"train": ROWS, "test": ROWS}, None, "train, test", r"jq -c '\.train\[\]'"),
        ("a.json", COLUMNS, None, "instruction, output, n", "pandas"),
        ("a.json", COLUMNS, 1, "instruction, output, n", "pandas"),
        ("a.json", LISTS, None, "instruction, output, n", "pandas"),
        ("a.jsonl", ROWS[0], 4, "instruction, output, n", r"jq -c \. FILE"),
        ("a.json", {"data": [{"text": "y" * 3_000_000}]}, None, "data", r"jq -c '\.data\[\]'"),
    ],
)
def test_an_object_around_the_rows_is_named_with_what_to_do(
    tmp_path, name, content, indent, keys, advice
):
    path = write(tmp_path / name, json.dumps(content, indent=indent) + "\n")
    with pytest.raises(DataError, match=rf"{name} is neither .* keys {keys}\. .*{advice}"):
        read(path)


def test_rows_over_several_lines_are_named(tmp_path):
    text = "\n".join(json.dumps(row, indent=2) for row in ROWS)
    with pytest.raises(DataError, match=r"a row over several lines: jq -c \. FILE"):
        read(write(tmp_path / "a.jsonl", text))


CHAT = {"messages": [{"role": "user", "content": "{\n"}], "tools": [{"name": "t"}], "data": "x"}


@pytest.mark.parametrize(
    "first_line",
    [
        json.dumps(CHAT),
        json.dumps({"data": [1], "instruction": "say"}),
        '{"instruction": "half',
        '{"instruction": "half",',
        "{",
        '{"instruction": [',
        "[1, 2]",
    ],
)
def test_lines_stay_lines_whatever_the_first_one_is(tmp_path, first_line):
    lines = [first_line, *map(json.dumps, ROWS)]
    rows = read(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert [row.row for row in rows] == list(range(6))
    assert [row.fields for row in rows[1:]] == ROWS


@pytest.mark.parametrize("row", [CHAT, ROWS[0], {"messages": [{"role": "user"}]}])
def test_a_file_may_hold_one_row(tmp_path, row):
    [only] = read(write(tmp_path / "a.json", json.dumps(row)))
    assert only.fields == row


def test_a_key_that_comes_twice_rejects_the_row(tmp_path):
    text = '{"a": 1, "b": {"c": 1, "c": 2}}\n{"a": 1, "a": 1}\n{"a": 1}\n'
    rows = read(write(tmp_path / "a.jsonl", text))
    assert [row.reason for row in rows] == ["repeated key", "repeated key", None]
    assert rows[0].excerpt.startswith("'c' twice: {")


def test_a_saved_data_set_is_read_with_its_row_numbers_and_types(tmp_path):
    features = datasets.Features(
        {
            "instruction": datasets.Value("string"),
            "output": datasets.Value("string"),
            "n": datasets.Value("int16"),
        }
    )
    whole = datasets.Dataset.from_list(ROWS, features)
    whole.save_to_disk(tmp_path / "saved", num_shards=2)
    files = input_files.expand([str(tmp_path / "saved")])
    assert [file.uri.rpartition("/")[2] for file in files] == [
        "data-00000-of-00002.arrow",
        "data-00001-of-00002.arrow",
    ]
    rows = read(tmp_path / "saved")
    assert [row.fields for row in rows] == ROWS
    assert [row.row for row in rows] == [0, 1, 2, 0, 1]
    assert rows[0].typed.schema.field("n").type == pa.int16()
    assert sources.estimated_rows(files[0], [ROWS[0]]) == 3


def test_of_a_saved_dictionary_of_data_sets_train_is_read(tmp_path):
    train, test = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS[:2])
    saved = datasets.DatasetDict({"train": train, "test": test})
    saved.save_to_disk(tmp_path / "saved")
    assert [row.fields for row in read(tmp_path / "saved")] == ROWS
    assert len(read(tmp_path / "saved" / "test")) == 2


def test_an_arrow_file_is_read_and_a_cut_stream_is_refused(tmp_path):
    table = pa.table({"n": range(3000)})
    with pa.ipc.new_file(str(tmp_path / "file.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.new_stream(str(tmp_path / "stream.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)
    for name in ("file.arrow", "stream.arrow"):
        assert [row.fields["n"] for row in read(tmp_path / name)] == list(range(3000))
    content = (tmp_path / "stream.arrow").read_bytes()
    for kept in (len(content) - 8, len(content) // 2, 3):
        (tmp_path / "cut.arrow").write_bytes(content[:kept])
        with pytest.raises(DataError, match=r"cut\.arrow is missing, truncated or damaged"):
            read(tmp_path / "cut.arrow")
