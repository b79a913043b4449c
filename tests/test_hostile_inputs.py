"""Inputs that nobody vouches for: whatever comes in, rows, answers or our own errors come out.

Examples are the same in every run; `pytest --hypothesis-profile=default` looks for new ones.
"""

import bz2
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from s2l_ray.config.data import FieldNames
from s2l_ray.config.load import load, parse_yaml
from s2l_ray.data import parsers, sources
from s2l_ray.data.examples import Example, RowError, content_digest, read_example
from s2l_ray.errors import ConfigError, DataError, UserError
from s2l_ray.evaluation.answers import equal, extract
from s2l_ray.selection import conditions
from s2l_ray.storage import input_files

some = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ROWS = [{"instruction": f"käse {i}", "output": "x" * i, "n": i} for i in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
LOOSE_TEXT = st.text(st.characters(codec=None), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | LOOSE_TEXT,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["role", "from", "content", "value", "type", "text"]), inner
        )
    ),
    max_leaves=12,
)


def table_bytes(kind):
    table, stream = pa.Table.from_pylist(ROWS), io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, stream)
    else:
        with pa.ipc.new_file(stream, table.schema) as writer:
            writer.write_table(table)
    return stream.getvalue()


WHOLE = {
    "jsonl": LINES,
    "json": json.dumps(ROWS).encode(),
    "csv": b'a,b\n1,"two, three"\n4,5\n',
    "tsv": b"a\tb\n1\t2\n",
    "jsonl.gz": gzip.compress(LINES),
    "jsonl.bz2": bz2.compress(LINES),
    "jsonl.zst": pa.Codec("zstd").compress(LINES).to_pybytes(),
    "parquet": table_bytes("parquet"),
    "arrow": table_bytes("arrow"),
}


def read(tmp_path, kind, content):
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(content)
    (file,) = input_files.expand([str(path)])
    return list(sources.read_rows(file))


def is_row_or_reason(row):
    return (row.fields is None) != (row.reason is None) and row.excerpt.encode() is not None


@pytest.mark.parametrize("kind", WHOLE)
@some
@given(data=st.data())
def test_any_bytes_are_rows_with_reasons_or_a_named_file(tmp_path, kind, data):
    whole = WHOLE[kind]
    if data.draw(st.booleans(), "anything"):
        content = data.draw(st.binary(max_size=200))
    else:
        place = data.draw(st.integers(0, len(whole) - 1))
        content = whole[:place] + data.draw(st.binary(max_size=8)) + whole[place + 1 :]
    try:
        rows = read(tmp_path, kind, content)
    except DataError as error:
        assert f"rows.{kind}" in str(error)
    else:
        assert all(is_row_or_reason(row) for row in rows)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"a": ' + "9" * 5_000 + "}"])
def test_a_row_that_no_parser_can_take_is_rejected_with_its_reason(tmp_path, text):
    (row, good) = read(tmp_path, "jsonl", f"{text}\n{json.dumps(ROWS[0])}\n".encode())
    assert (row.reason, good.fields) == ("malformed JSON", ROWS[0])


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_a_small_file_that_unpacks_to_one_endless_row_is_refused(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(parsers, "MAX_ROW_BYTES", 1 << 20)
    start = {"jsonl": b'{"a": "', "json": b'[{"a": "', "csv": b'a\n"'}[kind]
    bomb = gzip.compress(start + b"x" * (1 << 24))
    assert len(bomb) < 1 << 16
    with pytest.raises(DataError, match=r"row \d \(from 0\) has more than 1 MB"):
        read(tmp_path, f"{kind}.gz", bomb)


@some
@given(
    row=st.dictionaries(st.sampled_from(["instruction", "input", "output", "id", "m"]), VALUES),
    fields=st.sampled_from([FieldNames(), FieldNames(messages="m")]),
)
def test_any_row_is_an_example_or_is_rejected_with_its_reason(row, fields):
    try:
        found = read_example(row, fields)
    except RowError as error:
        assert error.reason
    else:
        assert isinstance(found, Example)
        assert len(content_digest(found)) == 32


PIECES = st.sampled_from(
    [
        *(
            "\\frac",
            "\\boxed{",
            "}",
            "{",
            "(",
            ")",
            "[",
            "]",
            "^",
            "_",
            "=",
            "<",
            "%",
            "$",
            "\\",
            ",",
        ),
        *("1", "0", "e", "x", "9" * 40, "1e999", "10^{10^{10}}", "!", "\\sqrt", "half", "and", " "),
        *(
            "The answer is ",
            "####",
            "\n",
            "\x00",
            "\u202e",
            "٣",
            "½",
            "\\left",
            "\\begin{pmatrix}",
            "&",
        ),
    ]
)
ANSWERS = st.lists(PIECES | LOOSE_TEXT, max_size=8).map("".join)


@some
@given(one=ANSWERS, other=ANSWERS)
@example(one="9^" * 200 + "9", other="1")
@example(one="(" * 900, other=")" * 900)
@example(one="\\frac{" * 150, other="1")
def test_any_two_answers_are_compared(one, other):
    assert extract(one) is None or isinstance(extract(one), str)
    assert equal(one, other) in (True, False)


@some
@given(text=LOOSE_TEXT | st.lists(PIECES, max_size=10).map("".join))
@example(text="(" * 5_000)
@example(text="not " * 5_000 + "a")
def test_any_condition_is_parsed_or_refused(text):
    try:
        conditions.parsed(text)
    except UserError as error:
        assert str(error)


YAML_PIECES = st.sampled_from(
    [
        *(
            "run_dir: r\n",
            "data:\n",
            "  train: [a]\n",
            "- ",
            ": ",
            "? ",
            "&a ",
            "*a ",
            "!!python/name:os",
            "|",
        ),
        *(
            "{",
            "}",
            "[",
            "]",
            "'",
            '"',
            "#",
            "%YAML 9.9\n",
            "---\n",
            "...\n",
            "<<: ",
            "!!float ",
            "1e999",
        ),
        *(
            "0o9",
            "2001-99-99",
            "\t",
            "\x00",
            "null",
            "!!binary =",
            "seed: ",
            "\n",
            "target: {model: ",
        ),
    ]
)
LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


@some
@given(text=st.lists(YAML_PIECES | LOOSE_TEXT, max_size=12).map("".join))
@example(text=LAUGHS)
@example(text="[" * 1_500)
@example(text="a: " + "{b: " * 1_500)
@example(text="&a [*a]")
@example(text="run_dir: &a [*a]")
def test_any_configuration_loads_or_is_refused(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    try:
        load(path)
    except ConfigError as error:
        assert len(str(error)) < 20_000


def test_no_tag_of_yaml_runs_code():
    with pytest.raises(ConfigError, match="is not YAML"):
        parse_yaml("!!python/object/apply:os.system ['true']", "run.yaml")
