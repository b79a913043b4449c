"""Locations: whole files or none, the same on a local path and on an object store."""

import os
import pickle
import resource
import subprocess
import sys
from itertools import repeat

import numpy as np
import pyarrow as pa
import pytest

from s2l_ray.errors import StorageError
from s2l_ray.storage import failures, filesystems
from s2l_ray.storage.input_files import open_input
from s2l_ray.storage.location import Location
from s2l_ray.storage.lock import exclusive
from tests.unreliable_store import AT_ONCE, unreliable


@pytest.fixture
def folder(tmp_path):
    return Location.of(tmp_path)


def test_what_was_written_is_read(folder):
    table = pa.table({"example_id": ["a", "b"], "row": [1, 2]})
    (folder / "deep" / "x.json").write_json({"a": [1, 2]})
    (folder / "t.parquet").write_table(table)
    assert (folder / "deep" / "x.json").read_json() == {"a": [1, 2]}
    assert (folder / "t.parquet").read_table() == table
    assert (folder / "t.parquet").read_table(["row"]).column_names == ["row"]
    assert folder.names() == ["deep", "t.parquet"]


def test_an_interrupted_write_leaves_the_old_content_and_nothing_else(folder, tmp_path):
    place = folder / "x"
    place.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), place.open_atomic() as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert place.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_an_uploaded_folder_replaces_what_was_there(folder, tmp_path):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "new").write_bytes(b"1")
    (folder / "model" / "old").write_bytes(b"2")
    (folder / "model").upload(source)
    assert (folder / "model").names() == ["sub"]
    with (folder / "model").local() as path:
        assert (path / "sub" / "new").read_bytes() == b"1"


def test_removing_what_is_not_there_is_no_error(folder):
    (folder / "nothing").remove()
    assert not (folder / "nothing").exists()


def test_a_read_only_place_is_explained():
    with pytest.raises(StorageError, match=r"cannot write /proc/s2l/x"):
        Location.of("/proc/s2l/x").write_bytes(b"")


def test_a_full_disk_is_explained():
    # /dev/full answers every write with ENOSPC, as a full disk does.
    with (
        pytest.raises(StorageError, match="no space left"),
        Location.of("/tmp/s2l-full").open_atomic(),  # noqa: S108 - never created
        open("/dev/full", "wb") as full,
    ):
        full.write(b"x" * 100_000)


def test_a_folder_that_does_not_fit_leaves_what_was_there(folder, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "weights").write_bytes(bytes(5_000))
    (folder / "model" / "weights").write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises(
            StorageError, match=r"cannot write .*model: \[Errno 27\] File too large"
        ):
            (folder / "model").upload(tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert folder.names() == ["model", "new"]
    assert (folder / "model" / "weights").read_bytes() == b"old"


def test_a_missing_file_and_broken_json_are_named(folder):
    with pytest.raises(StorageError, match=r"cannot read .*nothing: there is no such file"):
        (folder / "nothing").read_bytes()
    (folder / "x.json").write_bytes(b"{")
    with pytest.raises(StorageError, match=r"x\.json is not JSON"):
        (folder / "x.json").read_json()


HOLDER = """
import sys
from s2l_ray.storage import location
from s2l_ray.storage.location import Location
from s2l_ray.storage.lock import exclusive
with exclusive(Location.of(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_held_folder_is_refused_until_its_holder_dies(folder):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder.uri],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(StorageError, match=f"in use by another run .process {holder.pid}"),
            exclusive(folder),
        ):
            pass
        holder.kill()
        holder.wait()
    with exclusive(folder):
        pass


@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 2)])
def test_an_array_is_the_one_that_was_written_and_a_file_as_numpy_writes_it(tmp_path, shape):
    array = np.random.default_rng(0).random(shape).astype(np.float32)
    file = Location.of(tmp_path) / "a.npy"
    file.write_npy(array)
    again = file.read_npy()
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again, array)
    np.save(tmp_path / "numpy.npy", array)
    assert file.read_bytes() == (tmp_path / "numpy.npy").read_bytes()


@pytest.mark.parametrize("content", [b"", b"no array", pickle.dumps([1])])
def test_a_file_that_is_no_array_is_refused_by_name(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(StorageError, match=r"a\.npy is no \.npy array"):
        (Location.of(tmp_path) / "a.npy").read_npy()


def test_objects_are_neither_pickled_nor_unpickled(tmp_path):
    objects = np.array([{}], dtype=object)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        (Location.of(tmp_path) / "a.npy").write_npy(objects)
    assert not list(tmp_path.iterdir())
    np.save(tmp_path / "a.npy", objects)
    with pytest.raises(StorageError, match="allow_pickle=False"):
        (Location.of(tmp_path) / "a.npy").read_npy()


@pytest.mark.ray
class TestObjectStore:
    """The same promises against a real S3 protocol server."""

    @pytest.fixture
    def bucket(self, s3_bucket):
        return Location.of(s3_bucket) / "run"

    def test_what_was_written_is_read(self, bucket, tmp_path):
        table = pa.table({"example_id": ["a", "b"]})
        (bucket / "p" / "t.parquet").write_table(table)
        assert (bucket / "p" / "t.parquet").read_table() == table
        assert (bucket / "p").names() == ["t.parquet"]
        assert not (bucket / "q").exists() and (bucket / "q").names() == []
        (tmp_path / "config.json").write_text("{}")
        (bucket / "model").upload(tmp_path)
        with (bucket / "model").local() as path:
            assert (path / "config.json").read_text() == "{}"
        (bucket / "p").remove()
        assert (bucket / "p").names() == []

    @pytest.fixture
    def way(self, s3_endpoint, bucket, monkeypatch):
        """The way to the bucket loses requests."""
        with unreliable(s3_endpoint) as found:
            monkeypatch.setenv("AWS_ENDPOINT_URL", found.address)
            yield found

    def test_broken_requests_change_no_byte(self, bucket, way, tmp_path):
        content = {f"part-{number}": os.urandom(5_000 * number) for number in range(40)}
        for name, written in content.items():
            (bucket / name).write_bytes(written)
        assert bucket.names() == sorted(content)
        assert {name: (bucket / name).read_bytes() for name in content} == content
        (bucket / "part-7").remove()
        assert not (bucket / "part-7").exists()
        assert set(way.broken) >= set(AT_ONCE)

    @pytest.mark.parametrize("kind", AT_ONCE)
    def test_a_read_of_less_than_an_error_page_is_repeated(self, bucket, way, kind):
        (bucket / "few" / "x").write_bytes(b"few")
        (bucket / "t.parquet").write_table(pa.table({"a": [1]}))

        way.breaks["GET"] = iter([kind])
        assert (bucket / "few" / "x").read_bytes() == b"few"
        way.breaks["GET"] = iter([kind])
        assert (bucket / "t.parquet").read_schema().names == ["a"]
        way.breaks["GET"] = iter([kind])
        with open_input(f"{bucket}/few/x", None) as stream:
            assert stream.read() == b"few"
        # The first two requests look the folder up.
        way.breaks["GET"] = iter([kind] * 3)
        with (bucket / "few").local() as copy:
            assert (copy / "x").read_bytes() == b"few"
        assert way.broken[kind] >= 5

    @pytest.mark.parametrize("kind", AT_ONCE)
    @pytest.mark.parametrize(("method", "size"), [("HEAD", 10), ("GET", 10), ("GET", 10_000)])
    def test_a_store_that_never_answers_is_given_up_and_named(
        self, bucket, way, monkeypatch, method, size, kind
    ):
        for module in (filesystems, failures):
            monkeypatch.setattr(module, "S3_ATTEMPTS", 2)
        (bucket / "x").write_bytes(bytes(size))
        way.breaks[method] = repeat(kind)
        message = f"(?s)cannot read {bucket}/x: .* did not answer in .* attempts"
        with pytest.raises(StorageError, match=message):
            (bucket / "x").read_bytes()
        assert way.requests[method] <= 4

    def test_a_small_file_is_written_in_one_request_and_read_in_two(self, bucket, way):
        (bucket / "x").write_bytes(b"1")
        before = way.requests.total()
        (bucket / "y").write_bytes(b"1")
        written = way.requests.total() - before
        (bucket / "y").read_bytes()
        assert (written, way.requests.total() - before - written) == (1, 2)

    def test_an_interrupted_write_leaves_nothing(self, bucket):
        with pytest.raises(KeyboardInterrupt), (bucket / "x").open_atomic() as stream:
            stream.write(b"half")
            raise KeyboardInterrupt
        assert not (bucket / "x").exists()

    def test_a_lease_that_cannot_be_given_back_hides_no_error(self, bucket):
        with pytest.raises(StorageError, match=r"^the store refuses$"), exclusive(bucket):
            (bucket / "lease.json").remove()  # nor can it be read, then
            raise StorageError("the store refuses")

    def test_a_lease_keeps_others_out_while_it_is_held(self, bucket):
        with (
            exclusive(bucket),
            pytest.raises(StorageError, match="in use by another run"),
            exclusive(bucket),
        ):
            pass
        with exclusive(bucket):
            pass
