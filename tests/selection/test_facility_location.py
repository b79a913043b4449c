"""Facility location: the oracle is greedy maximisation written out, every gain computed anew."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ray.selection import cells, facility_location, similarity

RNG = np.random.default_rng(11)


def vectors(num_rows, width=6, *, rng=RNG):
    drawn_NH = rng.normal(size=(num_rows, width)) + 1.0
    return (drawn_NH / np.linalg.norm(drawn_NH, axis=1, keepdims=True)).astype(np.float16)


def cosines_by_definition(vector_NH):
    """max(0, cos), with the cosines rounded as stored: 24 binary digits after the point."""
    wide_NH = vector_NH.astype(np.float64)
    length_N = np.linalg.norm(wide_NH, axis=1)
    cos_NN = (wide_NH @ wide_NH.T) / np.outer(length_N, length_N)
    return np.maximum(cos_NN, 0)


def objective(cos_NN, subset):
    return sum(max((row[j] for j in subset), default=0.0) for row in cos_NN)


def greedy_by_definition(cos_NN, order):
    """Rows as they are taken: at every step the objective of every possible subset is computed."""
    taken = []
    while len(taken) < len(cos_NN):
        left = [row for row in order if row not in taken]
        value = [objective(cos_NN, [*taken, row]) for row in left]
        best = max(value)
        taken.append(next(r for r, v in zip(left, value, strict=True) if v >= best - 1e-12))
    return taken


def greedy_order(vector_NH, order_N, **options):
    gain_N = facility_location.gains(vector_NH, order_N, **options)
    return order_N[np.argsort(-gain_N[order_N], kind="stable")].tolist(), gain_N


@pytest.mark.parametrize("num_rows", [1, 2, 7, 23])
def test_greedy_takes_what_raises_the_objective_most(num_rows):
    vector_NH, order_N = vectors(num_rows), RNG.permutation(num_rows)
    cos_NN = cosines_by_definition(vector_NH)

    order, gain_N = greedy_order(vector_NH, order_N)

    assert order == greedy_by_definition(cos_NN, order_N.tolist())
    for place, row in enumerate(order):
        raised = objective(cos_NN, order[: place + 1]) - objective(cos_NN, order[:place])
        assert gain_N[row] * similarity.STEP == pytest.approx(raised, abs=num_rows * 1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 14))
def test_of_equal_examples_the_first_comes_first(seed, num_rows):
    # Few different vectors: gains are equal all the time, and zero where a twin was taken.
    rng = np.random.default_rng(seed)
    vector_NH = np.eye(4, dtype=np.float16)[rng.integers(0, 4, num_rows)]
    order_N = rng.permutation(num_rows)
    expected = greedy_by_definition(cosines_by_definition(vector_NH), order_N.tolist())
    assert greedy_order(vector_NH, order_N)[0] == expected


@pytest.mark.parametrize("width", [6, 64, 2048])
def test_a_twin_of_a_row_that_was_taken_gains_nothing(width):
    # Components of one size round alike, and add up to many steps.
    vector_NH = np.concatenate([RNG.choice([-1.0, 1.0], (9, width)), vectors(9, width)])
    vector_NH = np.concatenate([vector_NH, vector_NH]).astype(np.float16)
    gain_N = facility_location.gains(vector_NH, RNG.permutation(36))
    different_N = np.unique(vector_NH, axis=0, return_inverse=True)[1].reshape(-1)
    for kind in range(different_N.max() + 1):
        first, *others = np.sort(gain_N[different_N == kind])[::-1]
        assert first > 0 and others and not any(others)


def test_vectors_of_zeros_are_no_twins():
    vector_NH = np.zeros((3, 4), np.float16)
    vector_NH[0, 0] = 1
    assert facility_location.gains(vector_NH, np.arange(3)).tolist() == [2**24] * 3


def test_lazy_greedy_is_eager_greedy():
    steps_CC = facility_location.cosine_steps(vectors(60, 3))
    covered_C, left, expected_C = np.zeros(60, np.int64), list(range(60)), np.empty(60, np.int64)
    while left:
        gains = [np.maximum(steps_CC[row] - covered_C, 0).sum() for row in left]
        row = left[int(np.argmax(gains))]
        expected_C[row] = max(gains)
        covered_C = np.maximum(covered_C, steps_CC[row])
        left.remove(row)
    np.testing.assert_array_equal(facility_location.greedy_gains(steps_CC), expected_C)


def test_many_cells_are_one_pool_in_which_pairs_of_two_cells_count_as_nothing():
    vector_NH, order_N = vectors(90), RNG.permutation(90)
    found = cells.cells(vector_NH, order_N, rows_per_cell=20)
    cell_N = np.empty(90, int)
    for number, row_C in enumerate(found):
        cell_N[row_C] = number
    assert len(found) > 3
    cos_NN = cosines_by_definition(vector_NH) * (cell_N[:, None] == cell_N)

    order, _ = greedy_order(vector_NH, order_N, rows_per_cell=20)

    assert order == greedy_by_definition(cos_NN, order_N.tolist())


@pytest.mark.parametrize("rows_per_cell", [2048, 15])
def test_gains_do_not_depend_on_the_order_of_rows(rows_per_cell):
    vector_NH, order_N = vectors(200, 33), RNG.permutation(200)
    gain_N = facility_location.gains(vector_NH, order_N, rows_per_cell=rows_per_cell)
    moved_N = RNG.permutation(200)
    place_N = np.argsort(moved_N)

    again_N = facility_location.gains(
        vector_NH[moved_N], place_N[order_N], rows_per_cell=rows_per_cell
    )

    np.testing.assert_array_equal(again_N, gain_N[moved_N])


def test_no_examples_have_no_gains():
    assert facility_location.gains(np.empty((0, 4), np.float16), np.arange(0)).shape == (0,)


# --- cells and cosines ----------------------------------------------------------------------------


def test_cells_have_every_row_once_and_no_more_than_twice_the_average():
    rng = np.random.default_rng(0)
    # Most rows are nearly the same.
    vector_NH = vectors(500, rng=rng)
    vector_NH[:400] = vector_NH[0]
    found = cells.cells(vector_NH, rng.permutation(500), rows_per_cell=30)
    assert sorted(np.concatenate(found).tolist()) == list(range(500))
    assert max(map(len, found)) <= 60


def test_cells_hold_what_is_similar():
    rng = np.random.default_rng(1)
    centers_KH = np.eye(8)
    kind_N = rng.integers(0, 8, 800)
    vector_NH = (centers_KH[kind_N] + 0.05 * rng.normal(size=(800, 8))).astype(np.float16)
    found = cells.cells(vector_NH, rng.permutation(800), rows_per_cell=20)
    pure = sum(np.bincount(kind_N[row_C]).max() for row_C in found)
    assert pure > 0.95 * 800


def test_centroids_are_those_of_spherical_k_means():
    vector_SH, num_centroids = vectors(300, 8), 12
    unit_SH = similarity.unit(vector_SH)
    centroid_CH = unit_SH[:num_centroids].copy()
    for _ in range(cells.SWEEPS):
        nearest_S = np.array([np.argmax(centroid_CH @ row_H) for row_H in unit_SH])
        for c in set(nearest_S.tolist()):
            sum_H = unit_SH[nearest_S == c].sum(axis=0)
            centroid_CH[c] = sum_H / np.linalg.norm(sum_H)
    np.testing.assert_allclose(
        cells.spherical_centroids(vector_SH, num_centroids), centroid_CH, atol=1e-7
    )


def test_the_sample_for_centroids_is_not_held_in_float64():
    vector_SH = vectors(16 * cells.ROWS_PER_BLOCK, 32)
    tracemalloc.start()
    cells.spherical_centroids(vector_SH, 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < vector_SH.size * 8 / 2


def test_cosines_are_exact_in_any_company():
    vector_NH = vectors(70, 129)
    unit_NH = similarity.unit(vector_NH)
    steps_NN = similarity.cosines(unit_NH, unit_NH)
    for row, other in [(0, 0), (3, 17), (69, 68)]:
        exact = sum(
            Fraction(float(a)) * Fraction(float(b))
            for a, b in zip(unit_NH[row], unit_NH[other], strict=True)
        )
        assert steps_NN[row, other] == round(exact / Fraction(similarity.STEP))
        alone = similarity.cosines(unit_NH[row : row + 1], unit_NH[other : other + 1])
        assert alone.item() == steps_NN[row, other]
        np.testing.assert_array_equal(similarity.unit(vector_NH[row : row + 1])[0], unit_NH[row])
    cos_NN = cosines_by_definition(vector_NH)
    np.testing.assert_allclose(np.maximum(steps_NN, 0) * similarity.STEP, cos_NN, atol=1e-6)


def test_a_vector_of_zeros_is_similar_to_nothing():
    unit_NH = similarity.unit(np.array([[0, 0], [1, 0]], np.float16))
    assert similarity.cosines(unit_NH, unit_NH).tolist() == [[0, 0], [0, 2**24]]
