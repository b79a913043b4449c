"""The state of a step says what is done, how fast, what it waits for, and how long it will take."""

import pytest

from s2l_ray import events, progress
from s2l_ray.progress import LABEL_WIDTH, Progress, State, current, duration, label_column
from tests.clock import Clock


@pytest.fixture
def clock(monkeypatch) -> Clock:
    fixed = Clock()
    monkeypatch.setattr(progress, "time", fixed)
    return fixed


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (0.4, "0:00"),
        (-3, "0:00"),
        (59.6, "1:00"),
        (75, "1:15"),
        (3599, "59:59"),
        (3661, "1:01:01"),
        (360_000, "100:00:00"),
    ],
)
def test_a_duration_is_hours_minutes_and_seconds(seconds, text):
    assert duration(seconds) == text


def test_a_state_has_count_rate_and_time_left(clock):
    step = Progress("trajectories")
    step.start(4_000)
    clock.now += 10
    step.update(1_000, tokens=50_000)

    text = "1,000 of 4,000 rows   5,000 tokens/s   0:30 left"
    assert step.state().line() == f"  {'trajectories':<{LABEL_WIDTH}}{text}"


def test_work_of_an_earlier_run_counts_as_done_but_not_as_speed(clock):
    step = Progress("trajectories")
    step.start(1_000, done=900)
    clock.now += 10
    step.update(50)

    assert step.state().text() == "950 of 1,000 rows   0:10 left"


def test_the_first_unit_tells_no_time_left_but_the_time_so_far(clock):
    step = Progress("trajectories")
    step.start(6, "units")
    texts = []
    for _ in range(2):
        clock.now += 10
        step.update(1)
        texts.append(step.state().text())

    assert texts == ["1 of 6 units   0:10 so far", "2 of 6 units   0:40 left"]


def test_a_second_count_forgets_the_first(clock):
    step = Progress("prepare")
    step.start(2, "files read")
    step.update(2, tokens=7)
    clock.now += 10
    step.start(100)
    clock.now += 10
    step.update(50)

    assert step.state().text() == "50 of 100 rows   0:10 left"


def test_without_a_total_no_time_is_guessed(clock):
    step = Progress("reference")
    clock.now += 11
    step.update(7, note="loss 2.3")

    assert step.state().text() == "7 rows   0:11 so far   loss 2.3"


def test_what_a_step_waits_for_is_said_until_a_unit_is_finished(clock):
    step = Progress("evaluation")
    step.doing("reading rows")
    clock.now += 4
    assert step.state().text() == "reading rows   0:04 so far"

    step.start(9)
    step.doing("loading the model")
    step.workers = (1, 2)
    assert step.state().text() == "0 of 9 rows   starting workers (1 of 2)   0:04 so far"
    step.workers = (2, 2)
    assert step.state().text() == "0 of 9 rows   loading the model   0:04 so far"
    step.update(0)
    assert step.state().doing == "loading the model"
    step.update(1)
    assert step.state().text() == "1 of 9 rows   0:04 so far"


def test_workers_start_also_where_an_earlier_run_has_done_units(clock):
    step = Progress("comparison")
    step.start(15, "trials", done=7)
    step.doing("loading libraries")
    step.workers = (0, 2)
    assert step.state().text().startswith("7 of 15 trials   starting workers (0 of 2)")
    step.workers = (2, 2)
    assert step.state().doing == "loading libraries"
    step.workers = (2, 3)
    step.update(1)
    assert step.state().doing == ""


def test_while_work_is_paused_there_is_no_count(clock):
    step = Progress("reference")
    step.start(80, "steps")
    step.update(5, tokens=100)
    step.pause()

    assert step.reached is None
    assert step.state().text() == "0:00 so far"


@pytest.mark.parametrize("label", ["prepare", "x" * (LABEL_WIDTH - 2), "x" * 60])
def test_a_name_of_any_length_stands_apart_from_what_follows(label):
    column = label_column(label)
    assert column.startswith(f"{label}  ") and len(column) == max(LABEL_WIDTH, len(label) + 2)
    assert State(label, 0.0, doing="waiting").line().startswith(f"  {column}waiting")


def test_the_current_step_is_the_innermost_one_that_is_open():
    assert current() is None
    with Progress("comparison") as outer:
        with Progress("target of a trial") as inner:
            progress.doing("loading")
            assert current() is inner
        assert current() is outer and outer.state().doing == ""
    assert current() is None


@pytest.mark.parametrize(
    ("error", "event"),
    [(None, "end"), (ValueError("no such\nfile"), "failed"), (KeyboardInterrupt(), "interrupted")],
)
def test_begin_and_end_of_a_step_are_told(error, event):
    told: list[events.Event] = []
    with events.heard_by(told.append):
        try:
            with Progress("prepare"):
                if error is not None:
                    raise error
        except (ValueError, KeyboardInterrupt):
            pass

    assert [(item["event"], item["stage"]) for item in told] == [
        ("begin", "prepare"),
        (event, "prepare"),
    ]
    assert told[1].get("error") == ("no such file" if event == "failed" else None)


def test_a_state_as_json_has_what_is_known_and_no_more(clock):
    step = Progress("reference")
    step.start(80, "steps")
    clock.now += 2
    step.update(3, tokens=101)

    assert step.state().as_json() == {
        "stage": "reference",
        "seconds": 2.0,
        "done": 3,
        "total": 80,
        "unit": "steps",
        "tokens_per_second": 50.5,
        "seconds_left": 51.3,
    }
