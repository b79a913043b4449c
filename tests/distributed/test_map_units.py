"""Units of work on a pool of actors: each has one result, is tried again, or says why not."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from s2l_ray.distributed import failures, resources
from s2l_ray.distributed.map_units import map_units
from s2l_ray.errors import DataError, ModelError, StorageError, UnitError, UserError
from s2l_ray.storage.location import Location


class Doubler:
    """Fails as a worker does: while it starts, or at one of its units."""

    def __init__(self, refuse: str = "") -> None:
        if refuse:
            raise ModelError(refuse)

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        if unit["number"] < 0:
            raise DataError(f"unit {unit['number']}: first line\nsecond line, with {{braces}}")
        return {"twice": 2 * unit["number"], "name": unit["name"]}


class Broken:
    """Has a bug."""

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        return {"missing": unit["no such key"]}


class Flaky:
    """Fails as often as its unit says, each time in a worker that was made anew."""

    def __init__(self, made: str) -> None:
        with open(made, "a") as counted:
            counted.write("x")
        self.times = os.path.getsize(made)

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        if self.times <= unit["number"]:
            raise RuntimeError(f"no luck {self.times}")
        return {"times": self.times}


class Greedy:
    """Asks for more memory than there is."""

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        if unit["number"]:
            import torch  # at the top it would be imported by the workers of all other tests

            torch.empty(1 << 60, dtype=torch.uint8)
        return {"bytes": len(bytearray(1 << 60))}


class Unlucky:
    """Is killed in its first attempt, or in its last, and fails in the others."""

    def __init__(self, made: str, deadly: int) -> None:
        with open(made, "a") as counted:
            counted.write("x")
        self.times, self.deadly = os.path.getsize(made), deadly

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        if self.times == self.deadly:
            os._exit(1)
        raise RuntimeError(f"no luck {self.times}")


class Dying:
    """Is killed by one of its units, as for want of memory."""

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        if unit["number"] == 13:
            os._exit(1)
        return unit


class Forgetful:
    """Cannot read its unit as often as the unit says."""

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        if self.failed < unit["number"]:
            self.failed += 1
            raise StorageError(f"cannot read part {self.failed}")
        return {"failed": self.failed}


ADVICE = "Lower trajectories.tokens_per_batch."
ONE = resources.Workers("trajectories", 1, 1, advice=ADVICE)


class Waiting:
    """Its unit 0 ends when the other worker is gone, and before that does not keep it from work."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        if unit["number"]:
            (self.folder / str(unit["number"])).touch()
            return unit
        import ray

        deadline = time.monotonic() + 300
        while len(list(self.folder.iterdir())) < 5 or ray.available_resources().get("CPU", 0) < 1:
            assert time.monotonic() < deadline, "the other worker stays"
            time.sleep(0.1)
        return unit


def units(*numbers: int) -> list[dict[str, Any]]:
    return [{"number": number, "name": ["ü", None]} for number in numbers]


@pytest.fixture
def attempts(tmp_path) -> Location:
    return Location.of(tmp_path / "attempts")


@pytest.fixture
def nothing_reserved(ray_cluster):
    """What a program has asked of the cluster stands for three minutes after it was killed."""
    import ray
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator

    ray.kill(default_autoscaling_coordinator.get_or_create_autoscaling_coordinator())


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
class TestOnTwoCpus:
    @pytest.mark.usefixtures("nothing_reserved")
    def test_no_unit_waits_for_a_busy_worker_and_one_without_work_is_let_go(
        self, attempts, tmp_path
    ):
        pool, seen = resources.Workers("trajectories", 1, 2), tmp_path / "seen"
        seen.mkdir()
        found = list(map_units(Waiting, units(*range(6)), pool, attempts, folder=seen))
        assert [result["number"] for result in found][-1] == 0 and len(found) == 6

    def test_every_unit_has_one_result_whatever_the_pool(self, attempts):
        for pool in (ONE, resources.Workers("trajectories", 1, 2)):
            found = list(map_units(Doubler, units(*range(5)), pool, attempts))

            assert sorted(result["twice"] for result in found) == [0, 2, 4, 6, 8]
            assert found[0]["name"] == ["ü", None]

    def test_nothing_to_do_starts_nothing(self, attempts):
        assert list(map_units(Doubler, [], ONE, attempts, refuse="never made")) == []

    def test_what_a_worker_refuses_is_raised_as_it_was(self, attempts):
        with pytest.raises(UserError) as raised:
            list(map_units(Doubler, units(1, -1), ONE, attempts))
        assert type(raised.value) is DataError
        assert str(raised.value) == "unit -1: first line\nsecond line, with {braces}"

    @pytest.mark.parametrize(("deadly", "last"), [(1, 3), (3, 2)])
    def test_attempts_of_workers_that_died_count_with_those_that_failed(
        self, attempts, tmp_path, deadly, last
    ):
        made = str(tmp_path / "made")
        with pytest.raises(UnitError, match=f"no luck {last}"):
            list(map_units(Unlucky, units(1), ONE, attempts, made=made, deadly=deadly))
        assert os.path.getsize(made) == 3

    def test_a_unit_that_kills_its_workers_is_given_up_and_named(self, attempts):
        with pytest.raises(DataError, match=r"trajectories: the worker died 3 times in unit .*13"):
            list(map_units(Dying, units(1, 13), ONE, attempts))

    def test_a_unit_that_storage_fails_is_tried_again(self, attempts):
        results = map_units(Forgetful, units(2), ONE, attempts)
        assert list(results) == [{"failed": 2}]
        with pytest.raises(StorageError, match="cannot read part 3"):
            list(map_units(Forgetful, units(3), ONE, attempts))

    def test_what_rays_memory_monitor_ends_is_for_the_user_to_mend(self):
        from ray.exceptions import OutOfMemoryError

        message = "clusters: it had too little memory .*Raise clusters.workers"
        with (
            pytest.raises(DataError, match=message),
            failures.user_errors("clusters: it", "Raise clusters.workers."),
        ):
            raise OutOfMemoryError("Task was killed due to the node running low on memory.")
