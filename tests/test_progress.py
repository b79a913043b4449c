"""The progress line says what is done, how fast, and how long the rest will take."""

import re

import pytest

from s2l_ray import progress
from s2l_ray.progress import LABEL_WIDTH, Progress, duration


class Clock:
    """The time that a test says it is."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


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


def test_a_line_has_count_rate_and_time_left(clock, capsys):
    with Progress("trajectories") as shown:
        shown.start(4_000)
        clock.now += 10
        shown.update(1_000, tokens=50_000)

    assert capsys.readouterr().err.split() == (
        ["trajectories", "1,000", "of", "4,000", "rows", "5,000", "tokens/s", "0:30", "left"]
    )


def test_in_a_log_there_is_a_line_every_ten_seconds(clock, capsys):
    with Progress("clusters") as shown:
        shown.start(25, "sweeps")
        for _ in range(25):
            clock.now += 1
            shown.update(1)

    lines = capsys.readouterr().err.splitlines()
    assert [re.search(r"\d+ of 25 sweeps", line)[0] for line in lines] == [
        "10 of 25 sweeps",
        "20 of 25 sweeps",
    ]


def test_a_short_stage_says_nothing(clock, capsys):
    with Progress("prepare") as shown:
        shown.start(3)
        clock.now += 9.9
        shown.update(3)

    assert capsys.readouterr().err == ""


def test_work_of_an_earlier_run_counts_as_done_but_not_as_speed(clock, capsys):
    with Progress("trajectories") as shown:
        shown.start(1_000, done=900)
        clock.now += 10
        shown.update(50)

    assert "950 of 1,000 rows   0:10 left" in capsys.readouterr().err


def test_the_first_unit_tells_no_time(clock, capsys):
    with Progress("trajectories") as shown:
        shown.start(6, "units")
        for _ in range(2):
            clock.now += 10
            shown.update(1)

    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("1 of 6 units") and second.endswith("2 of 6 units   0:40 left")


def test_a_second_count_forgets_the_first(clock, capsys):
    with Progress("prepare") as shown:
        shown.start(2, "files read")
        shown.update(2, tokens=7)
        clock.now += 10
        shown.start(100)
        clock.now += 10
        shown.update(50)

    assert capsys.readouterr().err.split() == ["prepare", "50", "of", "100", "rows", "0:10", "left"]


def test_without_a_total_or_progress_no_time_is_guessed(clock, capsys):
    with Progress("reference") as shown:
        clock.now += 11
        shown.update(7, note="loss 2.3")
        shown.start(5)
        clock.now += 11
        shown.update(0)

    assert capsys.readouterr().err.splitlines() == [
        f"  {'reference':<{LABEL_WIDTH}}7 rows   loss 2.3",
        f"  {'reference':<{LABEL_WIDTH}}0 of 5 rows",
    ]
