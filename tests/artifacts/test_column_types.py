"""Types of columns: one for all parts, or why there is none; values that JSON can hold."""

import datetime
import decimal
import json
import uuid

import numpy as np
import pyarrow as pa
import pytest

from s2l_ray.artifacts import column_types


def schema(kind, name="x"):
    return pa.schema([pa.field(name, kind)])


@pytest.mark.parametrize(
    ("kinds", "common"),
    [
        ([pa.int8(), pa.int64()], pa.int64()),
        ([pa.int64(), pa.float64()], pa.float64()),
        ([pa.null(), pa.binary()], pa.binary()),
        ([pa.string(), pa.large_string()], pa.large_string()),
        ([pa.dictionary(pa.int8(), pa.string()), pa.string()], pa.string()),
        ([pa.list_(pa.null()), pa.list_(pa.string())], pa.list_(pa.string())),
        (
            [pa.struct([("a", pa.int64())]), pa.struct([("b", pa.string())])],
            pa.struct([("a", pa.int64()), ("b", pa.string())]),
        ),
        ([pa.struct([]), pa.struct([("b", pa.int64())])], pa.struct([("b", pa.int64())])),
    ],
)
def test_types_of_parts_become_one_that_all_values_fit(kinds, common):
    types, faults = column_types.unified(map(schema, kinds))
    assert (types.field("x").type, faults) == (common, {})


@pytest.mark.parametrize(
    ("kinds", "cause"),
    [
        ([pa.string(), pa.int64()], "string vs int64"),
        ([pa.string(), pa.binary()], "text and bytes"),
        ([pa.bool_(), pa.int64()], "bool vs int64"),
        ([pa.struct([])], "empty in every row"),
        ([pa.list_(pa.struct([]))], "empty in every row"),
    ],
)
def test_a_field_that_no_column_can_hold_is_named_with_the_cause(kinds, cause):
    types, faults = column_types.unified([schema(pa.int64(), "good"), *map(schema, kinds)])
    assert types.names == ["good"]
    assert list(faults) == ["x"] and cause in faults["x"]


@pytest.mark.parametrize(
    ("values", "cause"),
    [([2**63], "beyond 64 bits"), ([{"a": [2**70]}], "beyond 64 bits"), ([1, "a"], "Could not")],
)
def test_values_of_no_common_type_are_a_fault(values, cause):
    _, faults = column_types.unified([pa.schema([column_types.inferred("x", values)])])
    assert cause in faults["x"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"\x89PNG", "iVBORw=="),
        (datetime.date(2024, 2, 29), "2024-02-29"),
        (
            datetime.datetime(2024, 2, 29, 1, 2, 3, 5, datetime.UTC),
            "2024-02-29T01:02:03.000005+00:00",
        ),
        (datetime.time(1, 2), "01:02:00"),
        (datetime.timedelta(days=1, seconds=1, microseconds=500_000), "PT86401.5S"),
        (datetime.timedelta(seconds=100), "PT100S"),
        (decimal.Decimal("1.10"), "1.10"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ],
)
def test_values_without_a_form_in_json_become_text(value, text):
    assert json.loads(json.dumps([value], default=column_types.json_value)) == [text]


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        (pa.string(), None),
        (pa.list_(pa.int8()), None),
        (pa.struct([("bytes", pa.binary()), ("path", pa.string())]), "base64"),
        (pa.map_(pa.string(), pa.timestamp("us")), "ISO 8601"),
        (pa.dictionary(pa.int8(), pa.large_binary()), "base64"),
        (pa.list_(pa.decimal128(5, 2)), "decimal"),
    ],
)
def test_the_form_in_json_is_known_from_the_type(kind, form):
    assert column_types.becomes_text(kind) == form


def test_a_date_that_python_does_not_know_comes_as_text():
    dates = pa.array([0, 3_000_000, None], pa.date32())
    rows = list(column_types.python_rows(pa.table({"day": dates, "n": [1, 2, 3]})))
    assert [row["n"] for row in rows] == [1, 2, 3]
    assert rows[0]["day"] == datetime.date(1970, 1, 1) and rows[2]["day"] is None
    assert rows[1]["day"] == str(np.datetime64(3_000_000, "D"))


def test_a_date_that_python_does_not_know_comes_as_text_inside_lists_and_structs_too():
    kind = pa.list_(pa.struct([("day", pa.date32()), ("n", pa.int8())]))
    days = pa.array([[{"day": 3_000_000, "n": 1}], None, []], kind)
    far = str(np.datetime64(3_000_000, "D"))
    rows = list(column_types.python_rows(pa.table({"days": days})))
    assert rows == [{"days": [{"day": far, "n": 1}]}, {"days": None}, {"days": []}]


def test_rows_beside_a_date_that_python_does_not_know_may_have_bad_text():
    text = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    dates = pa.array([0, 1, 3_000_000], pa.date32())
    for names in (["day", "text"], ["text", "day"]):
        table = pa.table({"day": dates, "text": text}).select(names)
        first, bad, last = column_types.python_rows(table)
        assert bad is None
        assert (first["text"], last["text"]) == ("a", "c")
        assert last["day"] == str(np.datetime64(3_000_000, "D"))
