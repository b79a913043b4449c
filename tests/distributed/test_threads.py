"""Threads of this process do what actors do, where the work is small: same results, same errors."""

import contextlib
import gc
import os
import threading
from typing import Any

import pytest

from s2l_ray import events
from s2l_ray.distributed import resources
from s2l_ray.distributed.failures import MAX_ATTEMPTS
from s2l_ray.distributed.map_units import map_units
from s2l_ray.distributed.threads import ThreadFleet, finished, start_fleet
from s2l_ray.errors import DataError, StorageError
from tests.distributed import test_map_units
from tests.distributed.test_fleet import FILES, Holder
from tests.distributed.test_map_units import Flaky, Forgetful, Greedy, units

attempts = test_map_units.attempts

ONE = resources.Workers("trajectories", 1, 1, advice=test_map_units.ADVICE, here=True)
TWO = resources.Workers("clusters", 1, 2, advice="Raise clusters.workers.", here=True)


def test_a_unit_that_fails_is_tried_again_by_a_new_worker(attempts, tmp_path):
    made = str(tmp_path / "made")
    told: list[events.Event] = []
    with events.heard_by(told.append):
        results = list(map_units(Flaky, units(2), ONE, attempts, made=made))
    assert results == [{"times": 3}]
    assert attempts.files() == [] and os.path.getsize(made) == 3
    (retried,) = told
    assert (retried["event"], retried["attempts"]) == ("retried", 3)
    assert retried["unit"].startswith('{"number": 2') and "no luck 2" in retried["error"]


def test_a_unit_that_storage_fails_is_tried_again(attempts):
    assert list(map_units(Forgetful, units(2), ONE, attempts)) == [{"failed": 2}]
    with pytest.raises(StorageError, match="cannot read part 3"):
        list(map_units(Forgetful, units(3), ONE, attempts))


@pytest.mark.parametrize("allocator", [0, 1])
def test_too_little_memory_is_for_the_user_to_mend(attempts, allocator):
    with pytest.raises(DataError, match=r"memory did not suffice for unit .*Lower trajectories"):
        list(map_units(Greedy, units(allocator), ONE, attempts))


class Alone:
    """Notes whether two are being made at the same time, which each gives the other time for."""

    both = threading.Barrier(2)
    met = False

    def __init__(self) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            Alone.both.wait(timeout=0.2)
            Alone.met = True

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        return {"forgotten": gc.get_freeze_count()}


def test_workers_are_made_one_after_the_other_and_what_is_loaded_is_not_searched(attempts):
    results = list(map_units(Alone, units(1, 2), TWO, attempts))

    assert not Alone.met
    assert all(result["forgotten"] for result in results)
    assert gc.get_freeze_count() == 0


def test_a_fleet_holds_every_part_once_and_reduces_every_name_once():
    fleet = start_fleet(Holder, FILES, TWO)

    assert isinstance(fleet, ThreadFleet)
    assert fleet.call_all("held", 10) == [[0, 20, 40], [10, 30]]
    assert fleet.shuffle(["c", "a", "b"], "give", "take") == {"a": 10, "b": 10, "c": 10}


def test_a_fleet_asks_storage_again(tmp_path):
    fleet = start_fleet(Holder, FILES, TWO)
    assert fleet.call_all("fail", tmp_path, "storage", MAX_ATTEMPTS - 1) == [0, MAX_ATTEMPTS - 1]


@pytest.mark.parametrize(
    ("kind", "error", "message", "num_attempts"),
    [
        ("storage", StorageError, "^cannot read s3://bucket/part$", MAX_ATTEMPTS),
        ("memory", DataError, "^clusters: the worker of parts 1, 3 had too little .* Raise", 1),
        ("refusal", DataError, "^e7 is not finite$", 1),
        ("bug", KeyError, "no such key", 1),
    ],
)
def test_what_does_not_pass_is_said_with_its_place(tmp_path, kind, error, message, num_attempts):
    fleet = start_fleet(Holder, FILES, TWO)
    with pytest.raises(error, match=message):
        fleet.call_all("fail", tmp_path, kind, 99)
    assert len(list(tmp_path.iterdir())) == num_attempts


@pytest.mark.parametrize(
    ("num_bytes", "fits"), [(resources.MAX_BYTES_HERE, True), (resources.MAX_BYTES_HERE + 1, False)]
)
def test_work_is_done_here_up_to_a_size(num_bytes, fits):
    assert resources.fits_here(lambda: num_bytes) is fits


class Counted(list):
    """Rows that count how many of them were taken."""

    taken = 0

    def __iter__(self):
        for row in super().__iter__():
            self.taken += 1
            yield row


class Same:
    def __call__(self, row):
        return row


def test_units_are_not_begun_long_before_a_thread_is_free_for_them():
    rows = Counted({"number": number} for number in range(1000))
    found = finished(Same, rows, TWO, {})
    for number in range(10):
        next(found)
        assert rows.taken <= number + 1 + 2 * 2 + 2
    assert sorted(row["number"] for row in finished(Same, rows, TWO, {})) == list(range(1000))
