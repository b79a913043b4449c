"""Threads and processes of this machine give what actors give: results, refusals and bugs."""

import pytest

from s2l_ray.distributed.map_units import map_units
from s2l_ray.errors import DataError, ModelError, UnitError, UserError
from tests.distributed import test_map_units, test_processes, test_threads
from tests.distributed.test_map_units import Broken, Doubler, units

attempts = test_map_units.attempts
no_process_left = test_processes.no_process_left

BOTH = {"argvalues": [test_threads, test_processes], "ids": ["threads", "processes"]}


@pytest.mark.parametrize("num_workers", ["ONE", "TWO"])
@pytest.mark.parametrize("here", **BOTH)
def test_every_unit_has_one_result_however_many_workers(attempts, here, num_workers):
    found = list(map_units(Doubler, units(*range(5)), getattr(here, num_workers), attempts))

    assert sorted(result["twice"] for result in found) == [0, 2, 4, 6, 8]
    assert found[0]["name"] == ["ü", None] and attempts.files() == []


@pytest.mark.parametrize(
    ("refuse", "numbers", "kind", "message"),
    [
        ("", (1, -1, 2, 3), DataError, "unit -1: first line\nsecond line, with {braces}"),
        ("no weights in /model", (1,), ModelError, "no weights in /model"),
    ],
    ids=["at a unit", "while it starts"],
)
@pytest.mark.parametrize("here", **BOTH)
def test_what_a_worker_refuses_is_raised_as_it_was(attempts, here, refuse, numbers, kind, message):
    with pytest.raises(UserError) as raised:
        list(map_units(Doubler, units(*numbers), here.TWO, attempts, refuse=refuse))
    assert type(raised.value) is kind
    assert str(raised.value) == message


@pytest.mark.parametrize("here", **BOTH)
def test_a_bug_in_a_worker_names_the_unit_and_the_cause_and_is_no_user_error(attempts, here):
    with pytest.raises(UnitError, match="failed in 3 attempts") as raised:
        list(map_units(Broken, units(1), here.ONE, attempts))
    assert not isinstance(raised.value, UserError)
    text = str(raised.value)
    assert text.startswith('trajectories: unit {"number": 1')
    assert text.rstrip().endswith("KeyError: 'no such key'") and "in __call__" in text
