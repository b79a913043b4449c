"""Rows from an input file to the file of a subset: values and types come back as they came."""

import datetime
import decimal
import json

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ray import hashing
from s2l_ray.artifacts.tables import Parts, rows_name, rows_table
from s2l_ray.errors import DataError
from s2l_ray.selection.stage import write_selected
from s2l_ray.storage.location import Location
from s2l_ray.training.target import selected_rows
from tests.data.test_prepare import jsonl, prepare_here, settings


def subset_of(folder, paths, name, **changes):
    """The subset of all rows, after the stage has prepared them."""
    summary = prepare_here(folder / "out", paths, settings(**changes))
    rows = Parts(Location.of(folder / "out"), "rows")
    ids = [i for table in rows.tables(["example_id"]) for i in table["example_id"].to_pylist()]
    keys = np.array(hashing.example_keys(ids))
    write_selected(keys, rows, Location.of(folder / name))
    return summary, folder / name


def values_in(file):
    """The rows of a .jsonl file as lists of pairs, which keep the order of keys, without our id."""
    lines = file.read_text().rstrip("\n").split("\n")
    rows = [json.loads(line, object_pairs_hook=list) for line in lines]
    return [[pair for pair in row if pair[0] != "example_id"] for row in rows]


TEXT = st.text(st.characters(codec="utf-8"), max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
NAMES = st.sampled_from(["a", "file", "row", "original:row", "original:", "rank", "", "ü"])


@hypothesis.settings(max_examples=20, deadline=None)
@given(st.lists(st.dictionaries(NAMES, JSON, max_size=5), min_size=1, max_size=5), st.data())
def test_json_lines_come_back_value_for_value_and_key_for_key(tmp_path_factory, more, data):
    folder = tmp_path_factory.mktemp("rows")
    rows = []
    for number, fields in enumerate(more):
        row = {"instruction": f"say {number}", "output": "x", **fields}
        rows.append({name: row[name] for name in data.draw(st.permutations(list(row)))})
    path = jsonl(folder / "pool.jsonl", rows)

    _, subset = subset_of(folder, [path], "all.jsonl")

    assert repr(values_in(subset)) == repr(values_in(folder / "pool.jsonl"))
    assert [repr(row) for _, row in without_ids(selected_rows(Location.of(subset)))] == [
        repr(row) for row in rows
    ]


def without_ids(rows):
    for example_id, row in rows:
        yield example_id, {name: row[name] for name in row if name != "example_id"}


PIXELS = b"\x89PNG\xff"
PRICE = decimal.Decimal("1.10")
DAY = datetime.date(2024, 2, 29)
TYPED = {
    "bytes": pa.array([PIXELS, None, b""], pa.binary()),
    "image": pa.array(
        [{"bytes": PIXELS, "path": None}, None, {"bytes": None, "path": "b.png"}],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    ),
    "day": pa.array([DAY, None, DAY], pa.date32()),
    "utc": pa.array([1, None, 3], pa.timestamp("ns", "UTC")),
    "length": pa.array([1, None, 90], pa.duration("ms")),
    "price": pa.array(
        [decimal.Decimal("1.10"), None, decimal.Decimal("-3.00")], pa.decimal128(9, 2)
    ),
    "tags": pa.array([["a"], None, []], pa.list_(pa.large_string())),
    "kind": pa.array(["x", None, "y"]).dictionary_encode(),
    "kinds": pa.array([["x"], None, ["y", "x"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
    "large": pa.array(["x", None, "y"], pa.large_string()),
    "none": pa.nulls(3),
    "small": pa.array([1, None, -3], pa.int8()),
    "unsigned": pa.array([2**64 - 1, None, 0], pa.uint64()),
    "half": pa.array([1.5, None, -0.0], pa.float32()),
    "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int32())),
    "fixed": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int16(), 2)),
    "file": pa.array([b"theirs", None, b"x"], pa.binary()),
    "row": pa.array([10, None, 30], pa.int16()),
    "original:row": pa.array(["a", None, "b"]),
    "rank": pa.array([True, None, False]),
}


def typed_table():
    texts = {"instruction": ["say 0", "say 1", "say 2"], "output": ["x", "y", "z"]}
    return pa.table({**texts, **TYPED})


def test_parquet_rows_keep_every_type_in_parquet(tmp_path):
    table = typed_table()
    pq.write_table(table, tmp_path / "pool.parquet")
    summary, subset = subset_of(tmp_path, [str(tmp_path / "pool.parquet")], "all.parquet")

    back = pq.read_table(subset)
    assert back.column_names == [*table.column_names, "example_id"]
    for name in table.column_names:
        assert back.schema.field(name).type == table.schema.field(name).type, name
        assert back[name].to_pylist() == table[name].to_pylist(), name
    assert summary["fields_of_no_type"] == {}
    assert summary["fields"]["image"] == "struct<bytes: binary, path: string>"


def test_parquet_rows_in_json_lines_have_text_for_what_json_does_not_hold(tmp_path):
    pq.write_table(typed_table(), tmp_path / "pool.parquet")
    summary, subset = subset_of(tmp_path, [str(tmp_path / "pool.parquet")], "all.jsonl")

    first, second, _ = [json.loads(line) for line in subset.read_text().splitlines()]
    assert first["bytes"] == first["image"]["bytes"] == "iVBOR/8="
    assert (first["day"], first["utc"]) == ("2024-02-29", "1970-01-01T00:00:00.000000001+00:00")
    assert (first["length"], first["price"]) == ("PT0.001S", "1.10")
    assert (first["small"], first["unsigned"], first["tags"]) == (1, 2**64 - 1, ["a"])
    assert {name: second[name] for name in TYPED} == dict.fromkeys(TYPED)
    assert summary["text_in_jsonl"] == {
        "bytes": "base64",
        "image": "base64",
        "day": "ISO 8601",
        "utc": "ISO 8601",
        "length": "ISO 8601",
        "price": "decimal",
        "file": "base64",
    }


def test_features_of_datasets_stay_known(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "instruction": datasets.Value("string"),
            "output": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
        }
    )
    rows = {"instruction": ["a", "b"], "output": ["x", "y"], "label": [1, 0]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "pool.parquet")

    _, subset = subset_of(tmp_path, [str(tmp_path / "pool.parquet")], "all.parquet")
    back = datasets.Dataset.from_parquet(str(subset), cache_dir=str(tmp_path / "cache"))
    assert back.features["label"] == features["label"]


def test_files_of_other_types_are_unified_and_rows_keep_their_values(tmp_path):
    one = {"instruction": ["a"], "output": ["x"], "n": pa.array([1], pa.int8())}
    two = {"instruction": ["b"], "output": pa.array(["y"], pa.large_string()), "m": [{"k": [2.5]}]}
    pq.write_table(pa.table(one), tmp_path / "one.parquet")
    pq.write_table(pa.table(two), tmp_path / "two.parquet")
    three = jsonl(tmp_path / "three.jsonl", [{"instruction": "c", "output": "z", "n": 7}])
    paths = [str(tmp_path / "one.parquet"), str(tmp_path / "two.parquet"), three]

    _, subset = subset_of(tmp_path, paths, "all.parquet")
    table = pq.read_table(subset)
    assert table["n"].to_pylist() == [1, None, 7]
    assert table["m"].to_pylist() == [None, {"k": [2.5]}, None]
    assert table.schema.field("n").type == pa.int64()
    _, subset = subset_of(tmp_path / "again", paths, "all.jsonl")
    assert values_in(subset)[2] == [("instruction", "c"), ("output", "z"), ("n", 7)]


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ([{}, {}], "empty in every row"),
        ([1, "a"], "Could not convert"),
        ([2**64, 1], "beyond 64 bits"),
        ([[{"a": 1}], [{"a": "b"}]], "Could not convert"),
    ],
)
@pytest.mark.parametrize("rows_per_part", [1, 4])
def test_what_parquet_cannot_hold_is_known_when_rows_are_prepared(
    tmp_path, values, cause, rows_per_part
):
    rows = [{"instruction": f"say {n}", "output": "x", "meta": m} for n, m in enumerate(values)]
    path = jsonl(tmp_path / "pool.jsonl", rows)
    summary, subset = subset_of(tmp_path, [path], "all.jsonl", rows_per_part=rows_per_part)
    assert [dict(row)["meta"] for row in values_in(subset)] == [
        json.loads(json.dumps(value), object_pairs_hook=list) for value in values
    ]
    assert list(summary["fields_of_no_type"]) == ["meta"]
    assert set(summary["fields"]) == {"instruction", "output", "meta"}
    if rows_per_part == 4:
        assert cause in summary["fields_of_no_type"]["meta"]
    with pytest.raises(DataError, match=r"first: 'meta': .*selection\.format: jsonl"):
        subset_of(tmp_path, [path], "all.parquet", rows_per_part=rows_per_part)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_field_example_id_with_other_values_stays_beside_ours(tmp_path, kind):
    rows = [
        {"instruction": f"say {n}", "output": "x", "example_id": n, "original:example_id": "o"}
        for n in range(3)
    ]
    path = jsonl(tmp_path / "pool.jsonl", rows)
    _, subset = subset_of(tmp_path, [path], f"all.{kind}")
    if kind == "parquet":
        found = pq.read_table(subset).to_pylist()
    else:
        found = [json.loads(line) for line in subset.read_text().splitlines()]
    assert [row["original:example_id"] for row in found] == [0, 1, 2]
    assert all(isinstance(row["example_id"], str) for row in found)
    read = list(selected_rows(Location.of(subset)))
    assert [row for _, row in read] == rows
    assert [example_id for example_id, _ in read] == [row["example_id"] for row in found]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_field_example_id_with_our_values_is_written_once(tmp_path, kind):
    rows = [{"instruction": f"say {n}", "output": "x", "example_id": f"e{n}"} for n in range(3)]
    path = jsonl(tmp_path / "pool.jsonl", rows)
    fields = {"id": "example_id"}
    _, subset = subset_of(tmp_path, [path], f"all.{kind}", fields=fields)
    assert list(selected_rows(Location.of(subset))) == [(row["example_id"], row) for row in rows]
    if kind == "parquet":
        assert pq.read_schema(subset).names == ["instruction", "output", "example_id"]


def test_rows_of_older_runs_become_parquet(tmp_path):
    rows = [{"instruction": "a", "output": "b", "turns": [{"n": 1}]}, {"instruction": "c"}]
    table = rows_table(rows, ["0", "1"], "f", [0, 1])
    bare = [
        field.with_metadata({"s2l": "json"} if field.metadata else None) for field in table.schema
    ]
    (tmp_path / "rows").mkdir()
    pq.write_table(table.cast(pa.schema(bare)), tmp_path / "rows" / rows_name(0))

    parts = Parts(Location.of(tmp_path / "rows"), "rows")
    write_selected(hashing.example_keys(["0", "1"]), parts, Location.of(tmp_path / "all.parquet"))
    assert pq.read_table(tmp_path / "all.parquet").to_pylist() == [
        {"instruction": "a", "output": "b", "turns": [{"n": 1}], "example_id": "0"},
        {"instruction": "c", "output": None, "turns": None, "example_id": "1"},
    ]
