"""A unit of work in this process: attempts that count, and those that no longer do."""

import json
from typing import Any

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


def test_a_unit_that_was_given_up_by_others_is_not_tried_again(attempts):
    for number in range(MAX_ATTEMPTS):
        (attempts / "0" / f"{number}-dead").write_bytes(b"")
    row = UnitRunner(Third, {}, ONE, attempts)(ROW)
    assert "the worker died 3 times" in row["message"]
