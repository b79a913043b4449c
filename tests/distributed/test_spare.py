"""Work done early: in order, as it falls due, where nobody else wants the resources."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from s2l_ray.distributed import resources
from s2l_ray.distributed.spare import run_on_free_resources

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

TWO = resources.Workers("trajectories", 1, 2)
PATIENCE_SECONDS = 300


class Writer:
    """Leaves a file for every unit, once it may finish."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, unit: dict[str, int]) -> None:
        (self.folder / f"begun-{unit['number']}").touch()
        if unit.get("dies"):
            os._exit(1)
        if unit.get("fails"):
            raise ValueError("no such thing")
        while unit.get("waits") and not (self.folder / "go").exists():
            time.sleep(0.05)
        (self.folder / f"done-{unit['number']}").touch()


def until(reached: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not reached():
        assert time.monotonic() < deadline, what
        threading.Event().wait(0.05)


class Due:
    """How many units may be done, as a test says, and how often that was asked."""

    def __init__(self, number: int | None) -> None:
        self.number, self.looks = number, 0

    def __call__(self) -> int | None:
        self.looks += 1
        return self.number

    def wait_for_looks(self) -> None:
        """Until what a look began, if it began anything, would be seen."""
        until(lambda then=self.looks: self.looks > then + 3, "looks")


def numbers(folder: Path, kind: str = "done") -> list[int]:
    return sorted(int(path.name.removeprefix(f"{kind}-")) for path in folder.glob(f"{kind}-*"))


def num_free() -> int:
    return resources.num_free(resources.Workers("any", 1, 1))


@contextlib.contextmanager
def all_cpus_taken() -> Iterator[None]:
    """As by the workers of a training."""
    group = ray.util.placement_group([{"CPU": 2}])
    ray.get(group.ready(), timeout=PATIENCE_SECONDS)
    try:
        yield
    finally:
        ray.util.remove_placement_group(group)


@pytest.fixture(autouse=True)
def everything_is_free(ray_cluster):
    until(lambda: num_free() == 2, "another test holds CPUs")


def test_units_are_done_when_they_are_due_and_nobody_stays_who_has_nothing_to_do(tmp_path):
    units = [{"number": number} for number in range(5)]
    due = Due(0)
    with run_on_free_resources(Writer, units, due, TWO, folder=tmp_path):
        for due.number in (2, 5):
            until(lambda: len(numbers(tmp_path)) == due.number, "units that are due")
            until(lambda: num_free() == 2, "actors without work")
            assert numbers(tmp_path) == list(range(due.number))


def test_what_others_hold_is_not_touched_and_what_others_want_is_given_back(tmp_path):
    units = [{"number": number, "waits": number > 0} for number in range(3)]
    due = Due(None)
    with run_on_free_resources(Writer, units, due, TWO, folder=tmp_path):
        with all_cpus_taken():
            due.number = 3
            due.wait_for_looks()
            assert not numbers(tmp_path, "begun")
        until(lambda: numbers(tmp_path, "begun") == [0, 1, 2], "two actors")
        assert numbers(tmp_path) == [0]
        due.number = None
        with all_cpus_taken():  # would wait for ever beside actors that hold a CPU
            assert numbers(tmp_path) == [0]
        for path in tmp_path.glob("begun-*"):
            path.unlink()
        (tmp_path / "go").touch()
        due.number = 3
        until(lambda: numbers(tmp_path) == [0, 1, 2], "units that were under way")
        assert numbers(tmp_path, "begun") == [1, 2]


def test_a_unit_that_fails_is_left_out_and_after_three_of_them_no_more_is_tried(tmp_path):
    units = [{"number": 0, "dies": 1}, {"number": 1}, {"number": 2, "fails": 1}, {"number": 3}]
    units += [{"number": 4, "dies": 1}, {"number": 5}]
    one = resources.Workers("trajectories", 1, 1)
    due = Due(len(units))
    with run_on_free_resources(Writer, units, due, one, folder=tmp_path):
        until(lambda: numbers(tmp_path, "begun") == [0, 1, 2, 3, 4], "all up to the third failure")
        until(lambda: num_free() == 2, "the actor that failed")
        due.wait_for_looks()
    assert numbers(tmp_path) == [1, 3]


def test_at_the_end_nobody_is_left_at_work(tmp_path):
    units = [{"number": number, "waits": 1} for number in range(2)]
    with run_on_free_resources(Writer, units, lambda: 2, TWO, folder=tmp_path):
        until(lambda: numbers(tmp_path, "begun") == [0, 1], "two actors")
    until(lambda: num_free() == 2, "actors that were at work")
    assert not numbers(tmp_path)
