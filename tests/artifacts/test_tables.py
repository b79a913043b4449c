"""Parts come in order; original rows come back exactly as they came."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import Parts, original_rows, part_name, rows_table
from s2l_ray.errors import StorageError
from s2l_ray.storage.location import Location


@pytest.fixture
def folder(tmp_path):
    return Location.of(tmp_path / "stage")


def test_parts_come_in_numeric_order(folder):
    for number in (1_000_000, 100_000, 10, 100_001, 2, 1):
        (folder / f"part-{number:06d}.parquet").write_table(pa.table({"x": [number]}))
    (folder / "rows-000001.parquet").write_table(pa.table({"x": [0]}))
    assert [table["x"][0].as_py() for table in Parts(folder).tables()] == sorted(
        [1_000_000, 100_000, 10, 100_001, 2, 1]
    )


def test_parts_that_a_finished_stage_has_lost_are_named(folder):
    stage = StageDir(folder, "clusters", {"seed": 1})
    stage.begin()
    for number in range(3):
        for prefix in ("part", "rows"):
            (folder / part_name(number, prefix)).write_table(pa.table({"x": [number]}))
    manifest = stage.finish({}, 1.0)
    assert manifest.parts == {"part": 3, "rows": 3}
    assert len(Parts(folder).files()) == 3

    for lost in ("part-000002.parquet", "part-000000.parquet"):
        (folder / lost).remove()
    with pytest.raises(StorageError) as refused:
        Parts(folder.parent / "other", more=(folder,)).files()
    assert str(refused.value).startswith(
        f"{folder} has 1 of the 3 files part-*.parquet that its stage wrote; missing: "
        "part-000000.parquet, part-000002.parquet."
    )
    assert "--from clusters" in str(refused.value)
    assert len(Parts(folder, "rows").files()) == 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
NAMES = st.sampled_from(["instruction", "output", "file", "row", "example_id", "z", "ü"])


@given(st.lists(st.dictionaries(NAMES, JSON, max_size=4), max_size=5))
def test_original_rows_come_back_exactly_as_they_came(rows):
    ids = [str(number) for number in range(len(rows))]
    table = rows_table(rows, ids, "pool.jsonl", list(range(len(rows))))
    assert table["example_id"].to_pylist() == ids
    back = list(original_rows(table))
    assert back == rows
    assert [[type(value) for value in row.values()] for row in back] == [
        [type(row[name]) for name in other] for row, other in zip(rows, back, strict=True)
    ]


def test_a_field_of_one_type_is_a_column_of_that_type():
    table = rows_table([{"a": 1, "b": "x"}, {"a": 2}], ["0", "1"], "f", [0, 1])
    assert table.schema.field("a").type == pa.int64()
    assert table["b"].to_pylist() == ["x", None]
