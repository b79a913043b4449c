"""Scaled trajectories: definitions in plain Python and numpy are the oracles."""

import json
import statistics
from fractions import Fraction
from functools import reduce

import numpy as np
import pytest

from s2l_ray.clusters import kmeans, scaling
from s2l_ray.clusters.scaling import Moments, Scale
from tests.clusters.test_kmeans import trajectories

RNG = np.random.default_rng(31)


def in_units(loss_NT: np.ndarray) -> list[list[Fraction]]:
    """By checkpoint, the losses rounded to 2^-24 nats."""
    return [[Fraction(round(loss * 2**24), 2**24) for loss in loss_N] for loss_N in loss_NT.T]


@pytest.mark.parametrize("largest", [1e-4, 3.0, kmeans.MAX_LOSS_NATS])
def test_mean_and_deviation_are_those_of_exact_arithmetic(largest):
    loss_NT = RNG.uniform(-largest, largest, (300, 5)).astype(np.float32)
    scale = Moments.of(loss_NT).scale()

    exact = in_units(loss_NT.astype(float))
    assert scale.mean_T.tolist() == [float(statistics.mean(of)) for of in exact]
    expected = [statistics.pvariance(of) ** 0.5 for of in exact]
    np.testing.assert_allclose(scale.deviation_T, expected, rtol=1e-15)


@pytest.mark.parametrize("num_shards", [1, 2, 7])
def test_a_scale_does_not_depend_on_how_rows_are_sharded(num_shards, monkeypatch):
    loss_NT = trajectories(200)
    whole = Moments.of(loss_NT)
    monkeypatch.setattr(scaling, "_ROWS_PER_BLOCK", 16)
    shards = np.array_split(loss_NT[::-1], num_shards)

    assert reduce(Moments.merge, map(Moments.of, shards)) == whole


def test_sums_of_any_size_are_exact():
    row_1T = np.full((1, 2), kmeans.MAX_LOSS_NATS, np.float32)
    moments = Moments.of(row_1T)
    for _ in range(60):
        moments = moments.merge(moments)

    assert moments.square_sum_T == (2**60 * 2**80,) * 2
    assert moments.scale().mean_T.tolist() == [kmeans.MAX_LOSS_NATS] * 2


def test_no_row_has_no_scale():
    with pytest.raises(ValueError, match="no row"):
        Moments.of(np.zeros((0, 3))).scale()


def test_standardised_checkpoints_have_mean_zero_and_variance_one():
    loss_NT = trajectories(400)
    loss_NT[:, 2] *= 1e-3
    value_NT = scaling.scaled(loss_NT, "standardised", Moments.of(loss_NT).scale())

    assert value_NT.dtype == np.float32
    np.testing.assert_allclose(value_NT.mean(axis=0, dtype=float), 0, atol=1e-6)
    np.testing.assert_allclose(value_NT.var(axis=0, dtype=float), 1, rtol=1e-5)


def test_a_checkpoint_whose_losses_are_equal_becomes_zero():
    loss_NT = trajectories(50)
    loss_NT[:, 1] = 0.7
    scale = Moments.of(loss_NT).scale()

    assert scale.deviation_T[1] == 1
    np.testing.assert_allclose(scaling.standardised(loss_NT, scale)[:, 1], 0, atol=1e-7)


def test_what_is_very_far_out_counts_as_64_deviations():
    scale = Scale(np.array([1.0, 1.0]), np.array([1e-6, 1.0]))
    value_NT = scaling.standardised(np.array([[9.0, 9.0], [-9.0, -9.0]]), scale)

    assert value_NT.tolist() == [[64, 8], [-64, -10]]


def test_a_shape_is_the_row_less_its_mean_over_its_deviation():
    loss_NT = trajectories(60)
    loss_NT[7] = loss_NT[7] * 1e-3 + 2
    shape_NT = scaling.scaled(loss_NT, "shape", None)

    for loss_T, shape_T in zip(loss_NT.tolist(), shape_NT, strict=True):
        mean, deviation = statistics.fmean(loss_T), statistics.pstdev(loss_T)
        expected = [(loss - mean) / max(deviation, 0.01) for loss in loss_T]
        np.testing.assert_allclose(shape_T, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(shape_NT[7]).max() < 1 < np.abs(shape_NT[6]).max()


@pytest.mark.parametrize("value", [0.0, 0.1, 7.3, 65_000.0])
@pytest.mark.parametrize("num_checkpoints", [1, 3, 12])
def test_a_constant_trajectory_has_the_shape_zero(value, num_checkpoints):
    constant_NT = np.full((2, num_checkpoints), value, np.float32)
    np.testing.assert_allclose(scaling.shape(constant_NT), 0, atol=1e-8)


def test_a_shape_knows_neither_level_nor_size():
    loss_NT = trajectories(40).astype(np.float64)
    np.testing.assert_allclose(scaling.shape(3 * loss_NT + 5), scaling.shape(loss_NT), atol=1e-5)


def test_shapes_are_as_far_apart_as_they_are_uncorrelated():
    loss_NT = trajectories(20)
    shape_NT = scaling.shape(loss_NT).astype(float)
    sqdist_NN = ((shape_NT[:, None] - shape_NT) ** 2).sum(axis=2)
    expected_NN = 2 * loss_NT.shape[1] * (1 - np.corrcoef(loss_NT))

    np.testing.assert_allclose(sqdist_NN, expected_NN, atol=1e-4)


@pytest.mark.parametrize("name", ["standardised", "shape"])
def test_a_row_is_scaled_alike_in_any_company(name, monkeypatch):
    loss_NT = trajectories(50)
    scale = Moments.of(loss_NT).scale()
    whole_NT = scaling.scaled(loss_NT, name, scale)
    monkeypatch.setattr(scaling, "_ROWS_PER_BLOCK", 7)
    shuffled_N = RNG.permutation(50)

    np.testing.assert_array_equal(scaling.scaled(loss_NT, name, scale), whole_NT)
    alone_NT = [scaling.scaled(loss_NT[n : n + 1], name, scale)[0] for n in shuffled_N]
    np.testing.assert_array_equal(alone_NT, whole_NT[shuffled_N])


def test_raw_losses_stay_the_same_array():
    loss_NT = trajectories(5)
    assert scaling.scaled(loss_NT, "raw", None) is loss_NT


def test_a_scale_keeps_its_bits_in_a_manifest():
    scale = Moments.of(trajectories(100)).scale()
    again = Scale.of_json(json.loads(json.dumps(scale.as_json())))

    np.testing.assert_array_equal(again.mean_T, scale.mean_T)
    np.testing.assert_array_equal(again.deviation_T, scale.deviation_T)


def test_standardised_centroids_in_nats_are_the_mean_losses_of_their_rows():
    loss_NT = trajectories(90)
    scale = Moments.of(loss_NT).scale()
    value_NT = scaling.standardised(loss_NT, scale)
    mean_KT = np.stack([value_NT[:30].mean(axis=0), value_NT[30:].mean(axis=0)])
    expected_KT = np.stack([loss_NT[:30].mean(axis=0), loss_NT[30:].mean(axis=0)])

    np.testing.assert_allclose(scaling.in_nats(mean_KT, scale), expected_KT, rtol=1e-5)
