"""K-means: oracles are brute force in Python and numpy, and scikit-learn."""

from fractions import Fraction
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ray.clusters import kmeans, kmeans_plus_plus
from s2l_ray.clusters.kmeans import ClusterSums

RNG = np.random.default_rng(5)


def trajectories(
    num_rows: int, num_checkpoints: int = 6, *, rng: np.random.Generator = RNG
) -> np.ndarray:
    """Losses that fall from checkpoint to checkpoint, each row at its own pace."""
    start_N1 = rng.gamma(4.0, 0.8, size=(num_rows, 1))
    pace_N1 = rng.gamma(2.0, 0.1, size=(num_rows, 1))
    noise_NT = rng.normal(0, 0.05, size=(num_rows, num_checkpoints))
    loss_NT = start_N1 * np.exp(-pace_N1 * np.arange(num_checkpoints)) + noise_NT
    return np.abs(loss_NT).astype(np.float32)


def brute_force(loss_NT: np.ndarray, centroid_KT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sqdist_NK = np.zeros((len(loss_NT), len(centroid_KT)))
    for loss_N, centroid_K in zip(loss_NT.T, centroid_KT.T, strict=True):
        sqdist_NK += (loss_N[:, None].astype(np.float64) - centroid_K.astype(np.float64)) ** 2
    return sqdist_NK.argmin(axis=1), sqdist_NK.min(axis=1)


def assert_equals_brute_force(loss_NT: np.ndarray, centroid_KT: np.ndarray) -> None:
    label_N, sqdist_N = kmeans.nearest(loss_NT, centroid_KT)
    expected_label_N, expected_sqdist_N = brute_force(loss_NT, centroid_KT)
    assert (label_N.dtype, sqdist_N.dtype) == (np.int32, np.float64)
    np.testing.assert_array_equal(label_N, expected_label_N)
    np.testing.assert_array_equal(sqdist_N, expected_sqdist_N)


HARD_CASES = {
    "smooth": (trajectories(700), trajectories(40)),
    "one checkpoint": (trajectories(300, 1), trajectories(9, 1)),
    "one centroid": (trajectories(300), trajectories(1)),
    "many checkpoints": (trajectories(300, 64), trajectories(20, 64)),
    "exact ties": (
        RNG.integers(0, 3, size=(500, 4)).astype(np.float32),
        RNG.integers(0, 3, size=(30, 4)).astype(np.float32),
    ),
    "closer than float32 products tell": (
        (60_000 + RNG.integers(0, 4, size=(400, 5)) / 64).astype(np.float32),
        (60_000 + RNG.integers(0, 4, size=(20, 5)) / 64).astype(np.float32),
    ),
    "far outliers": (
        np.concatenate([trajectories(300), 60_000 + 100 * trajectories(5)]),
        np.concatenate([trajectories(20), 60_000 + 100 * trajectories(3)]),
    ),
    "below the squares of float32": (
        (1e-23 * RNG.integers(0, 50, size=(400, 3))).astype(np.float32),
        (1e-23 * RNG.integers(0, 50, size=(40, 3))).astype(np.float32),
    ),
    "more rows than are looked at at once": (trajectories(4_500, 3), trajectories(201, 3)),
    "all zero": (np.zeros((50, 3), np.float32), np.zeros((4, 3), np.float32)),
    "float64 losses and centroids": (
        trajectories(300).astype(np.float64),
        trajectories(12).astype(np.float64),
    ),
}


@pytest.mark.parametrize("case", HARD_CASES)
def test_labels_and_distances_equal_brute_force(case):
    assert_equals_brute_force(*HARD_CASES[case])


@settings(max_examples=50, deadline=None)
@given(data=st.data(), num_checkpoints=st.integers(1, 4))
def test_labels_and_distances_equal_brute_force_on_any_values(data, num_checkpoints):
    value = st.floats(-(2**16), 2**16, width=32) | st.integers(0, 4).map(float)
    row = st.lists(value, min_size=num_checkpoints, max_size=num_checkpoints)
    loss_NT, centroid_KT = (
        np.array(data.draw(st.lists(row, min_size=1, max_size=8)), dtype=np.float32)
        for _ in range(2)
    )
    assert_equals_brute_force(loss_NT, centroid_KT)


def test_ties_go_to_the_lowest_cluster():
    centroid_KT = np.array([[9.0], [3.0], [1.0], [1.0]], np.float32)
    label_N, sqdist_N = kmeans.nearest(np.array([[2.0], [1.0], [6.0]], np.float32), centroid_KT)
    assert label_N.tolist() == [1, 2, 0]
    assert sqdist_N.tolist() == [1.0, 0.0, 9.0]


@pytest.mark.parametrize("case", HARD_CASES)
@pytest.mark.parametrize("num_shards", [2, 7, 50])
def test_a_row_is_labelled_alike_whatever_stands_beside_it(case, num_shards):
    loss_NT, centroid_KT = HARD_CASES[case]
    row_N = RNG.permutation(len(loss_NT))
    cuts = np.sort(RNG.integers(0, len(loss_NT), size=num_shards - 1))
    parts = [kmeans.nearest(s, centroid_KT) for s in np.split(loss_NT[row_N], cuts)]
    label_N, sqdist_N = kmeans.nearest(loss_NT, centroid_KT)
    np.testing.assert_array_equal(np.concatenate([label for label, _ in parts]), label_N[row_N])
    np.testing.assert_array_equal(np.concatenate([sqdist for _, sqdist in parts]), sqdist_N[row_N])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e9])
def test_a_loss_that_is_no_loss_is_refused(bad):
    loss_NT = trajectories(20)
    loss_NT[[4, 7], 2] = bad
    with pytest.raises(ValueError, match=r"2 of 20 trajectories .* \(first rows: 4, 7\)"):
        kmeans.nearest(loss_NT, trajectories(3))
    for start in (kmeans.initial_centroids, kmeans.random_rows):
        with pytest.raises(ValueError, match="2 of 20 trajectories"):
            start(loss_NT, 3, seed=0)
    with pytest.raises(ValueError, match="2 of 20 centroids"):
        kmeans.summarise(trajectories(3), loss_NT)


def test_unlike_checkpoint_axes_are_refused():
    with pytest.raises(ValueError, match=r"axes differ: trajectories \(5, 6\), centroids \(2, 4\)"):
        kmeans.nearest(trajectories(5), trajectories(2, 4))
    with pytest.raises(ValueError, match="no centroids"):
        kmeans.nearest(trajectories(5), trajectories(0))


def test_sums_equal_sums_of_fractions():
    loss_NT, centroid_KT = trajectories(300), trajectories(7)
    sums = kmeans.summarise(loss_NT, centroid_KT)
    label_N, sqdist_N = brute_force(loss_NT, centroid_KT)
    for k in range(7):
        rows = np.flatnonzero(label_N == k)
        for t in range(6):
            exact = [round(Fraction(float(loss)) * 2**24) for loss in loss_NT[rows, t]]
            assert sums.loss_sum_KT[k, t] == sum(exact)
        exact = [round(Fraction(float(sqdist)) * 2**20) for sqdist in sqdist_N[rows]]
        assert sums.sqdist_sum_K[k] == sum(exact)
        assert sums.count_K[k] == len(rows)
    assert sums.inertia == pytest.approx(sqdist_N.sum(), rel=1e-6)


@pytest.mark.parametrize("num_shards", [1, 2, 7, 80])
def test_sums_do_not_depend_on_how_rows_are_sharded(num_shards):
    loss_NT = trajectories(73)
    whole = kmeans.summarise(loss_NT, loss_NT[:5])

    shards = np.array_split(RNG.permutation(loss_NT), num_shards)
    merged = reduce(ClusterSums.merge, (kmeans.summarise(s, loss_NT[:5]) for s in shards))

    np.testing.assert_array_equal(merged.loss_sum_KT, whole.loss_sum_KT)
    np.testing.assert_array_equal(merged.count_K, whole.count_K)
    np.testing.assert_array_equal(merged.sqdist_sum_K, whole.sqdist_sum_K)


def sums_of(num_rows: int, loss_nats: float, num_checkpoints: int = 12) -> ClusterSums:
    """What `num_rows` equal rows, each as far from its centroid as from zero, would sum to."""
    loss_sum = num_rows * round(loss_nats * 2**24)
    sqdist_sum = num_rows * num_checkpoints * round(loss_nats**2 * 2**20)
    return ClusterSums(
        np.full((1, num_checkpoints), loss_sum), np.array([num_rows]), np.array([sqdist_sum])
    )


def test_a_hundred_million_rows_of_64_nats_can_be_summed():
    half = sums_of(50_000_000, 64.0)
    whole = half + half
    assert kmeans.centroids(whole, np.zeros((1, 12))).tolist() == [[64.0] * 12]
    assert whole.inertia == 1e8 * 12 * 64.0**2


def test_sums_beyond_64_bits_are_an_error():
    half = sums_of(100_000_000, 64.0)
    with pytest.raises(ValueError, match="do not fit in 64 bits"):
        half.merge(half)
    far_NT = np.full((4096, 400), 60_000, np.float32)
    with pytest.raises(ValueError, match="do not fit in 64 bits"):
        kmeans.summarise(far_NT, np.zeros((1, 400), np.float32))


def test_no_rows_have_no_sums():
    sums = kmeans.summarise(np.zeros((0, 6), np.float32), trajectories(3))
    assert sums.count_K.tolist() == [0, 0, 0]
    assert not sums.loss_sum_KT.any()


def test_centroids_are_means_and_an_empty_cluster_keeps_its_own():
    loss_NT = trajectories(90)
    previous_KT = np.concatenate([loss_NT[:4], np.full((1, 6), 500, np.float32)])
    moved_KT = kmeans.centroids(kmeans.summarise(loss_NT, previous_KT), previous_KT)
    label_N, _ = brute_force(loss_NT, previous_KT)
    for k in range(4):
        mean_T = loss_NT[label_N == k].mean(axis=0, dtype=np.float64)
        np.testing.assert_allclose(moved_KT[k], mean_T, rtol=1e-6)
    np.testing.assert_array_equal(moved_KT[4], previous_KT[4])
    assert moved_KT.dtype == np.float32


def test_sweeps_do_not_raise_the_inertia_and_come_to_rest():
    loss_NT = trajectories(400)
    centroid_KT, inertias = loss_NT[:8], []
    for _ in range(100):
        sums = kmeans.summarise(loss_NT, centroid_KT)
        inertias.append(sums.inertia)
        previous_KT, centroid_KT = centroid_KT, kmeans.centroids(sums, centroid_KT)
        if np.array_equal(previous_KT, centroid_KT):
            break
    assert len(inertias) < 100
    assert np.all(np.diff(inertias) <= 1e-6 * inertias[0])


@pytest.mark.parametrize("case", HARD_CASES)
def test_followed_sums_and_labels_are_those_from_scratch(case):
    loss_NT, centroid_KT = HARD_CASES[case]
    centroid_KT = centroid_KT.astype(np.float32)
    followed = kmeans.TrackedRows(loss_NT)
    for sweep, num_rows in enumerate([40, 40, len(loss_NT), len(loss_NT), None, None]):
        found, expected = (
            followed.sums(centroid_KT, num_rows),
            kmeans.summarise(loss_NT[:num_rows], centroid_KT),
        )
        for name in ("loss_sum_KT", "count_K", "sqdist_sum_K"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        centroid_KT = kmeans.centroids(found, centroid_KT)
        if sweep == 3:
            # A jump, after which no bound can hold.
            centroid_KT = np.flip(centroid_KT, axis=0) + np.float32(0.25)
    expected_label_N, expected_sqdist_N = brute_force(loss_NT.astype(np.float32), centroid_KT)
    label_N, sqdist_N = followed.nearest(centroid_KT)
    np.testing.assert_array_equal(label_N, expected_label_N)
    np.testing.assert_array_equal(sqdist_N, expected_sqdist_N)


def test_followed_labels_equal_brute_force_while_centroids_creep():
    loss_NT = trajectories(2_000, 5)
    followed, centroid_KT = kmeans.TrackedRows(loss_NT), loss_NT[:60]
    for step in range(30):
        label_N, sqdist_N = followed.nearest(centroid_KT)
        expected_label_N, expected_sqdist_N = brute_force(loss_NT, centroid_KT)
        np.testing.assert_array_equal(label_N, expected_label_N)
        np.testing.assert_array_equal(sqdist_N, expected_sqdist_N)
        size = 10.0 ** -(step % 6)
        centroid_KT = np.abs(centroid_KT + RNG.normal(0, size, centroid_KT.shape)).astype("f4")
        # One is an outlier's, and comes back as a neighbour.
        centroid_KT[step % 7] = loss_NT[step] * (9 if step % 2 else 1)


def test_the_gain_is_the_fall_of_the_inertia_with_fixed_labels():
    loss_NT = trajectories(300)
    centroid_KT = loss_NT[:7]
    sums = kmeans.summarise(loss_NT, centroid_KT)
    moved_KT = kmeans.centroids(sums, centroid_KT)
    label_N, sqdist_N = brute_force(loss_NT, centroid_KT)
    after = ((loss_NT.astype(np.float64) - moved_KT[label_N]) ** 2).sum()
    assert kmeans.gain(sums, centroid_KT, moved_KT) == pytest.approx(sqdist_N.sum() - after, 1e-4)


@pytest.mark.parametrize(("num_rows", "num_checkpoints"), [(700, 6), (128, 4), (5, 1)])
@pytest.mark.parametrize("num_centroids", [2, 9, 60])
def test_a_start_is_greedy_k_means_plus_plus(num_rows, num_checkpoints, num_centroids):
    sample_ST, weight_S = trajectories(num_rows, num_checkpoints), RNG.integers(1, 9, num_rows)
    num_centroids = min(num_centroids, num_rows)
    num_candidates = 2 + int(np.log(num_centroids))
    uniforms = kmeans_plus_plus.uniforms(num_centroids * num_candidates, 3, 1)

    share_S, sqdist_S, chosen = weight_S / weight_S.sum(), np.full(num_rows, np.inf), []
    for uniform_C in uniforms.reshape(num_centroids, -1):
        # The first row is drawn without a choice.
        drawn = np.searchsorted(share_S.cumsum(), uniform_C if chosen else uniform_C[:1], "right")
        new_CS = ((sample_ST[drawn, None].astype(np.float64) - sample_ST) ** 2).sum(axis=2)
        left_CS = np.minimum(sqdist_S, new_CS)
        best = (left_CS * weight_S).sum(axis=1).argmin()
        chosen.append(drawn[best])
        sqdist_S = left_CS[best]
        share_S = weight_S * sqdist_S / max((weight_S * sqdist_S).sum(), 1e-300)

    found_KT = kmeans_plus_plus.plus_plus(sample_ST, weight_S, num_centroids, 3, 1)
    np.testing.assert_array_equal(found_KT, sample_ST[chosen])


@pytest.mark.parametrize("num_clusters", [1, 5, 40])
def test_the_start_does_not_depend_on_row_order(num_clusters):
    sample_ST = trajectories(150)
    first_KT = kmeans.initial_centroids(sample_ST, num_clusters, seed=1)
    again_KT = kmeans.initial_centroids(RNG.permutation(sample_ST), num_clusters, seed=1)
    np.testing.assert_array_equal(first_KT, again_KT)
    assert (first_KT.shape, first_KT.dtype) == ((num_clusters, 6), np.float32)


def test_the_start_depends_on_the_seed():
    sample_ST = trajectories(200)
    first_KT, second_KT = (kmeans.initial_centroids(sample_ST, 20, seed) for seed in (1, 2))
    assert not np.array_equal(first_KT, second_KT)


def test_there_are_no_more_centroids_than_distinct_rows():
    distinct_ST = trajectories(9)
    sample_ST = RNG.permutation(np.repeat(distinct_ST, 4, axis=0))
    centroid_KT = kmeans.initial_centroids(sample_ST, 100, seed=0)
    found_KT, expected_KT = (rows[np.lexsort(rows.T)] for rows in (centroid_KT, distinct_ST))
    np.testing.assert_allclose(found_KT, expected_KT, atol=1e-6)
    assert kmeans.initial_centroids(np.full((30, 3), 2.5), 7, seed=0).tolist() == [[2.5] * 3]


def test_one_centroid_is_the_mean():
    sample_ST = trajectories(80)
    centroid_KT = kmeans.initial_centroids(sample_ST, 1, seed=0)
    np.testing.assert_allclose(centroid_KT[0], sample_ST.mean(axis=0), rtol=1e-5)


def test_far_outliers_get_centroids_of_their_own():
    sample_ST = np.concatenate([trajectories(200), np.full((2, 6), [[9_000.0], [60_000.0]])])
    centroid_KT = kmeans.initial_centroids(sample_ST, 6, seed=0)
    assert kmeans.nearest(sample_ST[-2:].astype(np.float32), centroid_KT)[1].max() < 1e-6


@pytest.mark.parametrize("start", [kmeans.initial_centroids, kmeans.random_rows])
@pytest.mark.parametrize(("num_rows", "num_clusters"), [(0, 3), (5, 0)])
def test_a_start_from_nothing_is_refused(start, num_rows, num_clusters):
    with pytest.raises(ValueError, match=f"{num_clusters} centroids from {num_rows} rows"):
        start(trajectories(num_rows), num_clusters, seed=0)


def test_rows_nearer_than_float32_can_square_give_fewer_centroids():
    sample_ST = np.array([[0.0], [1e-30], [2e-30]], np.float32)
    assert len(kmeans.initial_centroids(sample_ST, 3, 0)) == 1


def test_an_outlier_is_refused_or_not_however_rows_are_shared_out():
    far_NT = np.full((90, 12), kmeans.MAX_LOSS_NATS, np.float32)
    centroid_KT = np.zeros((1, 12), np.float32)
    halves = [kmeans.summarise(half_NT, centroid_KT) for half_NT in np.split(far_NT, 2)]
    assert (halves[0] + halves[1]).inertia == kmeans.summarise(far_NT, centroid_KT).inertia


def test_sums_after_an_error_start_afresh(monkeypatch):
    loss_NT = trajectories(2_000)
    followed = kmeans.TrackedRows(loss_NT)
    followed.sums(loss_NT[:20])

    def fails(*_):
        raise MemoryError

    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(kmeans.kernels, "update", fails)
        followed.sums(loss_NT[20:40])
    found, expected = followed.sums(loss_NT[20:40]), kmeans.summarise(loss_NT, loss_NT[20:40])
    np.testing.assert_array_equal(found.loss_sum_KT, expected.loss_sum_KT)
    np.testing.assert_array_equal(found.sqdist_sum_K, expected.sqdist_sum_K)


def test_a_weight_is_as_many_equal_rows():
    loss_NT = trajectories(300)
    weight_N = RNG.integers(1, 6, size=300)
    repeated_NT = np.repeat(loss_NT, weight_N, axis=0)
    followed, repeated = kmeans.TrackedRows(loss_NT, weight_N), kmeans.TrackedRows(repeated_NT)
    centroid_KT = loss_NT[:6]
    for _ in range(4):
        found, expected = followed.sums(centroid_KT), repeated.sums(centroid_KT)
        for name in ("loss_sum_KT", "count_K", "sqdist_sum_K"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        centroid_KT = kmeans.centroids(found, centroid_KT)


def test_fewer_rows_than_the_last_time_are_summed_from_scratch():
    loss_NT = trajectories(200)
    followed = kmeans.TrackedRows(loss_NT)
    followed.sums(loss_NT[:4])
    found, expected = followed.sums(loss_NT[:4], 50), kmeans.summarise(loss_NT[:50], loss_NT[:4])
    np.testing.assert_array_equal(found.loss_sum_KT, expected.loss_sum_KT)
    np.testing.assert_array_equal(found.count_K, expected.count_K)


def test_a_weighted_start_does_not_depend_on_row_order():
    sample_ST, weight_S = trajectories(150), RNG.integers(1, 9, size=150)
    first_KT = kmeans.initial_centroids(sample_ST, 7, 1, weight_S)
    order = RNG.permutation(150)
    again_KT = kmeans.initial_centroids(sample_ST[order], 7, 1, weight_S[order])
    np.testing.assert_array_equal(first_KT, again_KT)
    assert not np.array_equal(first_KT, kmeans.initial_centroids(sample_ST, 7, 1))


@pytest.mark.parametrize("num_clusters", [5, 30])
def test_the_mean_inertia_is_within_two_percent_of_scikit_learns(num_clusters):
    cluster = pytest.importorskip("sklearn.cluster")
    ratios = []
    for seed in range(3):
        sample_ST = trajectories(1_500, rng=np.random.default_rng(seed))
        centroid_KT = kmeans.initial_centroids(sample_ST, num_clusters, seed)
        theirs = cluster.KMeans(num_clusters, n_init=3, random_state=0).fit(sample_ST).inertia_
        ratios.append(kmeans.summarise(sample_ST, centroid_KT).inertia / theirs)
    assert np.mean(ratios) <= 1.02
