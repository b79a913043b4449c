"""Steps, checkpoints and learning rates; expected values worked out by hand."""

import pytest

from s2l_ray.config.training import EverySteps, Training
from s2l_ray.errors import ConfigError
from s2l_ray.training import schedule


@pytest.mark.parametrize(
    ("total", "checkpoints", "expected"),
    [
        (12, 4, [3, 6, 9, 12]),
        (10, 4, [2, 5, 8, 10]),
        (3, 3, [1, 2, 3]),
        (7, EverySteps(every=3), [3, 6]),
        (6141, EverySteps(every=500), list(range(500, 6001, 500))),
        (6, EverySteps(every=3), [3, 6]),
    ],
)
def test_checkpoints_are_fractions_of_training_or_multiples(total, checkpoints, expected):
    assert schedule.checkpoint_steps(total, checkpoints) == expected


def test_fewer_steps_than_checkpoints_are_refused():
    with pytest.raises(ConfigError, match=r"12 checkpoints cannot come from 5 optimizer steps"):
        schedule.checkpoint_steps(5, 12)


@pytest.mark.parametrize(
    ("changes", "expected"), [({}, 9), ({"epochs": 0.5}, 2), ({"max_steps": 5}, 5)]
)
def test_steps_follow_from_rows_and_batch_size(changes, expected):
    assert schedule.num_steps(19, Training(batch_size=7, **changes)) == expected


@pytest.mark.parametrize(
    ("changes", "expected"), [({}, 57), ({"epochs": 0.5}, 14), ({"max_steps": 5}, 33)]
)
def test_rows_are_counted_once_in_every_epoch(changes, expected):
    # An epoch is two batches of 7 and one of 5.
    assert schedule.rows_trained(19, Training(batch_size=7, **changes)) == expected


def test_the_learning_rate_rises_and_then_falls_to_zero():
    config = Training(batch_size=7, warmup=0.1)
    rates = [schedule.learning_rate(step, 100, config) for step in range(101)]

    assert rates[9] == rates[10] == max(rates) == config.learning_rate
    assert rates[0] == pytest.approx(config.learning_rate / 10)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0, abs=1e-12)
