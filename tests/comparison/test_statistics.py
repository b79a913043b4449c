"""Intervals over seeds and items, against a bootstrap, scipy and simulated truth."""

import numpy as np
import pytest
from scipy import stats

from s2l_ray.comparison.statistics import crossed_mean, holm
from s2l_ray.intervals import mean_interval, t_tail

RNG = np.random.default_rng(7)


def crossed(rng, num_seeds, num_items, *, by_seed, by_item, noise):
    """Values of a two-way model whose true mean is zero."""
    seed_S1 = rng.normal(0, by_seed, (num_seeds, 1))
    item_1I = rng.normal(0, by_item, (1, num_items))
    return seed_S1 + item_1I + rng.normal(0, noise, (num_seeds, num_items))


def pigeonhole(value_SI, draws, rng):
    """Draw seeds and items, one fewer than there are of each (Rao and Wu), and take the mean."""
    num_seeds, num_items = value_SI.shape
    weight_DS = rng.multinomial(num_seeds - 1, np.full(num_seeds, 1 / num_seeds), draws)
    weight_DI = rng.multinomial(num_items - 1, np.full(num_items, 1 / num_items), draws)
    sums_D = np.einsum("ds,si,di->d", weight_DS, value_SI, weight_DI)
    return sums_D / ((num_seeds - 1) * (num_items - 1))


def test_the_standard_error_is_that_of_a_bootstrap_of_seeds_and_items():
    value_SI = 1 + crossed(RNG, 6, 40, by_seed=0.3, by_item=1.0, noise=0.3)

    found = crossed_mean(value_SI)

    draws_D = pigeonhole(value_SI, 20_000, RNG)
    assert found.mean == pytest.approx(value_SI.mean())
    squared = (found.high - found.mean) ** 2
    by_seeds, by_items = value_SI.mean(1).var(ddof=1) / 6, value_SI.mean(0).var(ddof=1) / 40
    degrees = (by_seeds + by_items) ** 2 / (by_seeds**2 / 5 + by_items**2 / 39)
    error = np.sqrt(squared) / stats.t.ppf(0.975, degrees)
    assert error == pytest.approx(draws_D.std(), rel=0.05)


def test_the_variance_is_that_of_a_two_way_analysis_of_variance():
    value_SI = crossed(RNG, 4, 9, by_seed=0.5, by_item=1.0, noise=0.5)
    of_seeds = 9 * value_SI.mean(1).var(ddof=1)
    of_items = 4 * value_SI.mean(0).var(ddof=1)
    total = np.square(value_SI - value_SI.mean()).sum()
    of_rest = (total - 3 * of_seeds - 8 * of_items) / 24
    by_seeds, by_items = of_seeds / 36, (of_items - of_rest) / 36
    degrees = (by_seeds + by_items) ** 2 / (by_seeds**2 / 3 + by_items**2 / 8)
    half_width = stats.t.ppf(0.975, degrees) * np.sqrt(by_seeds + by_items)

    found = crossed_mean(value_SI)

    assert found.high - found.mean == pytest.approx(half_width, rel=1e-4)


@pytest.mark.parametrize(("by_seed", "by_item"), [(0.0, 1.0), (0.3, 1.0), (0.3, 0.0)])
def test_of_a_hundred_intervals_of_three_seeds_about_95_hold_the_truth(by_seed, by_item):
    rng = np.random.default_rng(3)
    found = [
        crossed_mean(crossed(rng, 3, 50, by_seed=by_seed, by_item=by_item, noise=0.5))
        for _ in range(200)
    ]

    # benchmarks/interval_coverage.py has more cases, and a bootstrap beside them.
    assert np.mean([item.low <= 0 <= item.high for item in found]) > 0.9


def test_with_one_seed_the_interval_is_that_of_the_items():
    value_I = RNG.normal(size=30)

    found, expected = crossed_mean(value_I[None]), mean_interval(value_I)

    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_the_p_value_of_one_seed_is_that_of_a_paired_t_test():
    a_I, b_I = RNG.normal(size=(2, 25))

    found = crossed_mean((a_I - b_I)[None])

    assert found.p == pytest.approx(stats.ttest_rel(a_I, b_I).pvalue, rel=1e-4)


def test_strata_count_the_same_however_many_items_they_have():
    value_SI = np.array([[1.0, 1.0, 1.0, 5.0], [1.2, 1.2, 1.2, 5.2]])

    assert crossed_mean(value_SI, ["a", "a", "a", "b"]).mean == pytest.approx(3.1)


def test_the_order_of_seeds_and_items_changes_nothing():
    value_SI = RNG.normal(size=(4, 12))
    group_I = np.array(list("aaabbbcccddd"))
    seeds, items = RNG.permutation(4), RNG.permutation(12)

    found = crossed_mean(value_SI[np.ix_(seeds, items)], group_I[items])

    whole = crossed_mean(value_SI, group_I)
    assert found.mean == pytest.approx(whole.mean)
    assert (found.low, found.p) == pytest.approx((whole.low, whole.p))


def test_a_single_value_has_no_interval():
    assert crossed_mean(np.array([[2.0]])).low is None


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_values_do_not_show_their_spread(value):
    found = crossed_mean(np.full((3, 5), value))

    assert (found.mean, found.low, found.high, found.p) == (value, None, None, None)


@pytest.mark.parametrize("degrees", [1, 2, 2.5, 7, 100, 5_000])
@pytest.mark.parametrize("t", [0.0, 0.3, 2.0, -5.0, 12.0])
def test_the_tail_is_that_of_students_distribution(t, degrees):
    expected = 2 * stats.t.sf(abs(t), degrees)

    assert t_tail(t, degrees) == pytest.approx(expected, rel=2e-2 if degrees > 1_000 else 1e-3)


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
