"""Slices: read apart from each other, they hold every row of the file once, with its number."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ray.data.slices import SLICE_BYTES, SliceReader, slices
from s2l_ray.data.sources import read_rows
from s2l_ray.errors import DataError
from s2l_ray.storage.input_files import InputFile, expand


def rows_of_slices(file, slice_bytes):
    """What `read_rows` yields, joined from slices of which the last is read first."""
    readers = [SliceReader(part) for part in slices(file, slice_bytes)]
    apart = [list(reader.rows()) for reader in reversed(readers)][::-1]
    rows, offset = [], 0
    for reader, found in zip(readers, apart, strict=True):
        rows += [(row.row + offset, row.fields, row.reason) for row in found]
        offset += reader.num_rows
    return rows


def rows_of_file(file):
    return [(row.row, row.fields, row.reason) for row in read_rows(file)]


def written(path, content):
    path.write_bytes(content)
    return expand([str(path)])[0]


LINES = st.lists(
    st.sampled_from(
        [b'{"a": 1}', b'{"a": "\\n x"}', b"", b" \t", b"{broken", b'{"a": "\xff"}', b'{"a": 22}\r']
    )
    | st.text(max_size=60).map(lambda text: json.dumps({"a": text}, ensure_ascii=False).encode()),
    max_size=30,
)


class TestJsonLines:
    @given(lines=LINES, slice_bytes=st.integers(1, 80), has_mark=st.booleans(), ends=st.booleans())
    def test_any_slices_hold_the_rows_of_the_file(
        self, tmp_path_factory, lines, slice_bytes, has_mark, ends
    ):
        content = b"\n".join(lines) + (b"\n" if ends else b"")
        content = b"\xef\xbb\xbf" + content if has_mark else content
        file = written(tmp_path_factory.mktemp("lines") / "a.jsonl", content)
        assert rows_of_slices(file, slice_bytes) == rows_of_file(file)

    def test_a_line_over_many_slices_belongs_to_the_one_it_begins_in(self, tmp_path):
        lines = [{"a": 0}, {"a": "x" * 5000}, {"a": 2}]
        file = written(
            tmp_path / "a.jsonl", b"".join(json.dumps(x).encode() + b"\n" for x in lines)
        )
        counts = [len(list(SliceReader(part).rows())) for part in slices(file, 100)]
        assert len(counts) == 51 and sum(counts) == 3 and counts[0] == 2
        assert rows_of_slices(file, 100) == rows_of_file(file)

    @pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
    @pytest.mark.parametrize("blank", ["", " \n "])
    def test_an_array_is_read_by_its_first_slice(self, tmp_path, name, blank):
        rows = [{"a": number, "b": "\n"} for number in range(50)]
        file = written(tmp_path / name, f"{blank}{json.dumps(rows, indent=1)}".encode())
        counts = [len(list(SliceReader(part).rows())) for part in slices(file, 200)]
        assert counts == [50, *[0] * (len(counts) - 1)] and len(counts) > 3
        assert rows_of_slices(file, 200) == rows_of_file(file)

    def test_blank_lines_before_the_rows_of_a_json_file_change_no_number(self, tmp_path):
        file = written(tmp_path / "a.json", b"\n \n" + b'{"a": 1}\n' * 40)
        assert rows_of_slices(file, 100) == rows_of_file(file)

    def test_every_slice_refuses_what_the_file_is_refused_for(self, tmp_path):
        for content in (b'{"data": [\n' + b'{"a": 1},\n' * 50, "{}\n".encode("utf-16") * 50):
            file = written(tmp_path / "a.jsonl", content)
            messages = set()
            for part in slices(file, 100):
                with pytest.raises(DataError) as error:
                    list(SliceReader(part).rows())
                messages.add(str(error.value))
            assert len(messages) == 1

    def test_a_row_that_is_too_long_is_named_with_its_slice(self, tmp_path, monkeypatch):
        monkeypatch.setattr("s2l_ray.data.parsers.MAX_ROW_BYTES", 50)
        file = written(tmp_path / "a.jsonl", b'{"a": 1}\n' * 20 + b"x" * 60 + b'\n{"a": 1}\n' * 20)
        _, second, *_ = slices(file, 150)
        with pytest.raises(
            DataError, match=r"a\.jsonl, counted from byte 153: row 3 \(from 0\) has more"
        ):
            list(SliceReader(second).rows())


class TestParquet:
    @pytest.mark.parametrize("slice_bytes", [200, 1000, 10**6])
    @pytest.mark.parametrize("rows_per_group", [1, 7, 100])
    def test_any_slices_hold_the_rows_of_the_file(self, tmp_path, slice_bytes, rows_per_group):
        table = pa.table({"a": range(100), "b": [f"row {n}" for n in range(100)]})
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=rows_per_group)
        (file,) = expand([str(tmp_path / "a.parquet")])
        assert rows_of_slices(file, slice_bytes) == rows_of_file(file)
        assert len(rows_of_file(file)) == 100

    def test_a_file_without_rows_has_none_in_any_slice(self, tmp_path):
        pq.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "a.parquet")
        (file,) = expand([str(tmp_path / "a.parquet")])
        assert rows_of_slices(file, 10) == []


@pytest.mark.parametrize(
    ("name", "count"),
    [("a.jsonl", 5), ("a.json", 5), ("a.parquet", 5), ("a.ndjson", 5), ("a.JSONL", 5)]
    + [(f"a.{suffix}", 1) for suffix in ("jsonl.gz", "jsonl.zst", "csv", "tsv", "arrow")],
)
def test_what_can_be_cut_is_cut_by_its_size_alone(name, count):
    file = InputFile(f"/data/{name}", 4 * SLICE_BYTES + 1, "")
    assert [part.number for part in slices(file)] == list(range(count))
    assert len(slices(InputFile(f"/data/{name}", SLICE_BYTES, ""))) == 1
    assert len(slices(InputFile(f"/data/{name}", 0, ""))) == 1
