"""Requests that a run costs on an object store, by step and kind of file.

    python benchmarks/count_requests.py losses [--rows 300000] [--files 6] [--in-place]
    python benchmarks/count_requests.py prepare [--rows 24000] [--files 6]

An S3 server of this machine (moto) counts what the command asks of it: the input and the run are
in its bucket. `losses` brings losses of 12 checkpoints, and clusters and ranks them; `--in-place`
has them read where they lie, as those of more than 2 GB are. `prepare` is that stage of rows of
generated arithmetic.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow.fs as pafs
from bench_clusters import write_pool
from bench_scoring import record

from s2l_ray.artifacts.inputs import SETTLED_SECONDS

KINDS = ("LIST", "HEAD", "GET", "PUT", "POST", "DELETE")


SERVER = """
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

app = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""
REQUEST = re.compile(r'"(\w+) /pool([^ ]*) HTTP')


@dataclass
class Store:
    """An S3 server with a bucket `pool`, whose log names every request."""

    log: Path

    def requests(self) -> list[tuple[str, str]]:
        """Return all requests so far, each as a kind and the key that it is for."""
        found = []
        for method, path in REQUEST.findall(self.log.read_text()):
            address = urlsplit(path)
            query = parse_qs(address.query)
            if "list-type" in query:
                found.append(("LIST", *query["prefix"]))
            else:
                found.append((method, unquote(address.path).strip("/")))
        return found


@contextmanager
def started_store(folder: Path) -> Iterator[Store]:
    """Start a server, which the environment leads to."""
    log = folder / "requests.log"
    with (
        log.open("w") as lines,
        subprocess.Popen([sys.executable, "-c", SERVER], stdout=PIPE, stderr=lines) as server,
    ):
        assert server.stdout is not None
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{int(server.stdout.readline())}",
        }
        client = pafs.FileSystem.from_uri("s3://pool?allow_bucket_creation=true")[0]
        client.create_dir("pool")
        yield Store(log)
        server.kill()


def upload(folder: Path, target: str) -> None:
    store, path = pafs.FileSystem.from_uri(target)
    pafs.copy_files(str(folder), path, destination_filesystem=store)
    # A file that was just written is hashed again by the next command.
    time.sleep(2 * SETTLED_SECONDS)


def by_kind(requests: Iterable[tuple[str, str]]) -> dict[str, int]:
    counts = Counter(kind for kind, _ in requests)
    return {kind: counts[kind] for kind in KINDS if counts[kind]}


def by_place(requests: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Requests by file, numbers in names left out."""
    places: dict[str, list[tuple[str, str]]] = {}
    for kind, key in requests:
        place = re.sub(r"[0-9a-f]{32}", "*", key)
        place = re.sub(r"\d+", "*", place)
        places.setdefault(place, []).append((kind, key))
    return {place: by_kind(places[place]) for place in sorted(places)}


def losses_brought(given: argparse.Namespace, store: Store, folder: Path) -> dict[str, Any]:
    from s2l_ray.trajectories import import_existing

    write_pool(given.rows, 1, -(-given.rows // given.files), folder / "input")
    base = f"s3://pool/{uuid.uuid4().hex}"
    upload(folder / "input", f"{base}/losses")
    tree = {
        "run_dir": f"{base}/run",
        "trajectories": {"path": f"{base}/losses/*.parquet"},
        "clusters": {"num_clusters": 100, "per_stratum": False},
        "selection": {"budget": 0.11},
    }
    if given.in_place:
        import_existing.BYTES_COPIED = 0
    return stages(tree, ("trajectories", "clusters", "selection"), store, folder)


def rows_prepared(given: argparse.Namespace, store: Store, folder: Path) -> dict[str, Any]:
    per_file = -(-given.rows // given.files)
    for number in range(given.files):
        lines = [
            json.dumps({"question": f"{row} + {number} = ?", "answer": str(row + number)})
            for row in range(number * per_file, min((number + 1) * per_file, given.rows))
        ]
        (folder / "input" / f"{number:04}.jsonl").write_text("\n".join(lines) + "\n")
    base = f"s3://pool/{uuid.uuid4().hex}"
    upload(folder / "input", f"{base}/rows")
    fields = {"prompt": "question", "response": "answer"}
    tree = {
        "run_dir": f"{base}/run",
        "data": {"train": [f"{base}/rows/*.jsonl"], "fields": fields},
    }
    return stages(tree, ("prepare",), store, folder)


def stages(
    tree: dict[str, Any], names: tuple[str, ...], store: Store, folder: Path
) -> dict[str, Any]:
    """Requests of the run, one command for each stage, and of its first line to its last."""
    from s2l_ray.cli import main

    config = folder / "run.yaml"
    config.write_text(json.dumps(tree))
    found: dict[str, Any] = {}
    for name in names:
        before = len(store.requests())
        code = main(["run", str(config), "--until", name])
        assert not code, f"{name}: exit code {code}"
        requests = store.requests()[before:]
        found[name] = {**by_kind(requests), "by_place": by_place(requests)}
    return found


SUBJECTS = {"losses": losses_brought, "prepare": rows_prepared}


def measured(subject: str, given: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, started_store(Path(folder)) as store:
        (Path(folder) / "input").mkdir()
        return SUBJECTS[subject](given, store, Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--files", type=int, default=6)
    parser.add_argument("--in-place", action="store_true")
    given = parser.parse_args()
    place = "-in-place" if given.in_place else ""
    record(given, f"requests-{given.subject}{place}.json", measured, [given.subject])


if __name__ == "__main__":
    main()
