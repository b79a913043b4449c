"""Workers that always die before they have done anything: the program says why, and ends."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import handmade
from tests.namespaces import isolated, on_small_disk
from tests.own_ray import Head, head_node
from tests.small_run import refusal

pytestmark = [pytest.mark.ray, pytest.mark.cluster]

ROOT = Path(__file__).parents[2]
SOON = """
import sys
from s2l_ray import cli
from s2l_ray.distributed import cluster_watch, worker_deaths
cluster_watch.SECONDS_PER_LOOK_AT_NODES = 1.0
worker_deaths.SECONDS_OF_DEATHS = 4.0
sys.exit(cli.main(sys.argv[1:]))
"""
ON_A_FULL_DISK = """
import contextlib, sys
from tests.distributed.test_worker_deaths import prepare
from tests.own_ray import head_node

config, disk = sys.argv[1:]
with head_node("--num-cpus=2", f"--temp-dir={disk}") as head:
    with contextlib.suppress(OSError), open(f"{disk}/filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    done = prepare(head, config)
sys.stdout.write(done.stdout)
sys.stderr.write(done.stderr)
sys.exit(done.returncode)
"""


@pytest.fixture
def config(tmp_path) -> Path:
    (tmp_path / "run.yaml").write_text(json.dumps(handmade.inputs(tmp_path)))
    return tmp_path / "run.yaml"


def called(
    words: Sequence[object], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def prepare(head: Head, config: object) -> subprocess.CompletedProcess[str]:
    """The program on this cluster; it gives up after some seconds, not half a minute."""
    words = [sys.executable, "-c", SOON, "run", config, "--until", "prepare"]
    return called(words, {**head.environment, "RAY_ADDRESS": f"127.0.0.1:{head.port}"})


def test_of_a_machine_whose_memory_is_full_the_node_and_the_threshold_are_named(config):
    with head_node("--num-cpus=2", RAY_memory_usage_threshold="0.001") as head:
        message = refusal(prepare(head, config))
    assert message.startswith("s2l: prepare: the memory of a machine (node ")
    assert "Ray's memory monitor kills every worker" in message
    assert "exceeded threshold of" in message


def test_of_a_full_disk_under_rays_temporary_folder_the_folder_is_named(config):
    disk = tempfile.mkdtemp(prefix="s2l-", dir="/tmp")  # the paths of Ray's sockets are short
    try:
        words = [sys.executable, "-c", ON_A_FULL_DISK, config, disk]
        message = refusal(called([*isolated("--mount"), *on_small_disk(Path(disk), "80m"), *words]))
    finally:
        shutil.rmtree(disk)
    assert message.startswith(f"s2l: Ray's temporary folder {disk} is full: no worker can start")
