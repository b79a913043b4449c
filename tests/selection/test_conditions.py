"""Conditions: the oracle is the same condition written in Python, row by row."""

import datetime
import itertools

import pyarrow as pa
import pytest

from s2l_ray.errors import ConfigError
from s2l_ray.selection.conditions import parsed

ROWS = [
    {"q": 1, "s": "math", "ok": True, "x": 0.5, "n": "7", "d": datetime.date(2024, 5, 1)},
    {"q": 3, "s": "Code", "ok": False, "x": 2.0, "n": " 4.5 ", "d": datetime.date(2025, 1, 1)},
    {"q": 5, "s": "it's", "ok": True, "x": -1.0, "n": "many", "d": datetime.date(2025, 2, 1)},
]
KINDS = {
    "q": pa.int64(),
    "s": pa.string(),
    "ok": pa.bool_(),
    "x": pa.float32(),
    "n": pa.string(),
    "d": pa.date32(),
}
ARRAYS = {(name,): pa.array([row[name] for row in ROWS], kind) for name, kind in KINDS.items()}
MORE = {
    ("meta", "score"): pa.array([1, 2, 3], pa.uint8()),
    ("a b",): pa.array([1, 2, 3]),
    ("order",): pa.array([1, 2, 3]),
    ("coded",): pa.array(["a", "b", "a"]).dictionary_encode(),
    ("none",): pa.nulls(3),
    ("list",): pa.array([[1], [2], [3]]),
}


def held(text: str) -> list[bool | None]:
    return parsed(text).holds(ARRAYS | MORE, 3).to_pylist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("q >= 3", lambda r: r["q"] >= 3),
        ("q > 3.5", lambda r: r["q"] > 3.5),
        ("3 < q", lambda r: r["q"] > 3),
        ("q <> 3", lambda r: r["q"] != 3),
        ("q != 3 AND ok", lambda r: r["q"] != 3 and r["ok"]),
        ("q = 1 or q = 3 and not ok", lambda r: r["q"] == 1 or (r["q"] == 3 and not r["ok"])),
        ("(q = 1 or q = 3) and not ok", lambda r: r["q"] in (1, 3) and not r["ok"]),
        ("not not ok", lambda r: r["ok"]),
        ("ok = false", lambda r: not r["ok"]),
        ("s == 'math'", lambda r: r["s"] == "math"),
        ('s in ("math", "Code")', lambda r: r["s"] in ("math", "Code")),
        ("s not in ('math')", lambda r: r["s"] != "math"),
        ("s = 'it''s'", lambda r: r["s"] == "it's"),
        ("s like '%o%'", lambda r: "o" in r["s"]),
        ("s not like 'm%'", lambda r: not r["s"].startswith("m")),
        ("lower(s) = 'code'", lambda r: r["s"].lower() == "code"),
        ("length(s) <= 4", lambda r: len(r["s"]) <= 4),
        ("s < 'a'", lambda r: r["s"] < "a"),
        ("q - 1 > 1 + x * 2", lambda r: r["q"] - 1 > 1 + r["x"] * 2),
        ("-q < -2", lambda r: -r["q"] < -2),
        ("q in (-1, 1, 2 + 3)", lambda r: r["q"] in (-1, 1, 5)),
        ("q / 2 = 1.5", lambda r: r["q"] / 2 == 1.5),
        ("d >= '2025-01-01'", lambda r: r["d"] >= datetime.date(2025, 1, 1)),
        ("1 = 1", lambda r: True),
        ("q is null or q is not null", lambda r: True),
    ],
)
def test_a_condition_holds_where_the_same_in_python_does(text, expected):
    assert held(text) == [expected(row) for row in ROWS]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("number(n) > 4", [True, True, None]),
        ("none > 3", [None, None, None]),
        ("none", [None, None, None]),
        ("none is null", [True, True, True]),
        ("none = null_free or q = 3", None),
        ("meta.score > 1", [False, True, True]),
        ("`a b` = 2", [False, True, False]),
        ("order = 2", [False, True, False]),
        ("coded = 'a'", [True, False, True]),
    ],
)
def test_names_and_missing_values(text, expected):
    if expected is None:
        assert parsed(text).names == (("none",), ("null_free",), ("q",))
    else:
        assert held(text) == expected


def test_missing_values_follow_kleenes_logic():
    pairs = list(itertools.product([True, False, None], repeat=2))
    left, right = zip(*pairs, strict=True)
    values = {("a",): pa.array(left), ("b",): pa.array(right)}

    def least(*given):  # false < missing < true
        return min(given, key=lambda value: 0.5 if value is None else float(value))

    for text, of in [
        ("a and b", lambda a, b: least(a, b)),
        ("a or b", lambda a, b: negated(least(negated(a), negated(b)))),
        ("not a", lambda a, b: negated(a)),
    ]:
        assert parsed(text).holds(values, 9).to_pylist() == [of(*pair) for pair in pairs]


def negated(value):
    return None if value is None else not value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it ends too early"),
        ("q >=", "it ends too early"),
        ("q >= 3 x", "'x' is not expected"),
        ("q >= 3; drop", "'; drop' is not expected"),
        ("1 < q < 3", "'< 3' is not expected"),
        ("sum(q) > 3", r"'\(q\) > 3' is not expected"),
        ("__import__('os').system('true')", "is not expected"),
        ("q", r"'q': it is a number, not true or false"),
        ("q and ok", "`and` joins conditions, and q is a number"),
        ("not s", "`not` joins conditions, and s is text"),
        ("s > 3", r"compares s \(text\) with 3 \(a number\); number\(s\) is the number"),
        ("q = 'high'", r"compares q \(a number\) with 'high' \(text\)$"),
        ("ok > false", "true and false have no order; use = or !="),
        ("s + 1 > 2", r"`\+` needs numbers, and s is text"),
        ("q like 'a%'", "`like` needs text, and q is a number"),
        ("length(q) > 2", r"`length\(q\)` needs text, and q is a number"),
        ("list = 1", r"compares list \(a list or an object\)"),
        ("d > 'soon'", "'soon' as a scalar of type date32"),
    ],
)
def test_what_is_no_condition_on_these_values_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        held(text)
