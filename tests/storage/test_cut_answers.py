"""Answers of a store that end within their headers: pyarrow's client takes them for good ones."""

import json
import re
from itertools import repeat

import pyarrow as pa
import pytest
from pyarrow import fs

from s2l_ray.artifacts.extensions import Extension
from s2l_ray.artifacts.tables import Parts, part_name
from s2l_ray.errors import StorageError
from s2l_ray.extend.plan import remove_unprepared
from s2l_ray.storage import listing, readers
from s2l_ray.storage.failures import NO_CONTENT, answered, explained
from s2l_ray.storage.input_files import expand
from s2l_ray.storage.listing import PAGE
from s2l_ray.storage.location import Location
from tests.storage.test_busy_store import LINES, put, way  # noqa: F401
from tests.unreliable_store import WITHOUT_HEADERS

pytestmark = pytest.mark.ray


@pytest.fixture
def cut(way):  # noqa: F811
    """`cut(method, *numbers)`: the answers with these numbers are cut, of those that now come."""

    def cut(method: str, *numbers: int) -> None:
        kinds = (WITHOUT_HEADERS if number in numbers else None for number in range(100))
        way.breaks[method] = kinds

    yield cut
    assert way.broken[WITHOUT_HEADERS]


@pytest.fixture
def folder(put):  # noqa: F811
    """A folder of two parts and another file in a folder of its own."""
    for name in (part_name(0), part_name(1), "below/x"):
        uri = put(f"folder/{name}", b"content")
    return Location(uri).parent.parent


def test_a_folder_has_its_files(folder, cut):
    names = ["below", part_name(0), part_name(1)]
    cut("GET", 0)
    assert folder.names() == names
    cut("GET", 0)
    assert [name for name, _, _ in folder.files()] == ["below/x", *names[1:]]
    cut("GET", 0)
    assert Parts(folder).files() == [folder / name for name in names[1:]]


class _Pages:
    """A store with more entries than a page has, whose list ends after the first page at first."""

    type_name = "s3"

    def __init__(self) -> None:
        self.infos = [fs.FileInfo(f"many/{n:04}", fs.FileType.File) for n in range(PAGE + 1)]
        self.lists = 0

    def get_file_info(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        self.lists += 1
        return self.infos[:PAGE] if self.lists == 1 else self.infos


@pytest.mark.parametrize("below", [False, True])
def test_a_folder_has_the_files_of_every_page(below):
    store = _Pages()
    assert listing.entries(store, "many", below=below) == store.infos


def test_a_folder_is_there(folder, cut):
    for is_there in (folder.exists, folder.is_folder):
        cut("GET", 0)  # the list; there is no object of its name
        assert is_there()
    cut("GET", 0)
    folder.remove()
    assert not folder.exists()


def test_a_file_is_there_and_a_missing_one_is_not(folder, cut, way):  # noqa: F811
    for is_there in (Location.exists, Location.is_file):
        for name, expected in ((part_name(0), True), ("below", is_there == Location.exists)):
            cut("HEAD", 0)
            assert is_there(folder / name) == expected
        cut("HEAD", 0)
        assert not is_there(folder / "missing")


def test_a_folder_beside_rows_is_no_run(put, cut):  # noqa: F811
    uri = put("rows/a/x.jsonl", LINES)
    for number in range(4):
        cut("HEAD", number)
        assert [file.uri for file in expand([f"{Location(uri).parent.parent}/**"])] == [uri]


@pytest.mark.parametrize(
    ("method", "number"), [*zip(repeat("HEAD"), range(5)), *zip(repeat("GET"), range(6))]
)
def test_a_download_has_the_bytes_of_every_file(put, cut, monkeypatch, method, number):  # noqa: F811
    monkeypatch.setattr(readers, "REQUEST_BYTES", 1000)
    contents = {"weights": bytes(range(251)) * 12, "below/config.json": b"{}", "empty": b""}
    for name, content in contents.items():
        uri = put(f"model/{name}", content)
    cut(method, number)
    with Location(uri).parent.local() as folder:
        files = [file for file in folder.rglob("*") if file.is_file()]
        found = {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
    assert found == contents


def test_a_file_that_is_downloaded_alone_has_its_bytes(put, cut):  # noqa: F811
    uri = put("table.csv", LINES)
    cut("GET", 0)
    with Location(uri).local() as file:
        assert (file.name, file.read_bytes()) == ("table.csv", LINES)


def _prepared(extension: Extension) -> Extension:
    manifest = {"stage": "prepare", "fingerprint": "", "inputs": {"data": extension.file_hashes}}
    rest = {"summary": {"kept": 1}, "seconds": 0, "finished": "", "versions": {}}
    file = extension.folder("prepared") / "_manifest.json"
    file.write_bytes(json.dumps(manifest | rest).encode())
    return extension


@pytest.mark.parametrize("numbers", [(0,), (1,), (2,), (0, 1)], ids=str)
def test_no_extension_that_is_prepared_is_removed(s3_bucket, cut, numbers):
    run = Location(s3_bucket) / "run"
    extension = _prepared(Extension(run, 1, ("0",)))
    cut("GET", *numbers)
    remove_unprepared(run, Extension(run, 2, ("1",)), lambda line: None)
    cut("GET", 50)
    assert extension.location.names() == ["prepared"]
    cut("GET", 0)
    extension.location.names()


def test_a_store_whose_answers_are_never_whole_is_named(put, way, monkeypatch):  # noqa: F811
    monkeypatch.setattr("s2l_ray.storage.failures.S3_ATTEMPTS", 2)
    uri = put("x.jsonl", LINES)
    way.breaks["GET"] = repeat(WITHOUT_HEADERS)
    with pytest.raises(StorageError, match=f"{NO_CONTENT}.* did not answer in 2 attempts"):
        Location(uri).read_bytes()


class _Short:
    """A store's file whose reads end early."""

    def __init__(self, content: bytes) -> None:
        self._whole, self._short = pa.BufferReader(content), pa.BufferReader(content[:-1])
        self.seek, self.tell, self.close = self._whole.seek, self._whole.tell, self._whole.close
        self.size, self.reads = self._whole.size, 0

    def get_stream(self, start: int, size: int) -> pa.NativeFile:
        self.reads += 1
        return (self._short if self.reads == 1 else self._whole).get_stream(start, size)


def test_a_read_that_ends_before_the_file_does_is_repeated():
    file = _Short(LINES)
    assert readers._Repeated(None, "", file).read(10_000).to_pybytes() == LINES
    assert file.reads == 2


@pytest.mark.parametrize(
    ("location", "error"),
    [
        ("/pool/unavailable/rows.jsonl", OSError("/pool/unavailable/rows.jsonl is damaged")),
        ("/pool/rows.jsonl", OSError("Unavailable")),
        ("s3://pool/unavailable/x", OSError("key 'unavailable/y' in bucket 'p': it is damaged")),
        ("s3://unavailable/x", OSError("no bucket 'unavailable'")),
        ("abfs://a@pool/slow_down/x", OSError("https://a.net/pool/slow_down/x is damaged")),
        ("s3://pool/x", OSError(5, "Unavailable")),
    ],
    ids=str,
)
def test_a_name_says_nothing_of_the_answer_of_a_store(location, error):
    with pytest.raises(OSError, match=re.escape(str(error))), answered(location):
        raise error
    with (
        pytest.raises(StorageError, match=r"damaged|bucket|vailable$"),
        explained(location, "read"),
    ):
        raise error


def test_a_store_that_is_busy_is_named_whatever_the_path():
    error = OSError("key 's/x' in bucket 'a': AWS Error SLOW_DOWN during GetObject")
    for location in ("s3://a/s/x", "s3://a", "s3://a/x"):
        with pytest.raises(StorageError, match="did not answer"), answered(location):
            raise error
