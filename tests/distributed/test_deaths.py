"""When a step is given up because its workers die: only while they do, and it gets nowhere."""

from collections.abc import Callable, Collection
from types import SimpleNamespace

import pytest

from s2l_ray.distributed import worker_deaths
from s2l_ray.distributed.worker_deaths import Deaths, Worker
from s2l_ray.progress import Progress
from tests.clock import Clock

SECONDS_PER_LOOK = 5


@pytest.fixture
def clock(monkeypatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(worker_deaths, "time", found)
    return found


def ended(
    clock: Clock,
    deaths: Collection[int],
    *,
    living: Callable[[int], Collection[Worker]] = lambda second: (),
    reached: Callable[[int], int] = lambda second: 0,
    until: int = 300,
    first: int = 0,
) -> tuple[int, int] | None:
    """The second at which a step ends whose workers die so, and the death that ends it, if any.

    Args:
        deaths: the seconds of deaths, each of another worker.
        living: gives the workers that live at a second.
        reached: gives the units that are done by then.
        until: the last second.
        first: deaths before this second are of steps before.
    """
    watch, step, start = Deaths(), Progress("a step"), clock.now
    for second in range(first, until, SECONDS_PER_LOOK):
        clock.now, step.reached = start + second, reached(second)
        dead = {
            str(time).encode(): SimpleNamespace(end_time_ms=1000 * time)
            for time in deaths
            if time <= second
        }
        if last := watch.look(step, living(second), lambda dead=dead: dead):
            return second, last.end_time_ms // 1000
    return None


@pytest.mark.parametrize(("every", "second"), [(1, 40), (5, 40), (12, 65), (29, 150)])
def test_a_step_whose_workers_die_for_ever_ends_with_the_last_of_them(clock, every, second):
    assert ended(clock, range(1, 300, every)) == (second, max(range(1, second + 1, every)))


def test_workers_that_live_for_seconds_and_die_end_a_step(clock):
    # Each is another process: one that lives from look to look would be a step forward.
    living = lambda second: {("actor", second // 20)}  # noqa: E731
    assert ended(clock, range(1, 300, 20), living=living) == (105, 101)


@pytest.mark.parametrize(
    "case",
    [
        {"deaths": [5, 10, 15, 20]},
        {"deaths": [6, 11, 16, 21, 26], "until": 300},
        {"deaths": range(5, 300, 5), "living": lambda second: {("other", 1)}},
        {"deaths": range(5, 300, 5), "reached": lambda second: second // 30},
        {"deaths": [16, 36, 56, 76]},
        {"deaths": range(1, 200), "first": 200},
    ],
    ids=[
        "few, and then none",
        "a spurt that is over",
        "beside one that lives",
        "beside units that are done",
        "as often as a training is tried",
        "of steps before",
    ],
)
def test_a_step_goes_on_as_long_as_there_is_hope(clock, case):
    assert ended(clock, **case) is None


def test_many_that_die_together_are_one_death(clock):
    assert ended(clock, [*range(100, 105), *range(110, 115), *range(120, 125)]) is None


def test_a_death_on_a_node_that_is_gone_meanwhile_is_not_looked_for(clock):
    watch, step = Deaths(), Progress("a step")
    step.reached = 0
    worker = SimpleNamespace(end_time_ms=1)
    tables = [{}, *({str(n).encode(): worker} for n in range(9)), {}]
    found = []
    for table in tables:
        clock.now += SECONDS_PER_LOOK
        found.append(watch.look(step, (), lambda table=table: table))
    assert found[-1] is None and found[-2] is worker
