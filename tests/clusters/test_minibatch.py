"""Growing mini-batches: oracles are scikit-learn, and Lloyd's algorithm from scratch."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from s2l_ray.clusters import kmeans, minibatch
from s2l_ray.clusters.minibatch import Limits
from tests.clusters.test_kmeans import brute_force, trajectories

RNG = np.random.default_rng(8)


def fitted(loss_NT: np.ndarray, num_clusters: int, **settings):
    limits = Limits(settings.pop("max_sweeps", 500), settings.pop("tolerance", 0.0))
    usual = {"seed": 1, "rows_per_sample": 200, "limits": limits}
    return minibatch.fit_in_memory(loss_NT, num_clusters, **(usual | settings))


def test_the_end_is_a_fixed_point_of_lloyds_algorithm():
    loss_NT = trajectories(3_000)
    centroid_KT, label_N, sqdist_N = fitted(loss_NT, 9)
    expected_label_N, expected_sqdist_N = brute_force(loss_NT, centroid_KT)
    np.testing.assert_array_equal(label_N, expected_label_N)
    np.testing.assert_array_equal(sqdist_N, expected_sqdist_N)
    mean_KT = [loss_NT[label_N == k].mean(axis=0, dtype=np.float64) for k in range(9)]
    np.testing.assert_allclose(centroid_KT, mean_KT, rtol=1e-6)


@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
@pytest.mark.parametrize("num_threads", [2, 7])
def test_threads_change_no_bit(num_threads, tolerance):
    loss_NT = trajectories(30_001)
    one, several = (
        fitted(loss_NT, 9, num_threads=number, tolerance=tolerance) for number in (1, num_threads)
    )
    for expected, found in zip(one, several, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_one_sweep_over_all_rows_is_lloyds():
    loss_NT = trajectories(150)
    centroid_KT, _, _ = fitted(loss_NT, 5, max_sweeps=1)
    start_KT = kmeans.initial_centroids(loss_NT, 5, 1)
    expected_KT = kmeans.centroids(kmeans.summarise(loss_NT, start_KT), start_KT)
    np.testing.assert_array_equal(centroid_KT, expected_KT)


def test_a_lower_tolerance_does_not_raise_the_inertia():
    loss_NT = trajectories(5_000)
    inertias = [fitted(loss_NT, 20, tolerance=t)[2].sum() for t in (1e-1, 1e-3, 0.0)]
    assert inertias == sorted(inertias, reverse=True)
    assert inertias[0] > inertias[2]


@pytest.mark.parametrize("num_clusters", [5, 50])
def test_the_mean_inertia_is_within_one_percent_of_scikit_learns(num_clusters):
    cluster = pytest.importorskip("sklearn.cluster")
    ratios = []
    for seed in range(3):
        loss_NT = trajectories(12_000, rng=np.random.default_rng(seed))
        found = minibatch.fit_in_memory(loss_NT, num_clusters, seed=seed, rows_per_sample=6_400)
        with threadpool_limits(1):
            model = cluster.KMeans(num_clusters, n_init=1, random_state=seed).fit(loss_NT)
        ratios.append(found[2].sum() / model.inertia_)
    assert np.mean(ratios) <= 1.01


def test_rare_outliers_are_found_by_a_small_sample():
    cluster = pytest.importorskip("sklearn.cluster")
    ratios = []
    for seed in range(3):
        loss_NT = trajectories(20_000, rng=np.random.default_rng(seed))
        loss_NT[:20] *= 8
        found = minibatch.fit_in_memory(loss_NT, 30, seed=seed, rows_per_sample=3_000)
        with threadpool_limits(1):
            models = [cluster.KMeans(30, n_init=1, random_state=s).fit(loss_NT) for s in range(2)]
        ratios.append(found[2].sum() / np.mean([model.inertia_ for model in models]))
    assert np.mean(ratios) <= 1.01


def test_a_cluster_that_no_row_is_nearest_to_goes():
    loss_NT = trajectories(100)
    start_KT = np.concatenate([loss_NT[:3], np.full((1, 6), 900, np.float32)])
    followed = kmeans.TrackedRows(loss_NT)
    found = minibatch.fit(
        {"x": start_KT},
        {"x": 100},
        lambda centroids, shares: {"x": followed.sums(centroids["x"])},
        rows_in_start={"x": 100},
        limits=Limits(100, 0.0),
    )
    assert found.converged and len(found.centroids["x"]) == 3
    assert found.sweeps > 1


def test_a_kept_cluster_that_no_row_is_nearest_to_stays_where_it_was():
    loss_NT = trajectories(100)
    start_KT = np.concatenate([loss_NT[:3], np.full((1, 6), 900, np.float32), loss_NT[3:5]])
    followed = kmeans.TrackedRows(loss_NT)
    found = minibatch.fit(
        {"x": start_KT},
        {"x": 100},
        lambda centroids, shares: {"x": followed.sums(centroids["x"])},
        rows_in_start={"x": 100},
        limits=Limits(100, 0.0, keep_empty=True),
    )
    assert found.converged
    np.testing.assert_array_equal(found.centroids["x"][3], start_KT[3])
    label_N, _ = brute_force(loss_NT, found.centroids["x"])
    for k in (0, 1, 2, 4, 5):
        mean_T = loss_NT[label_N == k].mean(axis=0, dtype=np.float64)
        np.testing.assert_allclose(found.centroids["x"][k], mean_T, rtol=1e-6)


def test_the_first_batch_of_each_stratum_is_four_times_what_its_start_was_fitted_to():
    loss_NT = trajectories(64)
    shares_seen = []

    def summed(centroids, shares):
        shares_seen.append(dict(shares))
        return {name: kmeans.summarise(loss_NT, centroids[name]) for name in shares}

    minibatch.fit(
        {"a": loss_NT[:2], "b": loss_NT[:2], "c": loss_NT[:2]},
        dict.fromkeys("abc", 64),
        summed,
        rows_in_start={"a": 1, "b": 4, "c": 16},
        limits=Limits(1, 0.0),
    )
    assert shares_seen == [
        {"a": 1 / 16, "b": 1 / 4, "c": 1.0},
        {"a": 1 / 4, "b": 1.0},
        {"a": 1.0},
    ]


def test_batches_that_never_come_to_rest_end_all_the_same():
    # Sums are of losses in units, labels of losses as they are: these four rows go on for ever.
    unit = 2.0**-24
    loss_NT = unit * np.array([[1.25, 1.625], [0.75, 0.625], [3.25, 2.5], [0.5, 1.375]])
    start_KT = (unit * np.array([[1, 1.5], [3, 2], [0, 1]])).astype(np.float32)
    found = minibatch.fit(
        {"": start_KT},
        {"": 4_000},
        lambda centroids, shares: {"": kmeans.summarise(loss_NT, centroids[""])},
        rows_in_start={"": 10},
        limits=Limits(20, 3e-4),
    )
    assert found.sweeps <= 20


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="3 centroids from 0 rows"):
        fitted(np.zeros((0, 4), np.float32), 3)


def test_rows_that_cannot_be_clustered_are_named_as_they_were_given():
    loss_NT = trajectories(100)
    loss_NT[[17, 60], 2] = np.nan
    with pytest.raises(ValueError, match=r"2 of 100 trajectories .*first rows: 17, 60"):
        fitted(loss_NT, 3, num_threads=2)


def test_strata_are_fitted_as_if_each_were_alone():
    pools = {name: trajectories(size) for name, size in [("a", 900), ("b", 40), ("c", 2_000)]}

    def fit_of(names):
        followed = {name: kmeans.TrackedRows(pools[name]) for name in names}
        full = []
        found = minibatch.fit(
            {name: pools[name][:4] for name in names},
            {name: len(pools[name]) for name in names},
            lambda centroids, shares: {
                name: followed[name].sums(centroids[name], int(share * len(pools[name])))
                for name, share in shares.items()
            },
            rows_in_start=dict.fromkeys(names, 100),
            limits=Limits(7, 1e-5),
            on_full_sweep=lambda: full.append(1),
        )
        assert len(full) == found.sweeps <= 7
        return found.centroids

    together = fit_of(pools)
    for name in pools:
        np.testing.assert_array_equal(together[name], fit_of([name])[name])
