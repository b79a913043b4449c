"""K-means from random rows of a sample: oracles are plain numpy and scikit-learn."""

import numpy as np
import pytest

from s2l_ray.clusters import kmeans
from tests.clusters.test_kmeans import brute_force, trajectories

RNG = np.random.default_rng(6)


def in_order(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize("num_clusters", [1, 7, 80])
def test_a_random_start_is_distinct_rows_that_do_not_depend_on_row_order(num_clusters):
    sample_ST = trajectories(80)
    first_KT = kmeans.random_rows(sample_ST, num_clusters, seed=1)
    again_KT = kmeans.random_rows(RNG.permutation(sample_ST), num_clusters, seed=1)

    np.testing.assert_array_equal(first_KT, again_KT)
    assert (first_KT.shape, first_KT.dtype) == ((num_clusters, 6), np.float32)
    assert {*map(tuple, first_KT.tolist())} <= {*map(tuple, sample_ST.tolist())}
    assert len(np.unique(first_KT, axis=0)) == num_clusters


def test_a_random_start_of_too_few_distinct_rows_is_all_of_them():
    distinct_ST = trajectories(9)
    sample_ST = RNG.permutation(np.repeat(distinct_ST, 4, axis=0))

    centroid_KT = kmeans.random_rows(sample_ST, 100, seed=0)

    np.testing.assert_array_equal(in_order(centroid_KT), in_order(distinct_ST))
    assert kmeans.random_rows(np.full((30, 3), 2.5), 7, seed=0).tolist() == [[2.5] * 3]


def test_a_random_start_draws_every_row_with_equal_chances():
    # A value that four of the eight rows have is the first one drawn in half of all starts.
    sample_S1 = np.array([[1.0], [2.0], [3.0], [4.0], [5.0], [5.0], [5.0], [5.0]])
    drawn = [float(kmeans.random_rows(sample_S1, 1, seed)[0, 0]) for seed in range(2_000)]
    count = np.unique(drawn, return_counts=True)[1]
    np.testing.assert_allclose(count / 2_000, [0.125, 0.125, 0.125, 0.125, 0.5], atol=0.04)


SAMPLES = {
    "smooth": trajectories(300),
    "one checkpoint": trajectories(300, 1),
    "far outliers": np.concatenate([trajectories(200), np.full((2, 6), 30_000, np.float32)]),
}


def faiss_like(sample_ST: np.ndarray, centroid_KT: np.ndarray, num_sweeps: int) -> np.ndarray:
    """Lloyd in float64; an empty cluster gets half of the one that is widest.

    Between sweeps centroids are float32: what rounding does to far ones decides who is widest.
    """
    for _ in range(num_sweeps):
        centroid_KT = centroid_KT.astype(np.float32).astype(np.float64)
        label_S, sqdist_S = brute_force(sample_ST, centroid_KT)
        width_K = np.array([sqdist_S[label_S == k].sum() for k in range(len(centroid_KT))])
        for k in np.unique(label_S):
            centroid_KT[k] = sample_ST[label_S == k].mean(axis=0, dtype=np.float64)
        for k in sorted({*range(len(centroid_KT))} - {*label_S.tolist()}):
            widest = int(width_K.argmax())
            up_T = 1 + (-1.0) ** np.arange(sample_ST.shape[1]) / 1024
            centroid_KT[k], centroid_KT[widest] = (
                centroid_KT[widest] * up_T,
                centroid_KT[widest] * (2 - up_T),
            )
            width_K[k] = width_K[widest] = width_K[widest] / 2
    return centroid_KT


@pytest.mark.parametrize("num_far", [0, 1, 3])
@pytest.mark.parametrize("num_sweeps", [1, 3, 20])
@pytest.mark.parametrize("case", SAMPLES)
def test_sweeps_with_splits_are_those_of_plain_numpy(case, num_far, num_sweeps):
    sample_ST = SAMPLES[case]
    # Centroids far from all rows are those of empty clusters.
    far_FT = np.full((num_far, sample_ST.shape[1]), 65_000, np.float32)
    start_KT = np.concatenate([kmeans.random_rows(sample_ST, 8, seed=4), far_FT])
    centroid_KT, _, _ = kmeans.lloyd_with_splits(sample_ST, start_KT, num_sweeps)
    expected_KT = faiss_like(sample_ST, start_KT, num_sweeps)
    np.testing.assert_allclose(centroid_KT, expected_KT, rtol=1e-5)
    assert centroid_KT.dtype == np.float32


@pytest.mark.parametrize("num_clusters", [1, 5, 30])
def test_sweeps_from_a_random_start_are_those_of_scikit_learn(num_clusters):
    cluster = pytest.importorskip("sklearn.cluster")
    sample_ST = trajectories(600)
    start_KT = kmeans.random_rows(sample_ST, num_clusters, seed=2)
    model = cluster.KMeans(num_clusters, init=start_KT, n_init=1, max_iter=20, tol=0)

    centroid_KT, num_sweeps, _ = kmeans.lloyd_with_splits(sample_ST, start_KT, 20)

    np.testing.assert_allclose(centroid_KT, model.fit(sample_ST).cluster_centers_, rtol=1e-4)
    assert num_sweeps == model.n_iter_


def test_sweeps_do_not_depend_on_row_order():
    sample_ST = trajectories(200)
    start_KT = np.concatenate([sample_ST[:9], np.full((2, 6), 90, np.float32)])
    centroid_KT, *made = kmeans.lloyd_with_splits(sample_ST, start_KT, 20)
    again_KT, *made_again = kmeans.lloyd_with_splits(RNG.permutation(sample_ST), start_KT, 20)
    np.testing.assert_array_equal(centroid_KT, again_KT)
    assert made == made_again


def test_sweeps_end_as_soon_as_no_centroid_moves():
    sample_ST = np.array([[1.0], [2.0], [9.0], [10.0]], np.float32)
    start_KT = sample_ST[[0, 3]]
    # 1 and 10 take two rows each and move; the second sweep moves nothing.
    assert kmeans.lloyd_with_splits(sample_ST, start_KT, 1)[1:] == (1, False)
    centroid_KT, num_sweeps, at_rest = kmeans.lloyd_with_splits(sample_ST, start_KT, 20)
    assert (centroid_KT[:, 0].tolist(), num_sweeps, at_rest) == ([1.5, 9.5], 2, True)


@pytest.mark.parametrize("num_rows", [3, 60])
def test_as_many_clusters_as_distinct_rows_have_no_inertia(num_rows):
    sample_ST = np.repeat(trajectories(num_rows), 2, axis=0)
    start_KT = kmeans.random_rows(sample_ST, 100, seed=0)
    centroid_KT, num_sweeps, at_rest = kmeans.lloyd_with_splits(sample_ST, start_KT, 20)
    # A first sweep may round to whole `LOSS_UNIT_NATS`.
    assert len(centroid_KT) == num_rows and num_sweeps <= 2 and at_rest
    assert kmeans.summarise(sample_ST, centroid_KT).inertia == 0


def test_clusters_that_lose_their_rows_get_others():
    sample_ST = np.concatenate([trajectories(300), np.full((200, 6), 2.5, np.float32)])
    start_KT = np.concatenate([sample_ST[:1], np.full((5, 6), 300, np.float32)])
    plain_KT = start_KT
    for _ in range(20):
        plain_KT = kmeans.centroids(kmeans.summarise(sample_ST, plain_KT), plain_KT)

    centroid_KT, _, _ = kmeans.lloyd_with_splits(sample_ST, start_KT, 20)

    split, plain = (kmeans.summarise(sample_ST, c_KT) for c_KT in (centroid_KT, plain_KT))
    assert split.count_K.min() > 0 and plain.count_K.min() == 0
    assert split.inertia < 0.5 * plain.inertia


@pytest.mark.parametrize("loss_nats", [0.0, 2.5, kmeans.MAX_LOSS_NATS])
def test_equal_rows_that_cannot_be_split_stay_together(loss_nats):
    sample_ST = np.full((30, 3), loss_nats, np.float32)
    centroid_KT, _, _ = kmeans.lloyd_with_splits(sample_ST, np.zeros((4, 3), np.float32), 20)
    sums = kmeans.summarise(sample_ST, centroid_KT)
    assert sorted(sums.count_K.tolist()) == [0, 0, 0, 30]
    np.testing.assert_allclose(centroid_KT[sums.count_K.argmax()], sample_ST[0], rtol=1e-5)
