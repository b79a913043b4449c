"""Checks of a whole pool: what passes row by row, and is wrong all the same."""

import json

import pytest

from s2l_ray.config.data import FieldNames
from s2l_ray.data.pool_checks import (
    FieldCount,
    FileResult,
    check_files,
    check_named_fields,
    check_strata,
)
from s2l_ray.errors import DataError
from tests.data.test_prepare import jsonl, row, run, settings

ROWS = [{"instruction": "a", "output": "b", "source_name": "x", "input": None} for _ in range(3)]


def counted(fields, *batches):
    """The count of several workers, merged as the driver does."""
    merged = FieldCount()
    for rows in batches:
        count = FieldCount()
        count.add(rows, fields)
        merged.merge(json.loads(json.dumps(count.as_json())))
    return merged


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            {"stratum": "sorce_name"},
            "data.fields.stratum: 'sorce_name' (did you mean 'source_name'",
        ),
        ({"context": "input"}, "data.fields.context: 'input'"),  # null in every row
        ({"id": "zzz"}, "'zzz' (the rows have instruction, output, source_name, input)"),
    ],
)
def test_a_named_field_that_no_row_has_is_refused(names, told):
    fields = FieldNames(**names)
    with pytest.raises(DataError) as caught:
        check_named_fields(counted(fields, ROWS, ROWS), fields, "data.train")
    assert told in str(caught.value) and "none of the 6 rows" in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        {},  # defaults are not named by the user
        {"stratum": None, "id": None, "context": None},
        {"stratum": "source_name"},
        {"answer": "final"},  # of evaluation rows
        {"messages": "output", "context": "zzz"},  # a context is not read beside messages
    ],
)
def test_fields_that_are_there_or_not_named_pass(names):
    fields = FieldNames(**names)
    check_named_fields(counted(fields, ROWS), fields, "data.train")


def test_one_row_with_the_field_is_enough():
    fields = FieldNames(stratum="topic")
    check_named_fields(counted(fields, ROWS, [{"topic": "t"}], ROWS), fields, "data.train")


def test_names_that_are_remembered_are_bounded():
    fields = FieldNames()
    count = counted(fields, *([{f"key {number}-{k}": 1} for k in range(30)] for number in range(9)))
    assert count.rows == 270 and len(count.others) <= 50 + 30


def test_a_file_without_a_usable_row_is_refused_however_small():
    good = FileResult("a.jsonl", 100_000, 99_999, {"malformed JSON": 1})
    bad = FileResult("b.jsonl", 2, 0, {"missing field": 2})
    check_files([good, FileResult("empty.jsonl", 0, 0, {})], "data.train")
    with pytest.raises(DataError) as caught:
        check_files([good, bad], "data.train")
    assert "1 of 2 files have no usable row" in str(caught.value)
    assert "b.jsonl: 2 rows (2 missing field)" in str(caught.value)


@pytest.mark.parametrize(
    ("num_strata", "num_rows", "refused"),
    [(400, 400, True), (201, 400, True), (200, 400, False), (1, 400, False), (6, 6, False)],
)
def test_strata_of_single_rows_are_refused(num_strata, num_rows, refused):
    if not refused:
        return check_strata(num_strata, num_rows, "id", "data.train")
    with pytest.raises(DataError, match=f"'id' has {num_strata} different values in 400 rows"):
        check_strata(num_strata, num_rows, "id", "data.train")


@pytest.mark.ray
@pytest.mark.parametrize(
    ("rows", "changes", "told"),
    [
        ([row(k) for k in range(30)], {"fields": {"stratum": "topic"}}, "'topic'"),
        ([row(k, source=f"s{k}") for k in range(30)], {}, "'source' has 30 different values"),
        ([row(k, output="") for k in range(3)], {}, "no usable row"),
    ],
)
def test_the_stage_refuses_such_pools(tmp_path, ray_cluster, rows, changes, told):
    good = jsonl(tmp_path / "good.jsonl", [row(k) for k in range(100, 110)])
    paths = [jsonl(tmp_path / "pool.jsonl", rows)] + ([good] if "usable" in told else [])
    with pytest.raises(DataError, match=told):
        # One part for each file: a worker takes seconds to start.
        run(tmp_path / "out", paths, settings(rows_per_part=40, **changes), None)
