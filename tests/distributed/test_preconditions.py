"""What Ray needs is looked for before Ray looks, and its lack is named."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from s2l_ray.distributed import preconditions
from s2l_ray.errors import ConfigError
from tests.namespaces import isolated, on_small_disk
from tests.own_ray import free_ports

ROOT = Path(__file__).parents[2]
TOKEN = "a" * 64
JOINS = """
import sys
from s2l_ray.distributed import session
from s2l_ray.errors import ConfigError
try:
    with session.cluster(sys.argv[1]):
        pass
except ConfigError as error:
    print(error)
"""


def test_a_temporary_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "ray"
    message = f"temporary folder {folder} cannot be written .* set RAY_TMPDIR"
    with pytest.raises(ConfigError, match=message):
        preconditions.check_folder(folder)


def test_a_temporary_folder_with_room_is_left_empty(tmp_path):
    preconditions.check_folder(tmp_path / "ray")
    assert list((tmp_path / "ray").iterdir()) == []


def python(code: str, *before: str) -> str:
    """What a process of its own prints."""
    words = [*before, sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


CHECK = """
from s2l_ray.distributed import preconditions
from s2l_ray.errors import ConfigError
try:
    preconditions.{}
except ConfigError as error:
    print(error)
"""


def test_a_full_temporary_folder_is_named(tmp_path):
    mounted = [*isolated("--mount"), *on_small_disk(tmp_path, "64k")]
    said = python(CHECK.format(f"check_folder(preconditions.Path({str(tmp_path)!r}))"), *mounted)
    assert said.startswith(f"Ray's temporary folder {tmp_path} is full.")


def test_a_machine_without_loopback_is_named():
    said = python(CHECK.format("check_loopback()"), *isolated("--net"))
    assert "cannot reach one another on this machine, at 127.0.0.1" in said
    assert "ip link set lo up" in said


def test_a_port_where_nothing_listens_is_named():
    (port,) = free_ports(1)
    with pytest.raises(ConfigError, match=f"no Ray cluster answers at 127.0.0.1:{port}: .*refused"):
        preconditions.check_listens(f"127.0.0.1:{port}")


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """The address of Ray's server of a cluster with TOKEN, and of nothing else."""
    import ray

    logs, (port,) = tmp_path_factory.mktemp("logs"), free_ports(1)
    arguments = {
        "log_dir": logs,
        "session-dir": logs,
        "session-name": "session",
        "gcs_server_port": port,
        "metrics-agent-port": 0,
        "node-ip-address": "127.0.0.1",
        "node-id": "ab" * 28,
    }
    with subprocess.Popen(
        [
            Path(ray.__file__).parent / "core/src/ray/gcs/gcs_server",
            *(f"--{name}={value}" for name, value in arguments.items()),
        ],
        env={**without_ray(), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert any("server started, listening" in line for line in process.stdout)
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()


def without_ray() -> dict[str, str]:
    """The environment without Ray's variables, such as the level below which it says nothing."""
    return {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}


@pytest.mark.ray
@pytest.mark.parametrize(
    ("variables", "source"),
    [
        ({"RAY_AUTH_TOKEN": "b" * 64}, "it is that of RAY_AUTH_TOKEN"),
        ({}, "it has none: RAY_AUTH_TOKEN and RAY_AUTH_TOKEN_PATH are not set, and /.* is missing"),
        ({"RAY_AUTH_MODE": "disabled"}, "it sends none: RAY_AUTH_MODE is disabled"),
    ],
)
def test_a_token_that_the_cluster_does_not_know_is_named(server, tmp_path, variables, source):
    done = subprocess.run(
        [sys.executable, "-c", JOINS, server],
        cwd=ROOT,
        env={**without_ray(), "HOME": str(tmp_path), **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    message = (
        rf"the Ray cluster at {server} does not accept this program's token \({source}\)\. Run"
    )
    assert re.match(message, done.stdout), done.stdout
    assert done.stderr == ""


@pytest.mark.ray
def test_a_server_that_is_no_cluster_is_named(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(preconditions, "CONNECT_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(preconditions.CONNECT_SECONDS)
        address = f"127.0.0.1:{server.getsockname()[1]}"
        # It takes connections, as any server does, and answers nothing.
        with pytest.raises(ConfigError, match=f"listens at {address} does not answer as a Ray"):
            preconditions.check_token(address, "it is that of RAY_AUTH_TOKEN")
