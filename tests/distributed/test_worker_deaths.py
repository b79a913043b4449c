"""Workers that always die before they have done anything: the program says why, and ends."""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
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
cli.program()
"""
FULL_BEFORE_IT_JOINS = """
import sys
from tests.distributed.test_worker_deaths import fill, prepare
from tests.own_ray import head_node

disk, config = sys.argv[1:]
with head_node("--num-cpus=2", f"--temp-dir={disk}") as head:
    fill(disk)
    done = prepare(head, config)
sys.stdout.write(done.stdout)
sys.stderr.write(done.stderr)
sys.exit(done.returncode)
"""
JOINED = """
import contextlib, os, sys
from tests.distributed import test_worker_deaths as test
from tests.own_ray import head_node

def main(disk, folder):
    options = ("--num-cpus=2", "--object-store-memory=80000000", f"--temp-dir={disk}")
    with head_node(*options) as head, contextlib.ExitStack() as stack:
        os.environ.update(head.environment)  # before anything loads Ray, which then reads its token
        from s2l_ray.distributed import cluster_watch, fleet, map_units, resources, worker_deaths
        from s2l_ray.pipeline.run import connect
        from s2l_ray.progress import Progress
        from s2l_ray.storage.location import Location

        cluster_watch.SECONDS_PER_LOOK_AT_NODES, worker_deaths.SECONDS_OF_DEATHS = 1.0, 4.0
        connect(f"127.0.0.1:{head.port}", 60, stack, print)
        wanted, place = resources.Workers("doubles", 1, 2), Location.of(folder)
        with Progress("doubles"):
            WORK

from s2l_ray.errors import UserError
try:
    main(*sys.argv[1:])
except UserError as error:
    print(file=sys.stderr)  # Ray's lines may lack their end
    sys.exit(f"s2l: {error}")
"""
FULL_BEFORE_A_WORKER_STARTS = JOINED.replace(
    "WORK",
    """
            test.fill(disk)
            list(map_units.map_units(test.Doubles, [{}] * 4, wanted, place))
""",
)
LARGE_OBJECTS = JOINED.replace(
    "WORK",
    """
            doubles = fleet.RayFleet(test.Doubles, [place] * 2, wanted)
            print(doubles.shuffle(["sum"], "large", "total"))
""",
)


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


class Doubles:
    """A worker of either kind, for the programs above."""

    def __init__(self, files: object = None) -> None:
        pass

    def __call__(self, unit: dict[str, object]) -> dict[str, object]:
        return unit | unit

    def large(self, names: Sequence[str]) -> list[np.ndarray]:
        return [np.ones(12 << 20) for _ in names]  # 96 MiB each

    def total(self, *parts: Sequence[np.ndarray]) -> dict[str, float]:
        return {"sum": sum(float(part.sum()) for (part,) in parts)}


def fill(disk: str) -> None:
    """Leave no byte free there."""
    with contextlib.suppress(OSError), open(f"{disk}/filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def on_a_disk_of(size: str, program: str, argument: object) -> subprocess.CompletedProcess[str]:
    """The program, with a disk of that size for the temporary folder of its Ray."""
    disk = tempfile.mkdtemp(prefix="s2l-", dir="/tmp")  # the paths of Ray's sockets are short
    try:
        words = [sys.executable, "-c", program, disk, argument]
        return called([*isolated("--mount"), *on_small_disk(Path(disk), size), *words])
    finally:
        shutil.rmtree(disk)


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


def test_a_full_temporary_folder_of_ray_is_named(config):
    message = refusal(on_a_disk_of("80m", FULL_BEFORE_IT_JOINS, config))
    folder = message.split("Ray's temporary folder ")[1].split()[0]
    assert message.startswith(f"s2l: Ray's temporary folder {folder} is full: no worker can start")


def test_a_temporary_folder_that_fills_before_a_worker_starts_ends_the_stage(tmp_path):
    done = on_a_disk_of("80m", FULL_BEFORE_A_WORKER_STARTS, tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("s2l: ")]
    # Ours die again and again, or one of Ray's own is the first that is missed.
    cause = "died, most likely because Ray's temporary folder /tmp/s2l-"
    assert told and cause in told[-1], done.stderr


def test_objects_larger_than_the_object_store_go_by_the_disk(tmp_path):
    done = on_a_disk_of("1g", LARGE_OBJECTS, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == str({"sum": float(2 * (12 << 20))})


def test_objects_larger_than_the_object_store_on_a_full_disk_name_the_folder(tmp_path):
    done = on_a_disk_of("120m", LARGE_OBJECTS, tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "s2l: doubles: the worker of parts 0, or one that it took from: Ray's tem" in done.stderr
