"""Data sets and models by their names on the Hugging Face hub, from a server that speaks for it."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).parents[2]
COMMIT = "a" * 40
CARD = """---
dataset_info:
  features:
  - {name: instruction, dtype: string}
  - {name: output, dtype: string}
  splits:
  - {name: train, num_bytes: 1000, num_examples: 30}
---
"""
pytestmark = pytest.mark.ray


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's protocol that reading takes: information, listings and files."""

    protocol_version = "HTTP/1.1"
    folders: dict[str, Path]

    def do_GET(self):
        kind, _, rest = self.path.partition("?")[0].removeprefix("/api/").partition("org/")
        repository, _, rest = rest.partition("/")
        folder = self.folders.get(f"{kind.strip('/') or 'models'}/{repository}")
        if folder is None:
            return self._answer(404, b"", X_Error_Code="RepoNotFound")
        if rest.startswith("resolve/"):
            return self._file(folder / rest.split("/", 2)[2])
        files = sorted(path for path in folder.iterdir())
        if rest.startswith("tree/"):
            keys = {"type": "file", "oid": "0" * 40}
            return self._json([keys | {"path": f.name, "size": f.stat().st_size} for f in files])
        siblings = [{"rfilename": file.name} for file in files]
        usual = {"private": False, "disabled": False, "gated": False, "tags": []}
        return self._json(usual | {"id": f"org/{repository}", "sha": COMMIT, "siblings": siblings})

    do_HEAD = do_GET

    def _file(self, file: Path) -> None:
        if not file.is_file():
            return self._answer(404, b"", X_Error_Code="EntryNotFound")
        content = file.read_bytes()
        known = {"ETag": f'"{file.name}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if wanted is None:
            return self._answer(200, content, **known)
        first, last = wanted.removeprefix("bytes=").split("-")
        piece = content[int(first) : int(last or len(content)) + 1]
        span = f"bytes {first}-{int(first) + len(piece) - 1}/{len(content)}"
        return self._answer(206, piece, Content_Range=span, **known)

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def _answer(self, code: int, content: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Iterator[dict[str, str]]:
    """That of a process for which org/sums and org/small are on the hub, and nothing else."""
    folder = tmp_path_factory.mktemp("hub")
    pool, model = folder / "pool", folder / "model"
    pool.mkdir()
    rows = [{"instruction": f"add {i}", "output": f"{i}"} for i in range(30)]
    (pool / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (pool / "README.md").write_text(CARD)
    tiny.model("llama", seed=3).save_pretrained(model)
    tiny.tokenizer().save_pretrained(model)
    served = type("Served", (Hub,), {"folders": {"datasets/sums": pool, "models/small": model}})
    with ThreadingHTTPServer(("127.0.0.1", 0), served) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(folder / "home"),
            "HF_HUB_OFFLINE": "0",
        }
        server.shutdown()


def shown(environment: dict[str, str], code: str, *arguments: object) -> list[str]:
    """The lines that `code` prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


READ = """
from s2l_ray.data import sources
from s2l_ray.storage import input_files
from s2l_ray.errors import DataError
for name in ("hf://org/sums", "hf://org/sums:test", "hf://org/nothing"):
    (file,) = input_files.expand([name], "data.train")
    try:
        rows = list(sources.read_rows(file))
        print(len(rows), rows[7].row, rows[7].fields, input_files.content_hash(file))
    except DataError as error:
        print(error)
"""

PLAN = """
import sys
from s2l_ray.pipeline import steps
from s2l_ray.config.sections import RunConfig
from s2l_ray.errors import ModelError
from s2l_ray.storage.location import Location
run = Location.of(sys.argv[1])
for name in sys.argv[2:]:
    data = {"train": ["benchmarks/data/math-mix-lengths.csv"], "tokenizer": name}
    try:
        planned = steps.plan(RunConfig(run_dir=run.uri, data=data), run)
        (run / "contents.json").write_json(planned.contents.cache)
        print(planned.steps[0].out.inputs.get("data.tokenizer contents"))
    except ModelError as error:
        print(error)
"""

OFFLINE = """
import sys
from s2l_ray.models import origins
print(origins.hub_revision("org/small"), origins.hub_revision("org/other"))
"""

COUNT = """
from s2l_ray.data import sources
from s2l_ray.storage import input_files
for name in ("hf://org/sums", "hf://org/sums:train[:7]"):
    (file,) = input_files.expand([name], "data.train")
    print(sources.estimated_rows(file, [{}] * 5))
"""

LOAD = """
from s2l_ray.errors import ModelError
from s2l_ray.models import checkpoints
print(checkpoints.load_tokenizer("org/small").eos_token, checkpoints.load_model("org/small").dtype)
print(float(sum(w.double().sum() for w in checkpoints.load_model("org/small").parameters())))
try:
    checkpoints.load_model("org/nothing")
except ModelError as error:
    print(error)
"""


def test_a_data_set_is_read_by_its_name_and_known_by_its_revision(environment):
    read, no_split, no_data_set = shown(environment, READ)
    assert read == f"30 7 {{'instruction': 'add 7', 'output': '7'}} {COMMIT}:train"
    assert "hf://org/sums:test" in no_split and "['train']" in no_split
    assert "hf://org/nothing cannot be read" in no_data_set and "Check the name" in no_data_set


def test_the_rows_of_a_split_are_those_that_its_data_set_names(environment):
    # Of a slice it says nothing, and only the sample is known.
    assert shown(environment, COUNT) == ["30", "5"]


@pytest.fixture(scope="module")
def loaded(environment) -> list[str]:
    """What loading says; the model is then in the cache."""
    return shown(environment, LOAD)


def test_a_model_is_loaded_by_its_name(loaded):
    eos_and_type, weight_sum, nothing = loaded
    assert eos_and_type == f"{tiny.EOS} torch.float32"
    expected = sum(w.detach().double().sum() for w in tiny.model("llama", seed=3).parameters())
    assert float(weight_sum) == pytest.approx(float(expected), abs=1e-9)
    assert nothing.startswith("model org/nothing cannot be loaded: ")


def test_a_run_keeps_to_the_version_of_a_model_that_it_began_with(environment, tmp_path):
    names = ("org/small", f"org/small@{COMMIT}", "org/nothing")
    first, given, nothing = shown(environment, PLAN, tmp_path, *names)
    assert first == given == COMMIT
    assert nothing.startswith("model org/nothing: there is no such directory here, and none of")
    nowhere = environment | {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path)}
    assert shown(nowhere, PLAN, tmp_path, "org/small", "org/other") == [COMMIT, "None"]


@pytest.mark.usefixtures("loaded")
def test_without_the_hub_a_model_is_of_the_version_in_the_cache(environment):
    for offline in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:1"}):
        assert shown(environment | offline, OFFLINE) == [f"{COMMIT} None"]


def test_a_model_that_a_run_loaded_is_known_without_the_hub(environment, tmp_path):
    own = environment | {"HF_HOME": str(tmp_path)}
    by_commit = f"checkpoints.load_tokenizer('org/small@{COMMIT}')"
    shown(own, f"from s2l_ray.models import checkpoints; {by_commit}")
    nowhere = own | {"HF_ENDPOINT": "http://127.0.0.1:1"}
    assert shown(nowhere, OFFLINE) == [f"{COMMIT} None"]


READ_OFFLINE = """
from s2l_ray.data import sources
from s2l_ray.errors import UserError
from s2l_ray.models import checkpoints
from s2l_ray.storage import input_files
(file,) = input_files.expand(["hf://org/sums"], "data.train")
for read in (
    lambda: checkpoints.load_model("org/other"),
    lambda: next(sources.read_rows(file)),
    lambda: print(checkpoints.load_tokenizer("org/small").eos_token),
):
    try:
        read()
    except UserError as error:
        print(error)
"""


@pytest.mark.usefixtures("loaded")
def test_what_the_hub_does_not_give_is_said_once_and_what_is_cached_is_read(
    environment,
):
    """Without the tries of the hub's own clients for every file, which say `Retrying`."""
    done = subprocess.run(
        [sys.executable, "-c", READ_OFFLINE],
        cwd=ROOT,
        env=environment | {"HF_ENDPOINT": "http://127.0.0.1:1"},
        capture_output=True,
        text=True,
        check=True,
    )

    reason = "no network answered for the hub, http://127.0.0.1:1 ("
    model, rows, eos = done.stdout.splitlines()
    assert eos == tiny.EOS
    assert model.startswith("model org/other: there is no such directory here") and reason in model
    assert "hf download org/other" in model
    assert rows.startswith(f"data: hf://org/sums: {reason}")
    assert "--repo-type dataset org/sums" in rows
    assert "Retrying" not in done.stderr


def test_a_run_does_not_begin_with_a_model_of_unknown_version(environment, tmp_path):
    pool = tmp_path / "pool.jsonl"
    pool.write_text('{"instruction": "say", "output": "a"}\n')
    config = tmp_path / "run.yaml"
    data = f"{{train: [{pool}], tokenizer: org/other}}"
    config.write_text(f"run_dir: {tmp_path / 'run'}\ndata: {data}\n")
    done = subprocess.run(
        [sys.executable, "-m", "s2l_ray", "run", str(config)],
        cwd=ROOT,
        env=environment | {"HF_ENDPOINT": "http://127.0.0.1:1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "s2l: model org/other: there is no such directory here, nothing of that" in done.stderr
    assert "no network answered for the hub, http://127.0.0.1:1 (" in done.stderr
    assert not (tmp_path / "run" / "prepared").exists()
