"""Files of a busy object store are read as local ones; if it never answers, it is named."""

import bz2
import gzip
import io
import json
import re
from itertools import cycle, repeat
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import s2l_ray
from s2l_ray.artifacts.tables import part_name
from s2l_ray.data import sources
from s2l_ray.data.slices import Slice, SliceReader
from s2l_ray.errors import StorageError
from s2l_ray.models.model_files import safetensors_header
from s2l_ray.storage import failures, filesystems
from s2l_ray.storage.input_files import InputFile, content_hash, expand
from s2l_ray.storage.location import Location
from s2l_ray.trajectories import footers
from s2l_ray.trajectories.import_existing import Importer
from tests import unreliable_store
from tests.pool_of_sixty import order_of, selected
from tests.selection.test_scores import write_scores
from tests.unreliable_store import WITHOUT_HEADERS, Way, unreliable

pytestmark = pytest.mark.ray

ROWS = [{"question": f"käse {row}", "answer": "x"} for row in range(5)]
TABLE = pa.Table.from_pylist(ROWS)
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = b"question,answer\n" + b"".join(b"%d,x\n" % row for row in range(5))
LOSSES = pa.table(
    {"example_id": ["a", "b"], "loss_nats": pa.array([[1, 2], [3, 4]], pa.list_(pa.float32()))}
)


def _parquet(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, row_group_size=2)
    return stream.getvalue()


def _arrow(new) -> bytes:
    stream = io.BytesIO()
    with new(stream, TABLE.schema) as writer:
        for batch in TABLE.to_batches(max_chunksize=2):
            writer.write_batch(batch)
    return stream.getvalue()


INPUTS = {
    "rows.jsonl": LINES,
    "rows.json": json.dumps(ROWS).encode(),
    "rows.jsonl.gz": gzip.compress(LINES),
    "rows.jsonl.bz2": bz2.compress(LINES),
    "rows.csv.zst": pa.Codec("zstd").compress(CSV).to_pybytes(),
    "rows.parquet": _parquet(TABLE),
    "file.arrow": _arrow(pa.ipc.new_file),
    "stream.arrow": _arrow(pa.ipc.new_stream),
}


@pytest.fixture
def way(s3_endpoint, s3_bucket, monkeypatch):
    """The way to the bucket; it breaks what a test tells it to break.

    Its error pages are longer than all that is read here. So the client itself repeats nothing.
    """
    monkeypatch.setattr(failures, "FIRST_PAUSE_SECONDS", 1e-3)
    monkeypatch.setattr(unreliable_store, "PAGE", unreliable_store.PAGE.replace("300", "30000"))
    with unreliable(s3_endpoint) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.address)
        found.breaks = {method: repeat(None) for method in ("HEAD", "GET")}
        yield found


@pytest.fixture
def put(s3_endpoint, s3_bucket):
    """`put(name, content)`: the URI of a new object, which goes to the store by another way."""

    def put(name: str, content: bytes) -> str:
        bucket, _, folder = s3_bucket.removeprefix("s3://").partition("/")
        client = boto3.client("s3", endpoint_url=s3_endpoint)
        client.put_object(Bucket=bucket, Key=f"{folder}/{name}", Body=content)
        return f"{s3_bucket}/{name}"

    return put


@pytest.fixture
def silent(way, monkeypatch):
    """The way answers every read with an error, and is given up soon."""
    for module in (filesystems, failures):
        monkeypatch.setattr(module, "S3_ATTEMPTS", 2)
    way.breaks["GET"] = repeat("503")
    return way


def busy(way: Way) -> None:
    """Have every second read answered with an error."""
    way.breaks["GET"] = cycle(["500", None, "503", None])


def read(file: InputFile) -> tuple[str, int, list[object], list[object]]:
    """Everything that is read of an input file."""
    rows = [row.fields for row in sources.read_rows(file)]
    last = SliceReader(Slice(file, 1, 2)).rows() if file.uri.endswith(("jsonl", "parquet")) else ()
    estimated = sources.estimated_rows(file, rows)
    return content_hash(file), estimated, rows, [row.fields for row in last]


@pytest.mark.parametrize("name", INPUTS)
def test_rows_of_every_format_are_those_of_a_local_file(way, put, tmp_path, name):
    (tmp_path / name).write_bytes(INPUTS[name])
    uri = put(name, INPUTS[name])
    (local,), (remote,) = expand([str(tmp_path / name)]), expand([uri])
    assert remote.size == local.size

    busy(way)
    assert read(remote) == read(local)
    assert way.broken["500"] and len(read(local)[2]) == 5


def test_losses_that_were_brought_are_those_of_local_files(way, put, tmp_path):
    content = _parquet(LOSSES)
    (tmp_path / "losses.parquet").write_bytes(content)
    uris = [str(tmp_path / "losses.parquet"), put("losses.parquet", content)]

    busy(way)
    for uri, name in zip(uris, ("local", "remote"), strict=True):
        (footer,) = footers.read([InputFile(uri, len(content), "")])
        assert (footer.rows, footer.checkpoints) == (2, 2)
        unit = {"uri": uri, "first_part": 0, "rows": [0, 2]}
        Importer(Location.of(tmp_path / name))(unit)
    part = part_name(0)
    assert (tmp_path / "local" / part).read_bytes() == (tmp_path / "remote" / part).read_bytes()
    assert way.broken["500"]


def test_scores_of_files_order_the_pool_as_local_ones_do(way, put, tmp_path):
    folder = Location.of(tmp_path)
    pattern = write_scores(folder, [range(60)])
    (file,) = (tmp_path / "scores").glob("*.parquet")
    uri = put("scores.parquet", _parquet(pq.read_table(file)))
    settings = {"method": "score", "stratify": False}
    _, expected = selected(folder / "local", score=pattern, **settings)

    busy(way)
    _, out = selected(folder / "remote", score=f"{uri}#reward", **settings)
    assert order_of(out) == order_of(expected) and way.broken["500"]


def test_the_header_of_weights_is_that_of_a_local_file(way, put, tmp_path):
    header = b'{"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}'
    uri = put("model.safetensors", len(header).to_bytes(8, "little") + header + b"1234")

    busy(way)
    assert safetensors_header(Location(uri))["w"]["shape"] == [4]
    assert way.broken["500"]


@pytest.mark.parametrize("name", INPUTS)
def test_a_store_that_never_answers_is_named_and_no_file_called_damaged(silent, put, name):
    file = InputFile(put(name, INPUTS[name]), len(INPUTS[name]), "")
    message = f"^cannot read {re.escape(file.uri)}: .* did not answer in 2 attempts"
    with pytest.raises(StorageError, match=message):
        list(sources.read_rows(file))


def test_a_store_that_never_answers_is_named_for_losses_as_well(silent, put, tmp_path):
    content = _parquet(LOSSES)
    uri = put("losses.parquet", content)
    message = f"^cannot read {re.escape(uri)}: .* did not answer in 2 attempts"
    with pytest.raises(StorageError, match=message):
        footers.read([InputFile(uri, len(content), "")])
    with pytest.raises(StorageError, match=message):
        Importer(Location.of(tmp_path))({"uri": uri, "first_part": 0, "rows": [0, 2]})


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("content", [b"few", bytes(10_000)], ids=["few bytes", "many"])
def test_an_answer_without_its_headers_is_no_content(way, put, method, content):
    file = Location(put("x.jsonl", content))
    way.breaks[method] = iter([WITHOUT_HEADERS])
    assert file.read_bytes() == content
    assert way.broken[WITHOUT_HEADERS] == 1


def test_an_answer_without_its_headers_is_no_size(way, put):
    uri = put("x.jsonl", LINES)
    way.breaks["HEAD"] = iter([None, WITHOUT_HEADERS])  # it is first asked for a run there
    (file,) = expand([uri])
    assert file.size == len(LINES) and way.broken[WITHOUT_HEADERS] == 1


def test_an_answer_without_its_headers_is_no_empty_folder(way, put):
    uris = [put(f"rows/{name}/x.jsonl", LINES) for name in ("a", "b")]
    way.breaks["GET"] = iter([None] * 3 + [WITHOUT_HEADERS])  # the list of `a`
    assert [file.uri for file in expand([f"{Location(uris[0]).parent.parent}/*/*.jsonl"])] == uris
    assert way.broken[WITHOUT_HEADERS] == 1


def test_an_empty_file_is_empty_after_two_answers(way, put):
    assert Location(put("x.jsonl", b"")).read_bytes() == b""
    assert way.requests["HEAD"] == 2


def test_reads_of_every_size_from_every_place_are_those_of_the_content(way, put):
    content = bytes(range(256)) * 2
    busy(way)
    with Location(put("x", content)).open() as stream:
        assert stream.size() == 512 and stream.seekable() and stream.readable()
        assert [stream.read(7), stream.tell()] == [content[:7], 7]
        stream.seek(-3, 2)
        assert [stream.read(7), stream.read(7), stream.read()] == [content[-3:], b"", b""]
        stream.seek(500)
        assert stream.readall() == content[500:]
        buffer = bytearray(4)
        stream.seek(1)
        assert stream.readinto(buffer) == 4 and buffer == content[1:5]
        assert stream.read_at(9, 300) == content[300:309]
    assert stream.closed


OPENING = r"\.open_input_|copy_files|get_file_info\(|FileSelector\(|read_parquet\(|filesystem="
READERS = {
    "readers.py",
    "listing.py",
    "datasets.py",  # Ray Data reads by itself, of which its docstring tells
    "ray_train.py",  # and so does Ray Train
}


def test_two_modules_ask_file_systems_for_files_and_lists():
    package = Path(s2l_ray.__file__).parent
    found = {file.name for file in package.rglob("*.py") if re.search(OPENING, file.read_text())}
    assert found == READERS
