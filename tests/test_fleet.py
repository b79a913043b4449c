"""Actors that hold parts: what they return, hand over, refuse, and survive."""

import os
from pathlib import Path

import pytest
import ray

from s2l_ray import runtime
from s2l_ray.errors import DataError, StorageError, UnitError
from s2l_ray.fleet import RayFleet
from s2l_ray.storage import Location

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

FILES = [Location(f"/pool/part-{number}") for number in range(5)]
TWO = runtime.Workers("clusters", 2, 2)


class Holder:
    """Knows the numbers of its parts, and a folder in which it counts its attempts."""

    def __init__(self, files: dict[int, Location], folder: Path) -> None:
        self.parts, self.folder = sorted(files), folder

    def held(self, factor: int) -> list[int]:
        return [factor * part for part in self.parts]

    def give(self, names: list[str]) -> dict[str, int]:
        return {name: sum(self.parts) for name in names}

    def take(self, *given: dict[str, int]) -> dict[str, int]:
        return {name: sum(item[name] for item in given) for name in given[0]}

    def fail(self, kind: str, times: int) -> int:
        """Fails so often on the actor that has part 1; the others have nothing to do."""
        if 1 not in self.parts:
            return 0
        attempt = len(list(self.folder.iterdir()))
        (self.folder / str(attempt)).touch()
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


@pytest.fixture
def fleet(tmp_path):
    started = RayFleet.start(Holder, FILES, TWO, tmp_path)
    yield started
    for actor in started.actors:
        ray.kill(actor)


def test_every_part_is_held_once(fleet):
    assert fleet.everywhere("held", 10) == [[0, 20, 40], [10, 30]]


def test_no_actor_is_without_a_part(tmp_path):
    one = RayFleet.start(Holder, FILES[:1], runtime.Workers("clusters", 1, 9), tmp_path)
    assert one.everywhere("held", 1) == [[0]]
    ray.kill(one.actors[0])


def test_what_all_give_is_taken_once_by_name(fleet):
    names = ["c", "a", "b"]
    assert fleet.exchange(names, "give", "take") == {"a": 10, "b": 10, "c": 10}


@pytest.mark.parametrize("kind", ["death", "storage", "memory"])
def test_what_may_pass_is_tried_again(fleet, kind):
    assert fleet.everywhere("fail", kind, runtime.MAX_ATTEMPTS - 1) == [0, 2]


@pytest.mark.parametrize(
    ("kind", "error", "message", "attempts"),
    [
        ("death", DataError, "clusters: the worker of parts 1, 3 died 3 times, most", 3),
        ("storage", StorageError, "^cannot read s3://bucket/part$", 3),
        ("memory", DataError, "clusters: the worker of parts 1, 3: the memory did not suffice", 3),
        ("refusal", DataError, "^e7 is not finite$", 1),
        ("bug", UnitError, "(?s)^clusters: the worker of parts 1, 3 failed .*no such key", 1),
    ],
)
def test_what_does_not_pass_is_said_with_its_place(fleet, tmp_path, kind, error, message, attempts):
    with pytest.raises(error, match=message):
        fleet.everywhere("fail", kind, 99)
    assert len(list(tmp_path.iterdir())) == attempts
