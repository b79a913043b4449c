"""Manifests decide what is finished; original rows come back exactly as they came."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ray.artifacts.manifest import (
    Parts,
    StageDir,
    check_run,
    open_run,
    original_rows,
    rows_table,
    section_inputs,
)
from s2l_ray.config.sections import TrajectoriesConfig
from s2l_ray.errors import StorageError
from s2l_ray.storage.location import Location


@pytest.fixture
def folder(tmp_path):
    return Location.of(tmp_path / "stage")


def test_a_stage_is_current_until_one_of_its_inputs_changes(folder):
    stage = StageDir(folder, "clusters", {"clusters.num_clusters": 10, "seed": 1})
    stage.begin()
    assert not stage.is_current()
    stage.finish({"rows": 3}, 1.5)
    assert stage.is_current()
    other = StageDir(folder, "clusters", {"clusters.num_clusters": 11, "seed": 1, "new": 0})
    assert not other.is_current()
    assert other.changed_keys() == ["clusters.num_clusters", "new"]


def test_work_of_an_interrupted_stage_is_kept_only_for_the_same_inputs(folder):
    stage = StageDir(folder, "clusters", {"seed": 1})
    stage.begin()
    (folder / "unit").write_bytes(b"1")
    stage.begin()
    assert (folder / "unit").exists()
    StageDir(folder, "clusters", {"seed": 2}).begin()
    assert not (folder / "unit").exists()


def test_keys_that_only_change_the_speed_are_no_inputs():
    slow, fast = TrajectoriesConfig(workers=1), TrajectoriesConfig(workers=8)
    assert section_inputs("t", slow) == section_inputs("t", fast)
    assert "t.cpus_per_worker" in section_inputs("t", slow)


def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StorageError, match=r"not a run of s2l_ray.*thesis\.tex"):
        open_run(Location.of(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    open_run(Location.of(tmp_path / "new"))
    check_run(Location.of(tmp_path / "new"))


def test_parts_come_in_numeric_order(folder):
    for number in (10, 2, 1):
        (folder / f"part-{number:06d}.parquet").write_table(pa.table({"x": [number]}))
    (folder / "rows-000001.parquet").write_table(pa.table({"x": [0]}))
    assert [table["x"][0].as_py() for table in Parts(folder).tables()] == [1, 2, 10]


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
