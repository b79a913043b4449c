"""A unit of work in this process: attempts that count, and those that no longer do."""

import gc
import json
import weakref
from typing import Any, ClassVar

import pytest

from s2l_ray.distributed import resources
from s2l_ray.distributed.failures import MAX_ATTEMPTS
from s2l_ray.distributed.map_units import SHARED, UnitRunner
from s2l_ray.storage.location import Location

ONE = resources.Workers("trajectories", 1, 1)
ROW = {"number": 0, "unit": json.dumps({})}


@pytest.fixture
def attempts(tmp_path) -> Location:
    found = Location.of(tmp_path / "attempts")
    (found / SHARED).write_bytes(b"")
    return found


class Third:
    """Succeeds at every third call, whoever makes it."""

    calls = 0

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        Third.calls += 1
        if Third.calls % MAX_ATTEMPTS:
            raise RuntimeError("no luck")
        return {"calls": Third.calls}


def test_a_unit_whose_result_is_lost_has_all_its_attempts_again(attempts):
    for done in (1, 2):
        row = UnitRunner(Third, {}, ONE, attempts)(ROW)
        assert row["error"] == ""
        assert json.loads(row["result"]) == {"calls": done * MAX_ATTEMPTS}


class Cyclic:
    """Refers to itself, as models do, so that only the garbage collector frees it; fails once."""

    made: ClassVar[list[weakref.ref["Cyclic"]]] = []
    left: ClassVar[list[bool]] = []

    def __init__(self) -> None:
        Cyclic.left = [known() is not None for known in Cyclic.made]
        self.itself = self
        Cyclic.made.append(weakref.ref(self))

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        if len(Cyclic.made) == 1:
            raise RuntimeError("no luck")
        return {}


def test_a_worker_that_failed_is_freed_before_the_next_one_is_made(attempts):
    row = UnitRunner(Cyclic, {}, ONE, attempts)(ROW)
    gc.unfreeze()
    assert row["error"] == "" and row["attempts"] == 2
    assert Cyclic.left == [False]


def test_a_unit_that_was_given_up_by_others_is_not_tried_again(attempts):
    for number in range(MAX_ATTEMPTS):
        (attempts / "0" / f"{number}-dead").write_bytes(b"")
    row = UnitRunner(Third, {}, ONE, attempts)(ROW)
    assert "the worker died 3 times" in row["message"]
