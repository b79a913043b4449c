"""Sources: every row comes back with its number, or with a reason; damage names the file."""

import bz2
import gzip
import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ray.data import parsers, sources
from s2l_ray.errors import DataError
from s2l_ray.storage import input_files

ROWS = [{"instruction": f"käse {i}", "output": "x" * i, "n": i} for i in range(7)]
COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda content: pa.Codec("zstd").compress(content).to_pybytes(),
}
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab]}",\\'), inner),
    max_leaves=8,
)


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def read(path):
    (file,) = input_files.expand([str(path)])
    return list(sources.read_rows(file))


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "csv", "tsv"])
def test_every_format_gives_the_same_rows(write, kind, compression):
    text = lines(ROWS)
    if kind == "json":
        text = json.dumps(ROWS, indent=2, ensure_ascii=False)
    if kind in ("csv", "tsv"):
        mark = "," if kind == "csv" else "\t"
        text = "".join(
            mark.join(map(str, row)) + "\r\n" for row in [ROWS[0], *map(dict.values, ROWS)]
        )
    rows = read(write(f"train.{kind}{compression}", COMPRESS[compression](text.encode())))

    expected = [{**r, "n": str(r["n"])} for r in ROWS] if kind in ("csv", "tsv") else ROWS
    assert [row.fields for row in rows] == expected
    assert [row.row for row in rows] == list(range(7))
    assert {row.reason for row in rows} == {None}


def test_parquet_rows_are_numbered_across_row_groups(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=3)
    rows = read(tmp_path / "a.parquet")
    assert [(row.row, row.fields) for row in rows] == list(enumerate(ROWS))


def test_a_parquet_row_with_bad_text_is_the_only_one_lost(tmp_path):
    text = pa.Array.from_buffers(
        pa.string(),
        3,
        [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffc")],
    )
    pq.write_table(pa.table({"output": text}), tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet")
    assert [row.reason for row in rows] == [None, "invalid UTF-8", None]
    assert rows[2].fields == {"output": "c"}


def test_a_bad_line_is_one_row_with_a_reason_and_the_rest_are_read(write):
    content = b"\n".join(
        [
            b'\xef\xbb\xbf{"a": 0}',
            b'{"a": 1',
            b"",
            b'{"a": "\xff"}',
            b"[1, 2]",
            rb'{"a": "\ud83d"}',
            rb'{"a": "\ud83d\ude00"}',
            b'{"a": NaN}\r',
            b"[" * 100_000,
            b'{"a": 9}',
        ]
    )
    rows = read(write("train.jsonl", content))
    assert [(row.row, row.reason) for row in rows] == [
        (0, None),
        (1, "malformed JSON"),
        (3, "invalid UTF-8"),
        (4, "wrong type"),
        (5, "invalid UTF-8"),
        (6, None),
        (7, None),
        (8, "malformed JSON"),
        (9, None),
    ]
    assert all((row.fields is None) == (row.reason is not None) for row in rows)
    assert rows[1].excerpt == '{"a": 1'
    assert all(len(row.excerpt) <= 200 and row.excerpt.encode() for row in rows)


def test_a_line_longer_than_the_buffer_is_one_row(write):
    text = "y" * (3 * parsers.CHUNK_BYTES + 1)
    assert read(write("a.jsonl", lines([{"a": text}, {"a": 1}])))[0].fields == {"a": text}
    assert read(write("a.json", json.dumps([{"a": text}, {"a": 1}])))[0].fields == {"a": text}


@pytest.mark.parametrize("chunk_bytes", [1, 2, 7, 1 << 20])
@given(values=st.lists(JSON_VALUES, max_size=4), indent=st.sampled_from([None, 1]))
def test_an_array_is_cut_into_its_elements_however_it_is_read(chunk_bytes, values, indent):
    text = json.dumps(values, indent=indent, ensure_ascii=False).encode()
    stream = _SmallReads(text, chunk_bytes)
    assert [json.loads(raw) for raw in parsers.array_elements("a.json", stream)] == values


class _SmallReads:
    def __init__(self, content, chunk_bytes):
        self.content, self.chunk_bytes, self.place = content, chunk_bytes, 0

    def read(self, size):
        begin, self.place = self.place, self.place + min(size, self.chunk_bytes)
        return self.content[begin : self.place]


def test_a_bad_array_element_is_one_row_with_a_reason(write):
    rows = read(write("a.json", b'\n [{"a": 0}, {"a": }, 3, {"a": "\xff"}, {"a": "],}"},]\n'))
    reasons = [None, "malformed JSON", "wrong type", "invalid UTF-8", None, "malformed JSON"]
    assert [row.reason for row in rows] == reasons


@pytest.mark.parametrize("text", ["", "[]", " [ \n] ", "\n\n"])
def test_a_json_file_may_hold_no_rows(write, text):
    assert read(write("a.json", text)) == []


@pytest.mark.parametrize("text", ['[{"a": 1}', '[{"a": 1}, {"b": [', '[{"a": "x'])
def test_an_array_that_ends_early_names_the_file(write, text):
    with pytest.raises(DataError, match=r"a\.json: the array ends inside row"):
        read(write("a.json", text))


def test_text_after_the_array_is_refused(write):
    with pytest.raises(DataError, match="more text follows"):
        read(write("a.json", "[{}]\n[{}]"))


def test_csv_keeps_quoted_newlines_and_rejects_single_records(write):
    text = b'a,b\n"1,\n2",x\n\nonly\n1,2,3\n"p"q,r\n\xff,y\nlast,z'
    rows = read(write("a.csv", text))
    assert [row.reason for row in rows] == [
        None,
        "malformed row",
        "malformed row",
        "malformed row",
        "invalid UTF-8",
        None,
    ]
    assert rows[0].fields == {"a": "1,\n2", "b": "x"}
    assert [row.row for row in rows] == list(range(6))
    assert rows[3].excerpt == '"p"q,r'


def test_blank_lines_before_the_header_of_a_csv_are_no_header(write):
    rows = read(write("a.csv", "\n\r\na,b\n1,2\n"))
    assert [(row.row, row.fields) for row in rows] == [(0, {"a": "1", "b": "2"})]


def test_a_csv_field_may_be_long(write):
    assert len(read(write("a.csv", "a\n" + "x" * 300_000))[0].fields["a"]) == 300_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a,b\n1,2\n"open,3\n4,5\n', r"row 1 \(from 0\) opens a quote that is not closed"),
        ("a,b,a\n1,2,3\n", r"1 of 3 columns are named more than once \(first: 'a'\)"),
        (",,a\n1,2,3\n", r"1 of 3 columns are named more than once \(first: ''\)"),
        ("a;b\n1;2\n", "separated by commas, and of .tsv by tabs"),
        ("a\tb\n1\t2\n", "separated by commas, and of .tsv by tabs"),
        ("a,b\n1,2\n".encode("utf-16"), "is UTF-16. Convert it: iconv"),
        (b"\xff,b\n", "header is not UTF-8"),
        ('"a"b,c\n', "header cannot be read"),
    ],
)
def test_a_csv_whose_records_cannot_be_told_apart_is_refused(write, text, message):
    with pytest.raises(DataError, match=message):
        read(write("a.csv", text))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.jsonl.gz", gzip.compress(lines(ROWS).encode())[:-9]),
        ("not.jsonl.gz", b"plain text, not gzip"),
        ("cut.jsonl.zst", COMPRESS[".zst"](lines(ROWS).encode())[:-2]),
        ("cut.csv.bz2", bz2.compress(lines(ROWS).encode())[:-2]),
        ("empty.parquet", b""),
        ("not.parquet", b"PAR1 but not really PAR1"),
    ],
)
def test_a_damaged_file_is_named(write, name, content):
    with pytest.raises(DataError, match=f"{name} is missing, truncated or damaged"):
        read(write(name, content))


def test_damage_in_the_middle_of_a_parquet_file_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": [str(i) for i in range(5000)]}), path)
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet is missing, truncated or damaged"):
        read(path)


def test_a_file_that_vanishes_after_expansion_is_named(write):
    path = write("a.jsonl", "{}")
    (file,) = input_files.expand([str(path)])
    path.unlink()
    with pytest.raises(DataError, match=r"a\.jsonl is missing"):
        list(sources.read_rows(file))
    with pytest.raises(DataError, match=r"a\.jsonl is missing"):
        input_files.content_hash(file)


@pytest.fixture
def tree(write, tmp_path):
    for name in ["b.jsonl", "a.csv", "deep/c.parquet", "deep/er/d.json.gz", ".hidden/e.jsonl"]:
        write(name, "x")
    write("deep/README.md", "not rows")
    write("odd [1].jsonl", "x")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("b.jsonl", ["b.jsonl"]),
        ("", ["a.csv", "b.jsonl", "deep/c.parquet", "deep/er/d.json.gz", "odd [1].jsonl"]),
        ("deep", ["deep/c.parquet", "deep/er/d.json.gz"]),
        ("deep/", ["deep/c.parquet", "deep/er/d.json.gz"]),
        ("[ab].*", ["a.csv", "b.jsonl"]),
        ("*/?.parquet", ["deep/c.parquet"]),
        ("**/*.jso*", ["b.jsonl", "deep/er/d.json.gz", "odd [1].jsonl"]),
        ("**/er/**/*.gz", ["deep/er/d.json.gz"]),
        ("odd [1].jsonl", ["odd [1].jsonl"]),
    ],
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_pattern_names_its_files_in_order(tree, scheme, pattern, names):
    files = input_files.expand([f"{scheme}{tree}/{pattern}"])
    assert [file.uri for file in files] == [f"{scheme}{tree}/{name}" for name in names]
    assert all(file.size == 1 and int(file.modified) > 0 for file in files)


def test_a_relative_pattern_becomes_an_absolute_path(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert input_files.expand(["./deep/../b.jsonl"])[0].uri == f"{tree}/b.jsonl"


def test_files_come_in_the_order_of_the_patterns(tree):
    files = input_files.expand([f"{tree}/deep", f"{tree}/a.csv", "hf://org/name:test[:5]"])
    assert [file.uri.rpartition("/")[2] for file in files] == [
        "c.parquet",
        "d.json.gz",
        "a.csv",
        "name:test[:5]",
    ]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none.jsonl", r"none\.jsonl matches no file\. Relative paths .* Allowed: \.jsonl"),
        ("*.parquet", "matches no file"),
        ("deep/README.md", r"1 of 1 files have a suffix .*README\.md.*Allowed: \.jsonl"),
        ("deep/*", "1 of 2 files have a suffix"),
    ],
)
def test_a_pattern_that_names_nothing_readable_is_refused(tree, pattern, message):
    with pytest.raises(DataError, match=message):
        input_files.expand([f"{tree}/{pattern}"])


def test_a_pointer_of_git_lfs_is_called_one(write):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n"
    file = write("a.parquet", pointer)
    with pytest.raises(DataError, match=r"pointer of Git LFS.*`git lfs pull`"):
        list(sources.read_rows(*input_files.expand([str(file)])))


def test_a_compressed_parquet_file_and_an_empty_directory_are_refused(write, tmp_path):
    write("a.parquet.gz", "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="suffix"):
        input_files.expand([f"{tmp_path}/a.parquet.gz"])
    with pytest.raises(DataError, match="empty matches no file"):
        input_files.expand([f"{tmp_path}/empty"])


def test_a_file_named_twice_is_refused(tree):
    with pytest.raises(DataError, match=r"1 of 3 files are named more than once .*b\.jsonl"):
        input_files.expand([f"{tree}/b.jsonl", f"{tree}/[ab].*"])


@pytest.mark.parametrize("uri", ["http://host/a.jsonl", "ftp://host/a.jsonl"])
def test_an_unknown_scheme_is_refused(uri):
    with pytest.raises(DataError, match=r"cannot be read\. Use a local path"):
        input_files.expand([uri])


def test_a_malformed_hub_name_is_refused():
    with pytest.raises(DataError, match="is not hf://org/name"):
        input_files.expand(["hf://org/name/file.jsonl"])


def test_the_content_sha_is_that_of_the_stored_bytes(write):
    content = gzip.compress(lines(ROWS).encode())
    (file,) = input_files.expand([str(write("a.jsonl.gz", content))])
    assert input_files.content_hash(file) == hashlib.sha256(content).hexdigest()


def test_nothing_is_read_for_a_hash_that_nobody_wants_any_more(write):
    (file,) = input_files.expand([str(write("a.jsonl", b"x" * 3 * input_files.CHUNK_BYTES))])
    looks = iter([False, True])
    found = input_files.content_hash(file, lambda: next(looks))
    with open(file.uri, "rb") as stream:
        assert found == hashlib.sha256(stream.read(input_files.CHUNK_BYTES)).hexdigest()


@pytest.mark.ray
def test_files_of_an_object_store_are_found_and_read(monkeypatch):
    moto = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket="pool")
        names = ["a b/deep/y%20.json.gz", "a b/x.jsonl", "top.csv"]
        for name, content in zip(
            names, [gzip.compress(b'[{"a": 1}]'), b'{"a": 2}', b"a\n3"], strict=True
        ):
            client.put_object(Bucket="pool", Key=name, Body=content)

        files = input_files.expand(["s3://pool/a b/", "s3://pool/*.csv"])
        assert [file.uri for file in files] == [f"s3://pool/{name}" for name in names]
        rows = [row.fields["a"] for file in files for row in sources.read_rows(file)]
        assert rows == [1, 2, "3"]
        assert input_files.content_hash(files[1]) == hashlib.sha256(b'{"a": 2}').hexdigest()
        with pytest.raises(DataError, match=r"s3://pool/none\.jsonl matches no file"):
            input_files.expand(["s3://pool/none.jsonl"])
    finally:
        server.stop()
