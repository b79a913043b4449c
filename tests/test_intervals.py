"""Intervals against scipy, textbook numbers, and brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from s2l_ray import intervals
from s2l_ray.intervals import Interval

RNG = np.random.default_rng(7)


def bounds(interval: Interval) -> tuple[float | None, float | None]:
    return interval.low, interval.high


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 20), (7, 20), (20, 20), (660, 1319)])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_the_wilson_interval_is_that_of_scipy(k, n, confidence):
    oracle = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    found = intervals.wilson_interval(k, n, confidence)

    assert bounds(found) == pytest.approx((oracle.low, oracle.high), abs=1e-12)
    assert found.estimate == k / n


@given(n=st.integers(1, 5_000), share=st.floats(0, 1))
def test_a_wilson_interval_holds_the_proportion_and_stays_between_zero_and_one(n, share):
    found = intervals.wilson_interval(round(share * n), n)

    assert 0 <= found.low <= found.estimate <= found.high <= 1


def test_the_wilson_interval_covers_the_truth_about_as_often_as_it_says():
    p, n = 0.1, 40
    chance_K = stats.binom.pmf(np.arange(n + 1), n, p)
    hit_K = [(i := intervals.wilson_interval(k, n)).low <= p <= i.high for k in range(n + 1)]

    assert chance_K @ np.array(hit_K) == pytest.approx(0.95, abs=0.02)


def of(right_N: np.ndarray) -> Interval:
    return intervals.wilson_interval(int(right_N.sum()), len(right_N))


def test_the_interval_of_a_mean_of_shares_combines_those_of_the_groups():
    groups = [np.array([True] * 3 + [False] * 7), np.array([True] * 9 + [False])]
    one, other = of(groups[0]), of(groups[1])

    found = intervals.combined([of(group) for group in groups])

    assert found.estimate == pytest.approx(0.6)
    low = 0.6 - np.hypot(0.3 - one.low, 0.9 - other.low) / 2
    high = 0.6 + np.hypot(one.high - 0.3, other.high - 0.9) / 2
    assert (found.low, found.high) == pytest.approx((low, high))


def test_the_interval_of_a_mean_of_shares_holds_the_truth_about_as_often_as_promised():
    share_G, size_G = np.array([0.02, 0.3, 0.9]), [12, 30, 8]
    held = 0
    for _ in range(400):
        drawn = [RNG.random(n) < p for p, n in zip(share_G, size_G, strict=True)]
        found = intervals.combined([of(group) for group in drawn])
        held += found.low <= share_G.mean() <= found.high
    assert 0.92 < held / 400 <= 1


@pytest.mark.parametrize("right", [False, True])
def test_a_share_of_none_or_all_has_an_interval_with_a_width(right):
    found = intervals.combined([of(np.full(5, right))] * 4)

    assert 0 <= found.low <= found.estimate <= found.high <= 1
    assert found.high - found.low > 0.05


def pairs(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    kinds = ([True, True], [True, False], [False, True], [False, False])
    table = np.repeat(kinds, [both, only_a, only_b, neither], axis=0)
    return table[:, 0], table[:, 1]


def test_the_interval_of_a_difference_of_shares_is_that_of_the_worked_example():
    # Fagerland, Lydersen and Laake (2014), doi:10.1002/sim.6148: 1, 1, 7 and 12 pairs.
    found = intervals.paired_rate_difference(*pairs(1, 1, 7, 12))

    assert found.estimate == pytest.approx(-6 / 21)
    assert bounds(found) == pytest.approx((-0.507, -0.026), abs=5e-4)


@given(st.lists(st.integers(0, 30), min_size=4, max_size=4).filter(any))
def test_a_difference_of_shares_turns_with_its_sides_and_stays_between_minus_one_and_one(counts):
    a_N, b_N = pairs(*counts)
    one, other = (intervals.paired_rate_difference(*p) for p in ((a_N, b_N), (b_N, a_N)))

    assert bounds(one) == pytest.approx((-other.high, -other.low))
    assert -1 <= one.low <= one.estimate <= one.high <= 1 and one.low < one.high


def test_the_interval_of_a_difference_of_shares_covers_the_truth_about_as_often_as_it_says():
    n, chances = 14, [0.15, 0.3, 0.1, 0.45]
    covered = 0.0
    for both, a, b in itertools.product(range(n + 1), repeat=3):
        if (neither := n - both - a - b) >= 0:
            found = intervals.paired_rate_difference(*pairs(both, a, b, neither))
            if found.low <= 0.2 <= found.high:
                covered += stats.multinomial.pmf([both, a, b, neither], n, chances)
    assert covered == pytest.approx(0.95, abs=0.03)


def test_a_difference_of_shares_over_groups_counts_every_group_the_same():
    a_N, b_N = pairs(3, 4, 1, 2)
    c_N, d_N = pairs(0, 0, 1, 1)
    parts = [intervals.paired_rate_difference(*p) for p in ((a_N, b_N), (c_N, d_N))]

    found = intervals.paired_rate_difference(
        np.concatenate([a_N, c_N]), np.concatenate([b_N, d_N]), ["big"] * 10 + ["small"] * 2
    )

    assert found == intervals.combined(parts)
    assert found.estimate == pytest.approx((0.3 - 0.5) / 2)


@pytest.mark.parametrize("n", [2, 3, 10, 500, 1_500])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_the_interval_of_a_mean_is_that_of_scipy(n, confidence):
    value_N = RNG.gamma(2.0, size=n)
    oracle = stats.t.interval(confidence, n - 1, value_N.mean(), stats.sem(value_N))
    found = intervals.mean_interval(value_N, confidence)

    assert bounds(found) == pytest.approx(oracle, rel=1e-5)
    assert found.standard_error == pytest.approx(stats.sem(value_N))


@pytest.mark.parametrize(
    ("degrees", "t"), [(1, 12.706), (2, 4.303), (5, 2.571), (30, 2.042), (120, 1.980), (1e9, 1.960)]
)
def test_the_quantiles_of_student_are_those_of_the_printed_tables(degrees, t):
    assert intervals.t_quantile(0.95, degrees) == pytest.approx(t, abs=5e-4)


def test_both_ways_to_a_quantile_agree_where_they_meet():
    below, above = (intervals.t_quantile(0.95, d) for d in (1_000, 1_000.001))

    assert below == pytest.approx(above, abs=1e-6)


def test_a_macro_mean_counts_every_group_the_same():
    found = intervals.macro_mean([1, 1, 1, 1, 3, 5], ["a", "a", "a", "a", "b", "b"])

    assert found.estimate == 2.5
    assert found.standard_error == pytest.approx(0.5)  # sqrt(0 / 4 + 2 / 2) / 2


def test_two_groups_give_half_the_interval_of_welch():
    a, b = RNG.normal(3, 1, 12), RNG.normal(1, 4, 30)
    oracle = stats.ttest_ind(a, -b, equal_var=False).confidence_interval(0.9)
    found = intervals.macro_mean(np.concatenate([a, b]), [0] * 12 + [1] * 30, 0.9)

    assert bounds(found) == pytest.approx((oracle.low / 2, oracle.high / 2), rel=1e-5)


def test_the_standard_error_of_a_macro_mean_is_that_of_a_bootstrap_inside_the_groups():
    sizes, group_N = (40, 60, 200), np.repeat([0, 1, 2], (40, 60, 200))
    value_N = RNG.gamma(1.0 + group_N)
    parts = [RNG.choice(value_N[group_N == g], (8_000, n)).mean(1) for g, n in enumerate(sizes)]

    found = intervals.macro_mean(value_N, group_N)

    assert found.standard_error == pytest.approx(np.mean(parts, 0).std(), rel=0.04)


def test_one_group_is_a_plain_mean():
    value_N = RNG.normal(size=9)

    assert intervals.macro_mean(value_N, ["only"] * 9) == intervals.mean_interval(value_N)


def test_order_and_names_of_the_groups_do_not_matter():
    value_N, group_N = RNG.normal(size=30), RNG.integers(0, 4, 30)
    order = RNG.permutation(30)
    names = np.array(["d", "b", "a", "c"])

    one = intervals.macro_mean(value_N, group_N)
    other = intervals.macro_mean(value_N[order], names[group_N[order]])

    assert bounds(other) == pytest.approx(bounds(one))


def test_a_group_of_one_takes_the_variance_of_the_others():
    found = intervals.macro_mean([1, 3, 2, 4, 9], [0, 0, 1, 1, 2])

    assert found.standard_error == pytest.approx(np.sqrt(2 / 2 + 2 / 2 + 2 / 1) / 3)


def test_what_has_no_spread_has_no_interval_and_what_never_varies_an_empty_one():
    assert intervals.mean_interval([4.0]) == Interval(4.0, None, None, None)
    assert intervals.macro_mean([1, 2], ["a", "b"]) == Interval(1.5, None, None, None)
    assert intervals.mean_interval([4.0, 4.0]) == Interval(4.0, 0.0, 4.0, 4.0)


def test_a_paired_difference_is_scipys_and_narrower_than_an_unpaired_one():
    b_N = RNG.normal(0, 5, 50)
    a_N = b_N + RNG.normal(0.3, 0.2, 50)
    oracle = stats.ttest_rel(a_N, b_N).confidence_interval(0.95)
    unpaired = stats.ttest_ind(a_N, b_N).confidence_interval(0.95)

    found = intervals.paired_difference(a_N, b_N)

    assert bounds(found) == pytest.approx((oracle.low, oracle.high), rel=1e-5)
    assert found.high - found.low < (unpaired.high - unpaired.low) / 10


def test_a_paired_difference_over_groups_is_a_difference_of_macro_means():
    a_N, b_N, group_N = RNG.normal(size=40), RNG.normal(size=40), np.arange(40) % 3
    found = intervals.paired_difference(a_N, b_N, group_N)
    mirrored = intervals.paired_difference(b_N, a_N, group_N)

    means = [intervals.macro_mean(x, group_N).estimate for x in (a_N, b_N)]
    assert found.estimate == pytest.approx(means[0] - means[1])
    assert bounds(mirrored) == pytest.approx((-found.high, -found.low))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: intervals.wilson_interval(0, 0), "0 <= successes <= n and n > 0, not 0 / 0"),
        (lambda: intervals.wilson_interval(3, 2), "not 3 / 2"),
        (lambda: intervals.wilson_interval(1, 2, 1.0), "between 0 and 1, not at 1.0"),
        (lambda: intervals.mean_interval([]), "not an array of shape"),
        (lambda: intervals.mean_interval([[1.0]]), "not an array of shape"),
        (lambda: intervals.mean_interval([1, np.nan, np.inf]), r"2 of 3 values .* \(at 1, 2\)"),
        (lambda: intervals.macro_mean([1.0], []), "1 values, but 0 group labels"),
        (lambda: intervals.paired_difference([1.0], [1.0, 2.0]), "not paired: 1 values against 2"),
    ],
)
def test_what_cannot_be_averaged_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
