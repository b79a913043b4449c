"""Samples of far and common rows: oracles are frequencies, and totals that weights must restore."""

from functools import partial

import numpy as np
import pytest

from s2l_ray import hashing
from s2l_ray.clusters import kmeans, sampling
from tests.clusters.test_kmeans import trajectories

RNG = np.random.default_rng(9)


def pool(num_rows: int, num_far: int = 3) -> np.ndarray:
    loss_NT = trajectories(num_rows, 4)
    loss_NT[:num_far] += 30
    return loss_NT


def keys(num_rows: int, seed: int = 0) -> np.ndarray:
    return hashing.mixed(np.arange(num_rows, dtype=np.uint64), seed)


def centre_of(loss_NT: np.ndarray) -> sampling.Centre:
    mean_T = loss_NT.mean(axis=0, dtype=np.float64)
    return sampling.Centre(mean_T, float(((loss_NT - mean_T) ** 2).sum(axis=1).mean()))


def test_rates_are_half_by_chance_and_half_by_squared_distance():
    loss_NT = pool(500)
    centre = centre_of(loss_NT)
    sample = sampling.draw(loss_NT, keys(500), 500, centre)
    sqdist_S = ((sample.loss_ST.astype(np.float64) - centre.mean_T) ** 2).sum(axis=1)
    np.testing.assert_allclose(sample.rate_S, 0.5 + 0.5 * sqdist_S / centre.mean_sqdist)
    assert sample.rate_S.mean() == pytest.approx(1)
    assert np.all(np.diff(sample.time_S) > 0)


def test_a_row_is_first_as_often_as_its_rate_says():
    loss_NT = np.array([[0.0], [1.0], [5.0]], np.float32)
    centre = centre_of(loss_NT)
    draws = [sampling.draw(loss_NT, keys(3, seed), 1, centre) for seed in range(4_000)]
    first = [float(sample.loss_ST[0, 0]) for sample in draws]
    share = np.array([first.count(loss) for loss in (0.0, 1.0, 5.0)]) / 4_000
    rate_N = 0.5 + 0.5 * (loss_NT[:, 0] - centre.mean_T) ** 2 / centre.mean_sqdist
    np.testing.assert_allclose(share, rate_N / 3, atol=0.025)


def test_far_rows_are_in_the_sample_and_stand_for_few():
    loss_NT = pool(5_000)
    loss_ST, weight_S = sampling.weighted(
        sampling.draw(loss_NT, keys(5_000), 300, centre_of(loss_NT)), 300
    )
    far_S = loss_ST[:, 0] > 25
    assert (len(loss_ST), far_S.sum()) == (300, 3)
    assert weight_S[far_S].max() < weight_S.min() + weight_S.max() / 4
    assert weight_S.max() <= sampling.MOST_WEIGHT and weight_S.min() == sampling.LEAST_WEIGHT


def test_weights_restore_the_mean_and_the_spread_of_the_pool():
    loss_NT = pool(4_000, num_far=20)
    centre = centre_of(loss_NT)
    means, spreads = [], []
    for seed in range(60):
        sample = sampling.draw(loss_NT, keys(4_000, seed), 400, centre)
        loss_ST, weight_S = sampling.weighted(sample, 400)
        means.append(np.average(loss_ST, axis=0, weights=weight_S))
        sqdist_S = ((loss_ST - centre.mean_T) ** 2).sum(axis=1)
        spreads.append(np.average(sqdist_S, weights=weight_S))
    np.testing.assert_allclose(np.mean(means, axis=0), centre.mean_T, rtol=0.02)
    assert np.mean(spreads) == pytest.approx(centre.mean_sqdist, rel=0.03)


@pytest.mark.parametrize("num_shards", [2, 7])
@pytest.mark.parametrize("size", [1, 50, 600])
def test_the_sample_of_a_union_is_that_of_its_shards_samples(num_shards, size):
    loss_NT, key_N = pool(600), keys(600)
    draw = partial(sampling.draw, size=size, centre=centre_of(loss_NT))
    shards = np.array_split(RNG.permutation(600), num_shards)
    joined = sampling.join([draw(loss_NT[rows], key_N[rows]) for rows in shards], size)
    whole = draw(loss_NT, key_N)
    for name in ("time_S", "rate_S", "loss_ST"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))


def test_a_sample_does_not_depend_on_the_size_of_blocks(monkeypatch):
    loss_NT, key_N = pool(101), keys(101)
    whole = sampling.draw(loss_NT, key_N, 20, centre_of(loss_NT))
    monkeypatch.setattr(sampling, "_ROWS_PER_BLOCK", 10)

    blocks = sampling.draw(loss_NT, key_N, 20, centre_of(loss_NT))

    np.testing.assert_array_equal(blocks.time_S, whole.time_S)
    np.testing.assert_array_equal(blocks.rate_S, whole.rate_S)
    np.testing.assert_array_equal(blocks.loss_ST, whole.loss_ST)


def test_a_pool_that_is_its_sample_has_equal_weights():
    loss_NT = pool(40)
    sample = sampling.draw(loss_NT, keys(40), 40, centre_of(loss_NT))
    loss_ST, weight_S = sampling.weighted(sample, 40)
    assert weight_S.tolist() == [1] * 40
    np.testing.assert_array_equal(np.sort(loss_ST, axis=0), np.sort(loss_NT, axis=0))


def test_a_weighted_sample_is_summed_where_its_pool_can_be():
    loss_NT = pool(310, num_far=0) + np.where(np.arange(310) % 2, 50_000, -50_000)[:, None]
    centre = centre_of(loss_NT)
    assert np.isfinite(kmeans.summarise(loss_NT, centre.mean_T[None]).inertia)

    loss_ST, weight_S = sampling.weighted(
        sampling.draw(loss_NT.astype(np.float32), keys(310), 300, centre), 300
    )

    assert np.isfinite(kmeans.TrackedRows(loss_ST, weight_S).sums(centre.mean_T[None]).inertia)


@pytest.mark.parametrize("centre", [None, sampling.Centre(np.zeros(4), 0.0)])
def test_without_a_centre_or_a_spread_all_rows_are_alike(centre):
    sample = sampling.draw(pool(90), keys(90), 20, centre)
    assert sample.rate_S.tolist() == [1.0] * 21
    assert len(set(sampling.weighted(sample, 20)[1].tolist())) == 1


def test_no_rows_give_no_sample():
    empty = sampling.draw(np.zeros((0, 4), np.float32), keys(0), 5, None)
    assert len(sampling.weighted(empty, 5)[0]) == 0
