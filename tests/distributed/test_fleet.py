"""Actors that hold parts: what they return, hand over, refuse, and survive."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from s2l_ray.distributed import resources
from s2l_ray.distributed.failures import MAX_ATTEMPTS
from s2l_ray.distributed.fleet import RayFleet
from s2l_ray.errors import DataError, StorageError, UnitError
from s2l_ray.storage.location import Location

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

FILES = [Location(f"/pool/part-{number}") for number in range(5)]
TWO = resources.Workers("clusters", 2, 2, advice="Raise clusters.workers.")


class Holder:
    """Knows the numbers of its parts."""

    def __init__(self, files: dict[int, Location]) -> None:
        self.parts = sorted(files)

    def held(self, factor: int) -> list[int]:
        return [factor * part for part in self.parts]

    def give(self, names: list[str]) -> dict[str, int]:
        return {name: sum(self.parts) for name in names}

    def give_badly(self, names: list[str]) -> dict[str, int]:
        if 1 in self.parts:
            os._exit(1)
        return self.give(names)

    def take(self, *given: dict[str, int]) -> dict[str, int]:
        return {name: sum(item[name] for item in given) for name in given[0]}

    def fail(self, folder: Path, kind: str, times: int) -> int:
        """Fails so often on the actor that has part 1, and counts its attempts in `folder`."""
        if 1 not in self.parts:
            return 0
        attempt = len(list(folder.iterdir()))
        (folder / str(attempt)).touch()
        if attempt < times:
            if kind == "death":
                os._exit(1)
            raise {
                "storage": StorageError("cannot read s3://bucket/part"),
                "refusal": DataError("e7 is not finite"),
                "memory": MemoryError("no room"),
                "bug": KeyError("no such key"),
            }[kind]
        return attempt


@contextlib.contextmanager
def started(files: list[Location], wanted: resources.Workers) -> Iterator[RayFleet]:
    fleet = RayFleet(Holder, files, wanted)
    yield fleet
    for actor in fleet.actors:
        ray.kill(actor)


@pytest.fixture(scope="module")
def fleet(ray_cluster) -> Iterator[RayFleet]:
    """One that survives its tests: a death counts for all calls of an actor."""
    with started(FILES, TWO) as found:
        yield found


def test_every_part_is_held_once(fleet):
    assert fleet.call_all("held", 10) == [[0, 20, 40], [10, 30]]


def test_what_all_give_is_taken_once_by_name(fleet):
    names = ["c", "a", "b"]
    assert fleet.shuffle(names, "give", "take") == {"a": 10, "b": 10, "c": 10}


@pytest.mark.parametrize("kind", ["storage", "memory"])
def test_what_may_pass_is_tried_again(fleet, tmp_path, kind):
    assert fleet.call_all("fail", tmp_path, kind, MAX_ATTEMPTS - 1) == [0, 2]


@pytest.mark.parametrize(
    ("kind", "error", "message", "attempts"),
    [
        ("storage", StorageError, "^cannot read s3://bucket/part$", 3),
        ("memory", DataError, "clusters: the worker of parts 1, 3 had too little memory", 3),
        ("refusal", DataError, "^e7 is not finite$", 1),
        ("bug", UnitError, "(?s)^clusters: the worker of parts 1, 3 failed .*no such key", 1),
    ],
)
def test_what_does_not_pass_is_said_with_its_place(fleet, tmp_path, kind, error, message, attempts):
    with pytest.raises(error, match=message):
        fleet.call_all("fail", tmp_path, kind, 99)
    assert len(list(tmp_path.iterdir())) == attempts


# These end the actors that the tests above share.


def test_no_actor_is_without_a_part(fleet):
    for actor in fleet.actors:
        ray.kill(actor)
    with started(FILES[:1], resources.Workers("clusters", 1, 9)) as one:
        assert one.call_all("held", 1) == [[0]]


def test_an_actor_that_dies_is_made_again_and_not_for_ever(tmp_path):
    with started(FILES, TWO) as own:
        times = MAX_ATTEMPTS - 1
        assert own.call_all("fail", tmp_path, "death", times) == [0, times]
        message = "clusters: the worker of parts 1, 3 died 3 times, .*Raise clusters.workers"
        with pytest.raises(DataError, match=message):
            own.call_all("fail", tmp_path, "death", 99)


def test_one_that_dies_while_it_gives_is_no_bug_of_who_takes():
    message = "or one that it took from, died 3 times"
    with started(FILES, TWO) as own, pytest.raises(DataError, match=message):
        own.shuffle(["a", "b"], "give_badly", "take")


LOSES_A_NODE = """
import ray
from pathlib import Path
from ray.cluster_utils import Cluster
from s2l_ray import events
from s2l_ray.distributed import resources
from s2l_ray.distributed.fleet import RayFleet
from tests.distributed.test_fleet import FILES, Holder

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
node = cluster.add_node(num_cpus=2)
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)
fleet = RayFleet(Holder, FILES, resources.Workers("clusters", 3, 3))

def look():
    held = sorted(sum(fleet.call_all("held", 10), []))
    print("of", len(fleet.actors), held, fleet.shuffle(["a", "b"], "give", "take"))

look()
cluster.remove_node(node, allow_graceful=False)
with events.heard_by(lambda told: print(told["text"])):
    look()
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.cluster
def test_workers_of_a_lost_node_start_again_on_those_that_are_left():
    done = subprocess.run(
        [sys.executable, "-c", LOSES_A_NODE],
        cwd=Path(__file__).parents[2],
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after = re.findall(r"^of (\d) (.*)$", done.stdout, re.MULTILINE)
    assert before == ("3", "[0, 10, 20, 30, 40] {'a': 10, 'b': 10}")
    assert after == ("1", before[1])
    assert "clusters: a node was lost; its workers start again elsewhere" in done.stdout
