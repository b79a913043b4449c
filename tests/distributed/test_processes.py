"""Processes of this machine do what actors do, where no cluster was joined."""

import multiprocessing
import os
import pickle
import subprocess
import sys
from multiprocessing import spawn
from pathlib import Path
from typing import Any

import pytest

from s2l_ray import events
from s2l_ray.distributed import resources
from s2l_ray.distributed.map_units import map_units
from s2l_ray.distributed.processes import _without_main_module, finished
from s2l_ray.errors import DataError, UnitError
from tests.distributed import test_map_units
from tests.distributed.test_map_units import Doubler, Dying, Unlucky, units

attempts = test_map_units.attempts

LIBRARIES = ("tests.distributed.test_map_units",)
ONE = resources.Workers(
    "trajectories", 1, 1, advice=test_map_units.ADVICE, here=True, preload=LIBRARIES
)
TWO = resources.Workers("data", 1, 2, here=True, preload=LIBRARIES)


@pytest.fixture(autouse=True)
def no_process_left():
    yield
    assert multiprocessing.active_children() == []


class DiesOnce:
    """Its first process dies, and so does no other."""

    def __init__(self, died: Path) -> None:
        self.died = died

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        if unit["number"] == 1 and not self.died.exists():
            self.died.touch()
            os._exit(1)
        return unit


def test_the_unit_of_a_process_that_died_is_done_by_another(attempts, tmp_path):
    told: list[events.Event] = []
    with events.heard_by(told.append):
        found = list(map_units(DiesOnce, units(*range(4)), TWO, attempts, died=tmp_path / "died"))
    assert sorted(unit["number"] for unit in found) == [0, 1, 2, 3]
    (retried,) = told
    assert (retried["event"], retried["error"]) == ("retried", "its worker died")


@pytest.mark.parametrize(("deadly", "last"), [(1, 3), (3, 2)])
def test_attempts_of_processes_that_died_count_with_those_that_failed(
    attempts, tmp_path, deadly, last
):
    made = str(tmp_path / "made")
    with pytest.raises(UnitError, match=f"no luck {last}"):
        list(map_units(Unlucky, units(1), ONE, attempts, made=made, deadly=deadly))
    assert os.path.getsize(made) == 3


def test_a_unit_that_kills_its_processes_is_given_up_and_named(attempts):
    with pytest.raises(DataError, match=r"trajectories: the worker died 3 times in unit .*13"):
        list(map_units(Dying, units(1, 13), ONE, attempts))


class StillBorn:
    """A runner that ends its process."""

    def __init__(self) -> None:
        os._exit(7)


def test_processes_that_never_start_end_the_stage():
    with pytest.raises(UnitError, match=r"data: worker processes cannot start .*exit code 7"):
        list(finished(StillBorn, [{"number": 0}], TWO, {}))


def test_a_caller_that_stops_ends_all_processes(attempts):
    results = map_units(Doubler, units(*range(50)), TWO, attempts)
    next(results)
    assert multiprocessing.active_children()
    results.close()
    assert multiprocessing.active_children() == []


SCRIPT = """
from s2l_ray.distributed import resources
from s2l_ray.distributed.map_units import map_units
from s2l_ray.storage.location import Location
from tests.distributed.test_map_units import Doubler, units

print("begun")
wanted = resources.Workers("data", 1, 2, here=True, preload=("tests.distributed.test_map_units",))
print(len(list(map_units(Doubler, units(1, 2, 3), wanted, Location.of("attempts")))))
"""


def test_neither_the_script_nor_files_beside_it_are_run_by_the_processes(tmp_path):
    (tmp_path / "mine.py").write_text(SCRIPT)
    here = tmp_path / "here"
    here.mkdir()
    for library in ("pyarrow", "numpy"):
        (here / f"{library}.py").write_text("raise RuntimeError('not the library')")
    root = str(Path(__file__).parent.parent.parent)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "mine.py")],
        cwd=here,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "begun\n3\n"), done.stderr
    assert done.stderr == ""


class Environment:
    """It tells the environment of its process."""

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        return {**unit, **os.environ}


def test_processes_have_the_environment_that_the_program_has_now(attempts, monkeypatch):
    found = []
    for key in ("wrong", "right"):
        monkeypatch.setenv("MY_KEY", key)
        (made,) = map_units(Environment, units(1), ONE, attempts)
        found.append((made["MY_KEY"], made["OMP_NUM_THREADS"]))
    assert found == [("wrong", "1"), ("right", "1")]


class Waits:
    """It tells its process id, and then waits for a process that never ends."""

    def __init__(self, told: str) -> None:
        self.told = told

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        Path(self.told).write_text(str(os.getpid()))
        os.read(os.pipe()[0], 1)
        return unit


KILLED = """
import os, sys, threading
from s2l_ray.distributed.processes import _without_main_module, finished
from tests.distributed.test_processes import ONE, Waits

os.mkfifo(sys.argv[1])

def die():
    with open(sys.argv[1]) as told:
        print(told.read(), flush=True)
    os._exit(9)

threading.Thread(target=die).start()
list(finished(Waits, [{"number": 0}], ONE, {"told": sys.argv[1]}))
"""


def test_a_process_ends_with_a_program_that_is_killed(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "told")], stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        # To its end: the worker has the pipe as well, so it has closed it, and that is its death.
        worker, end = program.stdout.readline(), program.stdout.read()
    assert program.returncode == 9 and int(worker) > 0 and end == ""


def test_a_process_that_cannot_start_is_a_message(tmp_path):
    there = tmp_path / ("a" * 120)
    there.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", "from tests.distributed.test_processes import *\n"
         "list(finished(Environment, [{'number': 0}], ONE, {}))"],
        env={**os.environ, "TMPDIR": str(there)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "ConfigError: trajectories: no worker process starts on this machine" in done.stderr


def test_there_is_a_process_for_each_cpu_that_this_one_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5}, raising=False)
    wanted = resources.processes("data", "json", advice="Buy memory.")
    assert (wanted.max, wanted.preload, wanted.advice) == (1, ("json",), "Buy memory.")


def test_other_threads_find_what_the_script_holds_while_a_process_starts(monkeypatch):
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "Mine", type("Mine", (), {"__module__": "__main__"}), raising=False)
    with _without_main_module():
        assert (
            spawn.get_preparation_data("a process")
            .keys()
            .isdisjoint(["init_main_from_name", "init_main_from_path"])
        )
        assert pickle.loads(pickle.dumps(main.Mine)) is main.Mine  # noqa: S301
    assert sys.modules["__main__"] is main
