"""Weighted water-filling: the oracle is the exact water level, found with fractions."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ray.selection import water_filling
from s2l_ray.selection.water_filling import Quotas


def quotas_of(weights: Sequence[float], least: Sequence[int], most: Sequence[int]) -> Quotas:
    return Quotas(np.array(weights, float), np.array(least, np.int64), np.array(most, np.int64))


def shuffled(sizes: Sequence[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    group_N = np.repeat(np.arange(len(sizes)), sizes)
    rng = np.random.default_rng(seed)
    return rng.permutation(group_N), rng.permutation(len(group_N))


def exact_shares(
    budget: int, sizes: Sequence[int], weights: Sequence[float], least: Sequence[int]
) -> list[Fraction]:
    """Unrounded shares at the one level h where max(least, min(size, w h)) add up to `budget`."""
    weight = [Fraction(w) for w in weights]

    def at(level: Fraction) -> list[Fraction]:
        wanted = [max(Fraction(m), w * level) for m, w in zip(least, weight, strict=True)]
        return [min(Fraction(size), share) for size, share in zip(sizes, wanted, strict=True)]

    # The sum is linear between the levels where a group's share starts to grow, or stops.
    bends = {Fraction(0)} | {
        Fraction(end) / w for w, *ends in zip(weight, least, sizes, strict=True) for end in ends
    }
    below = max(level for level in bends if sum(at(level)) <= budget)
    growing = sum(
        w
        for w, m, size in zip(weight, least, sizes, strict=True)
        if w * below >= m and w * below < size
    )
    return at(below + (budget - sum(at(below))) / growing if growing else below)


GROUPS = st.lists(
    st.tuples(st.integers(1, 12), st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.0])),
    min_size=1,
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(groups=GROUPS, data=st.data())
def test_every_prefix_is_weighted_water_filling_up_to_rounding(groups, data):
    sizes, weights = zip(*groups, strict=True)
    least = [data.draw(st.integers(0, size)) if data.draw(st.booleans()) else 0 for size in sizes]
    group_N, order_N = shuffled(sizes)
    ranked_N = water_filling.weighted(group_N, order_N, quotas_of(weights, least, sizes))

    for budget in range(sum(least), sum(sizes) + 1):
        taken = np.bincount(group_N[ranked_N[:budget]], minlength=len(sizes)).tolist()
        shares = exact_shares(budget, sizes, weights, least)
        # Shares that neither a size nor a minimum decides, and the numbers that are not decided.
        moving = [
            g
            for g, size in enumerate(sizes)
            if (least[g] < taken[g] < size) or (least[g] < shares[g] < size)
        ]
        total = sum(weights[g] for g in moving)
        for g in range(len(sizes)):
            room = 0.5 + weights[g] / total * len(moving) / 2 if g in moving else 0
            assert abs(taken[g] - shares[g]) <= room + 1e-9, (budget, g, taken, shares)


@settings(max_examples=200, deadline=None)
@given(groups=GROUPS)
def test_one_level_rounds_to_the_number_of_every_group_that_is_not_full(groups):
    sizes, weights = zip(*groups, strict=True)
    group_N, order_N = shuffled(sizes)
    ranked_N = water_filling.weighted(group_N, order_N, quotas_of(weights, [0] * len(sizes), sizes))

    for budget in range(sum(sizes) + 1):
        taken = np.bincount(group_N[ranked_N[:budget]], minlength=len(sizes)).tolist()
        reached = [(n - 0.5) / w for n, w in zip(taken, weights, strict=True) if n]
        ahead = [
            (n + 0.5) / w for n, w, size in zip(taken, weights, sizes, strict=True) if n < size
        ]
        if reached and ahead:
            assert max(reached) <= min(ahead)


@settings(max_examples=200, deadline=None)
@given(groups=st.lists(st.integers(0, 12), min_size=1, max_size=6), weight=st.sampled_from([1, 3]))
def test_equal_weights_without_bounds_are_plain_water_filling(groups, weight):
    group_N, order_N = shuffled(groups)
    quotas = quotas_of([weight] * len(groups), [0] * len(groups), [sum(groups)] * len(groups))
    np.testing.assert_array_equal(
        water_filling.weighted(group_N, order_N, quotas),
        water_filling.water_filled(group_N, order_N),
    )


@settings(max_examples=200, deadline=None)
@given(groups=GROUPS, data=st.data())
def test_minima_come_first_maxima_hold_and_nothing_is_lost(groups, data):
    sizes, weights = zip(*groups, strict=True)
    least = [data.draw(st.integers(0, 14)) for _ in sizes]
    most = [m + data.draw(st.integers(0, 5)) for m in least]
    group_N, order_N = shuffled(sizes)
    ranked_N = water_filling.weighted(group_N, order_N, quotas_of(weights, least, most))

    assert sorted(ranked_N.tolist()) == list(range(sum(sizes)))
    first_G, allowed_G = np.minimum(sizes, least), np.minimum(sizes, most)
    first = np.bincount(group_N[ranked_N[: first_G.sum()]], minlength=len(sizes))
    allowed = np.bincount(group_N[ranked_N[: allowed_G.sum()]], minlength=len(sizes))
    np.testing.assert_array_equal(first, first_G)
    np.testing.assert_array_equal(allowed, allowed_G)
    for group in range(len(sizes)):
        own = ranked_N[group_N[ranked_N] == group]
        np.testing.assert_array_equal(own, order_N[group_N[order_N] == group])


def test_a_weight_of_two_is_twice_as_much_until_a_group_is_full():
    group_N, order_N = shuffled([30, 30, 4])
    ranked_N = water_filling.weighted(group_N, order_N, quotas_of([2, 1, 1], [0] * 3, [30] * 3))

    assert np.bincount(group_N[ranked_N[:8]]).tolist() == [4, 2, 2]
    assert np.bincount(group_N[ranked_N[:34]]).tolist() == [20, 10, 4]


def test_a_heavy_group_among_light_ones_is_off_by_more_than_one_as_the_docstring_says():
    sizes, weights = [100, *[10] * 9], [81.0, *[1.0] * 9]
    group_N, order_N = shuffled(sizes)
    ranked_N = water_filling.weighted(group_N, order_N, quotas_of(weights, [0] * 10, sizes))
    budget = 50
    taken = np.bincount(group_N[ranked_N[:budget]], minlength=10)
    shares = exact_shares(budget, sizes, weights, [0] * 10)
    assert 1 < abs(taken[0] - shares[0]) <= 0.5 + 0.9 * 10 / 2


@pytest.mark.parametrize(
    ("weights", "least", "most", "message"),
    [
        ([0.0], [0], [1], "above zero"),
        ([float("inf")], [0], [1], "finite"),
        ([float("nan")], [0], [1], "finite"),
        ([1.0], [-1], [1], "minimum"),
        ([1.0], [2], [1], "minimum"),
    ],
)
def test_quotas_that_mean_nothing_are_refused(weights, least, most, message):
    with pytest.raises(ValueError, match=message):
        quotas_of(weights, least, most)


@pytest.mark.parametrize("rows_per_block", [1, 7, 1 << 18])
@pytest.mark.parametrize("sizes", [[], [1], [3, 0, 1, 0, 0, 5, 3], [1] * 300 + [40]])
def test_positions_and_then_turns_decide_ranks(monkeypatch, rows_per_block, sizes):
    monkeypatch.setattr(water_filling, "_ROWS_PER_BLOCK", rows_per_block)
    group_N, order_N = shuffled(sizes, seed=len(sizes))

    ranked_N = water_filling.water_filled(group_N, order_N)

    # Of groups at one position the larger one comes first, of equal ones that of higher number.
    position = {row: list(order_N[group_N[order_N] == group_N[row]]).index(row) for row in order_N}
    place = {row: (position[row], -sizes[group_N[row]], -group_N[row]) for row in order_N}
    assert ranked_N.tolist() == sorted(order_N.tolist(), key=place.__getitem__)


@pytest.mark.parametrize("rows_per_block", [1, 7, 1 << 18])
@pytest.mark.parametrize("largest", [12, 90, 10**9])
def test_numbers_without_gaps_keep_groups_and_their_order(monkeypatch, rows_per_block, largest):
    monkeypatch.setattr(water_filling, "_ROWS_PER_BLOCK", rows_per_block)
    group_N = np.random.default_rng(1).integers(0, largest, 40) // 3 * 3
    expected = np.unique(group_N, return_inverse=True)[1]
    np.testing.assert_array_equal(water_filling.numbered(group_N), expected)
