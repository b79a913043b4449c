"""One address of each kind of store, on a server of this machine: s3://, gs:// and abfs://."""

import re
import shutil
import subprocess
import sys
import uuid

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from s2l_ray.errors import StorageError
from s2l_ray.storage import filesystems, lock, small_files
from s2l_ray.storage.filesystems import open_uri
from s2l_ray.storage.input_files import expand
from s2l_ray.storage.location import Location

pytestmark = pytest.mark.ray
AZURITE = shutil.which("azurite-blob") or shutil.which(
    "azurite-blob", path=f"{sys.prefix}/azurite/node_modules/.bin"
)
# The account and the key that Azurite documents for everybody: no secret.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


# In a process of its own: pyarrow's client for gs:// keeps Python's lock while it connects.
GCS_SERVER = """
import sys
from gcp_storage_emulator.server import create_server

server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="pool")
server.start()
print(server._api._httpd.server_port, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def gcs_endpoint():
    pytest.importorskip("gcp_storage_emulator")
    command = [sys.executable, "-c", GCS_SERVER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        server.kill()


@pytest.fixture(scope="module")
def azurite_port():
    if AZURITE is None:
        pytest.skip("needs Azurite: npm, for make install, or npm install -g azurite")
    command = [AZURITE, "--inMemoryPersistence", "--blobPort", "0", "--skipApiVersionCheck"]
    command += ["--blobHost", "127.0.0.1", "--disableTelemetry"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        for line in server.stdout:
            if found := re.search(r"listens on http://127\.0\.0\.1:(\d+)", line):
                break
        yield int(found[1])
        server.kill()


@pytest.fixture
def gcs_bucket(gcs_endpoint, monkeypatch):
    # Without `anonymous@` the client asks Google for credentials first.
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", gcs_endpoint)
    return f"gs://anonymous@pool/{uuid.uuid4().hex}"


@pytest.fixture
def azure_container(azurite_port, monkeypatch):
    """A container whose client is opened here: pyarrow takes Azurite's address from no variable."""
    here = {f"{kind}_storage_authority": f"127.0.0.1:{azurite_port}" for kind in ("blob", "dfs")}
    plain = {f"{kind}_storage_scheme": "http" for kind in ("blob", "dfs")}
    client = pafs.AzureFileSystem(account_name=ACCOUNT, account_key=KEY, **here, **plain)
    container = f"c{uuid.uuid4().hex}"
    client.create_dir(container)
    opened = {f"abfs://{ACCOUNT}@{container}": client}
    monkeypatch.setattr(filesystems, "_bucket_filesystem", opened.__getitem__)
    return f"abfs://{ACCOUNT}@{container}/prefix"


@pytest.fixture(params=["s3_bucket", "gcs_bucket", "azure_container"])
def folder(request):
    return Location.of(request.getfixturevalue(request.param)) / "run"


def test_a_small_file_that_is_missing_is_none(folder):
    file = folder / "clusters" / "_manifest.json"
    assert small_files.read(file) is None
    small_files.write(file, {"rows": 1})
    assert small_files.read(file) == {"rows": 1}
    small_files.remove_of(file.parent, "attempts", file.name)
    assert small_files.read(file) is None


def test_what_was_written_is_read_and_listed(folder):
    assert (folder.exists(), folder.names()) == (False, [])
    table = pa.table({"example_id": ["a", "b"]})
    (folder / "parts" / "a b%41#.parquet").write_table(table)
    (folder / "_manifest.json").write_json({"rows": 2})
    assert (folder / "parts" / "a b%41#.parquet").read_table() == table
    assert (folder / "_manifest.json").read_json() == {"rows": 2}
    assert folder.names() == ["_manifest.json", "parts"]
    assert [name for name, _, _ in folder.files()] == ["_manifest.json", "parts/a b%41#.parquet"]
    assert (folder.exists(), folder.is_folder()) == (True, True)
    assert not (folder / "nothing").exists()
    with pytest.raises(StorageError, match=r"cannot read .*nothing: there is no such file"):
        (folder / "nothing").read_bytes()


def test_a_folder_is_moved_and_removed_with_all_that_is_in_it(folder):
    for name in ("a", "_manifest.json"):
        (folder / "new" / name).write_bytes(name.encode())
    (folder / "new").move_to(folder / "old", last="_manifest.json")
    assert folder.names() == ["old"]
    assert (folder / "old" / "a").read_bytes() == b"a"
    (folder / "old").remove()
    assert folder.names() == []
    (folder / "old").remove()


def test_a_model_is_copied_there_and_back(folder, tmp_path):
    (tmp_path / "model" / "sub").mkdir(parents=True)
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "sub" / "weights").write_bytes(bytes(100_000))
    (folder / "model").upload(tmp_path / "model")
    with (folder / "model").local() as copy:
        assert (copy / "config.json").read_text() == "{}"
        assert (copy / "sub" / "weights").stat().st_size == 100_000


def test_a_pattern_finds_files_by_the_address_that_reads_them(folder):
    for name in ("a.jsonl", "b.jsonl", "c.csv"):
        (folder / "pool" / name).write_bytes(b"{}\n")
    expected = [f"{folder}/pool/a.jsonl", f"{folder}/pool/b.jsonl"]
    found = [file.uri for file in expand([f"{folder}/pool/*.jsonl"])]
    assert found == expected
    assert [file.uri for file in expand([f"{folder}/*/[ab].*"])] == expected
    assert {Location.of(uri).read_bytes() for uri in found} == {b"{}\n"}


def test_a_folder_is_held_by_one_run_at_a_time(folder, monkeypatch):
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0)
    with (
        lock.exclusive(folder),
        pytest.raises(StorageError, match="in use by another run"),
        lock.exclusive(folder),
    ):
        pass
    with lock.exclusive(folder):
        assert folder.names() == ["lease.json"]
    assert folder.names() == []


def test_an_account_stands_before_its_container_and_not_in_the_path(monkeypatch):
    monkeypatch.setattr(filesystems, "_bucket_filesystem", lambda bucket: bucket)
    uri = "abfs://team@pool/runs/a%20b@c"
    assert open_uri(uri) == ("abfs://team@pool", "pool/runs/a%20b@c", "abfs://team@")
    assert open_uri("s3://pool/a@b") == ("s3://pool", "pool/a@b", "s3://")


@pytest.mark.parametrize("uri", ["abfs://pool/runs", "abfss://pool@team.dfs.core.windows.net/runs"])
def test_other_forms_of_azure_are_refused_with_the_one_that_is_read(uri):
    with pytest.raises(StorageError, match="write abfs://ACCOUNT@CONTAINER/PATH"):
        Location.of(uri).exists()
