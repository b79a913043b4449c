"""Distances of new rows next to those of old ones: counted in bins, judged against chance."""

from functools import reduce

import numpy as np
import pytest

from s2l_ray.clusters import drift, kmeans
from s2l_ray.clusters.drift import Histogram

RNG = np.random.default_rng(11)
GROUP_N = RNG.integers(0, 3, size=2000)
SQDIST_N = (RNG.gamma(2.0, size=2000) * (1 + GROUP_N)).astype(np.float32)
SQDIST_N[:50] = 0.0
BIN_WIDTH = 2**-7


def whole() -> Histogram:
    return Histogram.of(GROUP_N, SQDIST_N)


@pytest.mark.parametrize("num_shards", [1, 2, 7])
def test_counts_do_not_depend_on_how_rows_are_sharded(num_shards):
    shards = np.array_split(RNG.permutation(len(GROUP_N)), num_shards)
    merged = reduce(Histogram.merge, [Histogram.of(GROUP_N[s], SQDIST_N[s]) for s in shards])

    np.testing.assert_array_equal(merged.bin_B, whole().bin_B)
    np.testing.assert_array_equal(merged.count_B, whole().count_B)
    assert merged.num_rows == 2000 and merged.rows_by_group() == {
        group: int((group == GROUP_N).sum()) for group in range(3)
    }


@pytest.mark.parametrize("share", [0.01, 0.5, 0.95, 0.99, 1.0])
def test_a_quantile_of_the_distance_is_within_half_a_bin(share):
    expected = np.sqrt(np.quantile(SQDIST_N, share, method="inverted_cdf"))
    assert whole().distance(share) == pytest.approx(expected, rel=BIN_WIDTH / 2, abs=1e-20)


def test_rows_beyond_a_percentile_are_those_of_their_own_group():
    other_N = (SQDIST_N * 1.5).astype(np.float32)
    expected = 0
    for group in range(3):
        limit = np.quantile(SQDIST_N[group == GROUP_N], 0.95, method="inverted_cdf")
        # All of the limit's bin counts as within.
        top = ((limit.view(np.uint32) >> 16) + 1) << 16
        expected += int((other_N[group == GROUP_N].view(np.uint32) >= top).sum())

    found = Histogram.of(GROUP_N, other_N).num_beyond(whole().limits(0.95))
    assert found == expected > 100
    assert whole().num_beyond(whole().limits(0.95)) <= 100


def test_some_groups_can_be_left_out():
    part = whole().within({0, 2})
    kept_N = GROUP_N != 1
    np.testing.assert_array_equal(
        part.count_B, Histogram.of(GROUP_N[kept_N], SQDIST_N[kept_N]).count_B
    )


def test_without_itself_is_the_distance_to_the_mean_of_the_others():
    loss_NT = RNG.gamma(2.0, size=(12, 4))
    sqdist_N = ((loss_NT - loss_NT.mean(axis=0)) ** 2).sum(axis=1)
    others_NT = np.stack([np.delete(loss_NT, n, axis=0).mean(axis=0) for n in range(12)])

    found_N = drift.without_itself(sqdist_N, np.full(12, 12))
    np.testing.assert_allclose(found_N, ((loss_NT - others_NT) ** 2).sum(axis=1), rtol=1e-6)


def test_an_example_alone_in_its_cluster_is_farther_than_any():
    assert drift.without_itself(np.array([0.0, 0.0, 4.0]), np.array([1, 2, 2])).tolist() == [
        np.inf,
        0.0,
        16.0,
    ]


@pytest.mark.parametrize(("num_alone", "beyond"), [(0, 0.05), (4, 0.05), (8, 0.08)])
def test_those_alone_are_beyond_any_percentile_and_no_distance(num_alone, beyond):
    """Old and new ones alike, even where more than 5% of the old ones are alone."""
    sqdist_N = np.linspace(1, 2, 100) ** 2
    sqdist_N[100 - num_alone :] = np.inf
    one = Histogram.of(np.zeros(100, int), sqdist_N)
    found = drift.compare(one, one)

    assert found.beyond_p95 == (beyond, beyond)
    shown = np.quantile(np.sqrt(sqdist_N[: 100 - num_alone]), 0.95, method="inverted_cdf")
    assert found.p95 == pytest.approx((shown, shown), rel=BIN_WIDTH / 2)


def test_new_examples_that_are_all_alone_have_no_distance():
    old = Histogram.of(np.zeros(100, int), np.linspace(0, 1, 100))
    found = drift.compare(old, Histogram.of(np.zeros(20, int), np.full(20, np.inf)))
    assert found.beyond_p95[1] == found.beyond_p99[1] == 1.0 and found.is_due
    assert found.median is None and found.p95 is None


def fitted(scale: float, num_new: int = 2000, seed: int = 0) -> drift.Comparison:
    """Rows of one distribution are clustered; new ones come from the same, scaled."""
    rng = np.random.default_rng(seed)
    spread_NT = rng.normal(0, 0.15, size=(1000 + num_new, 6))
    loss_NT = (rng.gamma(2.0, size=(1000 + num_new, 1)) * np.linspace(1, 0.3, 6) + spread_NT) + 2
    old_NT, new_NT = loss_NT[:1000].astype(np.float32), loss_NT[1000:] * scale
    centroid_KT = kmeans.initial_centroids(old_NT, 50, seed)
    label_N, sqdist_N = kmeans.nearest(old_NT, centroid_KT)
    size_N = np.bincount(label_N, minlength=50)[label_N]
    old_N = drift.without_itself(sqdist_N, size_N)
    _, new_N = kmeans.nearest(new_NT, centroid_KT)
    return drift.compare(
        Histogram.of(np.zeros(len(old_N), int), old_N),
        Histogram.of(np.zeros(len(new_N), int), new_N),
    )


@pytest.mark.parametrize("seed", range(4))
def test_rows_like_the_old_ones_fit(seed):
    found = fitted(1.0, seed=seed)
    assert not found.is_due
    assert found.median[1] == pytest.approx(found.median[0], rel=0.1)
    assert 0.03 < found.beyond_p95[0] <= 0.05 and found.beyond_p95[1] < 0.1
    assert found.beyond_p99[0] <= 0.01


def test_rows_elsewhere_do_not_fit():
    found = fitted(1.3)
    assert found.is_due and found.beyond_p95[1] > 0.3 and found.p95[1] > found.p95[0]


def test_a_few_rows_are_no_proof():
    old = Histogram.of(np.zeros(100, int), np.linspace(0, 1, 100))
    two_of_five = Histogram.of(np.zeros(5, int), np.array([0.1, 0.1, 0.1, 9.0, 9.0]))
    two_hundred_of_five = Histogram.of(np.zeros(500, int), np.repeat([0.1, 0.1, 0.1, 9, 9], 100))

    assert drift.compare(old, two_of_five).beyond_p95[1] == pytest.approx(0.4)
    assert not drift.compare(old, Histogram.of(np.zeros(3, int), np.array([0.1, 0.1, 9.0]))).is_due
    assert drift.compare(old, two_hundred_of_five).is_due


def test_groups_without_old_rows_are_refused():
    old, new = (Histogram.of(np.full(3, group), np.ones(3)) for group in (0, 1))
    with pytest.raises(ValueError, match=r"1 groups have no old ones \(first: \[1\]\)"):
        drift.compare(old, new)
