"""How many clusters there are: data whose number is known is the oracle."""

import math
import re

import numpy as np
import pytest

from s2l_ray.clusters import kmeans
from s2l_ray.clusters import num_clusters as choosing
from s2l_ray.clusters.num_clusters import Trials

ONES = np.ones(10**5, np.int64)


def known(num_clusters: int, num_rows: int, num_checkpoints: int, seed: int) -> np.ndarray:
    """Rows around so many centres, the nearest of which are ten standard deviations apart.

    Sizes differ by up to a factor of four.
    """
    rng = np.random.default_rng(seed)
    centre_KT = rng.gamma(2.0, size=(num_clusters, num_checkpoints))
    apart_KK = np.sqrt(((centre_KT[:, None] - centre_KT) ** 2).sum(axis=2))
    least = apart_KK[~np.eye(num_clusters, dtype=bool)].min()
    share_K = rng.uniform(1, 4, num_clusters)
    label_N = rng.choice(num_clusters, num_rows, p=share_K / share_K.sum())
    noise_NT = rng.normal(0, least / 10, (num_rows, num_checkpoints))
    return (centre_KT[label_N] + noise_NT).astype(np.float32)


def attempt(loss_ST: np.ndarray, most: int = 256, seed: int = 3) -> Trials:
    return choosing.try_ladder(loss_ST, ONES[: len(loss_ST)], most=most, seed=seed)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("num_clusters", "num_rows", "num_checkpoints", "expected"),
    [
        (2, 400, 3, 2),
        (4, 1_000, 12, 4),
        (8, 2_000, 4, 8),
        (16, 3_000, 6, 16),
        (45, 6_000, 12, 45),
        # Between two rungs of the ladder it is the next one that has a centroid for each.
        (5, 1_000, 6, 6),
        (20, 3_000, 6, 23),
    ],
)
def test_as_many_clusters_are_chosen_as_there_are(
    num_clusters, num_rows, num_checkpoints, expected, seed
):
    tried = attempt(known(num_clusters, num_rows, num_checkpoints, seed))
    assert tried.num_clusters[-1] > expected and tried.chosen == expected


def test_clusters_in_groups_that_are_far_apart_are_told_apart():
    rng = np.random.default_rng(0)
    centre_KT = np.concatenate(
        [20 * far_T + rng.gamma(2.0, size=(16, 6)) for far_T in np.eye(4, 6)]
    )
    loss_ST = centre_KT[rng.integers(0, 64, 8_000)] + rng.normal(0, 0.02, (8_000, 6))
    assert attempt(loss_ST.astype(np.float32)).chosen == 64


NOISE = {
    "normal": lambda rng, shape: rng.normal(3, 1, shape),
    "uniform": lambda rng, shape: rng.uniform(0, 5, shape),
    "exponential": lambda rng, shape: rng.exponential(1, shape),
    "Laplace": lambda rng, shape: rng.laplace(0, 1, shape),
    "Student": lambda rng, shape: rng.standard_t(3, shape),
}


@pytest.mark.parametrize("num_checkpoints", [2, 3, 4, 6, 12])
@pytest.mark.parametrize("name", NOISE)
def test_rows_that_are_all_noise_are_one_cluster(name, num_checkpoints):
    noise_ST = NOISE[name](np.random.default_rng(1), (3_000, num_checkpoints))
    assert attempt(noise_ST.astype(np.float32)).chosen == 1


def test_coarse_steps_that_gain_little_do_not_end_the_search():
    tried = attempt(known(64, 8_000, 12, seed=0))
    assert tried.gains()[0] < tried.least_gain and tried.chosen == 64


def test_rows_that_differ_in_a_few_ways_without_gaps_are_described_by_many_clusters():
    rng = np.random.default_rng(0)
    level_S1, height_S1, speed_S1 = rng.gamma(2.0, size=(3, 4_000, 1))
    loss_ST = level_S1 + height_S1 * np.exp(-3 * speed_S1 * np.linspace(0, 1, 12))
    assert attempt(loss_ST.astype(np.float32)).chosen >= 64


@pytest.mark.parametrize(
    ("loss_ST", "chosen"),
    [
        (np.full((200, 4), 1.5), 1),
        (np.array([[0.0, 1], [5, 1], [9, 3]]), 1),
        (np.array([[2.0]]), 1),
        (
            np.repeat([[0.5], [2.0], [7.0]], 40, axis=0)[np.random.default_rng(0).permutation(120)],
            3,
        ),
    ],
    ids=["equal", "three rows", "one row", "three losses at one checkpoint"],
)
def test_too_little_to_tell_apart_is_one_cluster_or_as_many_as_are_distinct(loss_ST, chosen):
    tried = attempt(loss_ST.astype(np.float32))
    assert tried.chosen == chosen
    assert np.isfinite([*tried.spread, *tried.gains()]).all()
    assert choosing.sentence({"": tried})


@pytest.mark.parametrize("seed", range(3))
def test_a_few_rows_like_no_other_do_not_hide_what_the_others_are(seed):
    loss_ST = known(16, 3_000, 6, seed)
    # In the half that is judged: of the other half, each would have a centroid of its own.
    strange_S = np.arange(7, 3_000, 800)
    loss_ST[strange_S] = np.random.default_rng(seed).normal(0, 60, (len(strange_S), 6))
    assert attempt(loss_ST).chosen == 16


@pytest.mark.parametrize("num_rows", [100, 200, 390])
@pytest.mark.parametrize("seed", [0, 1])
def test_one_row_like_no_other_does_not_hide_the_few_others(num_rows, seed):
    loss_ST = known(4, num_rows, 6, seed)
    loss_ST[7] = np.random.default_rng(seed).normal(0, 60, 6)
    assert attempt(loss_ST).chosen == 4


def test_the_ladder_is_powers_of_the_root_of_two_up_to_what_the_rows_allow():
    rungs = [1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256]
    assert choosing.ladder(10**6, 256) == rungs
    assert choosing.ladder(10**6, 255) == rungs[:-1]
    assert choosing.ladder(8 * 23, 256) == rungs[:9]
    assert choosing.ladder(8 * 23 - 1, 256) == rungs[:8]
    assert choosing.ladder(0, 256) == [1]


def test_the_spread_is_that_of_the_rows_that_centroids_were_not_fitted_to():
    loss_ST = known(3, 160, 4, seed=1)
    weight_S = np.random.default_rng(1).integers(1, 9, 160)
    tried = choosing.try_ladder(loss_ST, weight_S, most=4, seed=5)

    fitted, judged_ST, judged_S = slice(0, None, 2), loss_ST[1::2].astype(float), weight_S[1::2]
    inertia = []
    for wanted in (1, 2, 3, 4):
        centroid_KT = kmeans.initial_centroids(loss_ST[fitted], wanted, 5, weight_S[fitted])
        sqdist_SK = ((judged_ST[:, None] - centroid_KT.astype(float)) ** 2).sum(axis=2)
        left, total = max(zip(sqdist_SK.min(axis=1), judged_S, strict=True))[1], 0.0
        farthest_first = sorted(zip(sqdist_SK.min(axis=1), judged_S, strict=True))[::-1]
        for sqdist, weight in farthest_first[1:]:  # one is left out in any case
            left += weight
            total += weight * sqdist if left > 0.005 * judged_S.sum() else 0
        inertia.append(total)
    assert list(tried.num_clusters) == [1, 2, 3, 4]
    np.testing.assert_allclose(tried.spread, np.array(inertia) / inertia[0], rtol=1e-4)


def test_no_more_rows_are_tried_than_there_is_time_for(monkeypatch):
    monkeypatch.setattr(choosing, "ROWS_TRIED", 100)
    loss_ST = known(4, 1_000, 4, seed=2)
    every_tenth = attempt(loss_ST, most=3)
    monkeypatch.setattr(choosing, "ROWS_TRIED", 1_000)
    assert attempt(loss_ST[::10], most=3) == every_tenth


def test_a_gain_is_per_doubling_and_the_last_that_is_large_enough_counts():
    tried = Trials([1, 2, 4, 8, 11], [1.0, 0.9, 0.3, 0.15, 0.14], least_gain=0.25)

    # From 1 to 4 it is two doublings.
    expected = [0.1, 1 - 0.3**0.5, 0.5, 1 - (0.14 / 0.15) ** (1 / math.log2(11 / 8))]
    assert tried.gains() == pytest.approx(expected)
    assert tried.chosen == 8


def test_a_rung_that_makes_good_for_a_bad_one_before_it_gains_little():
    tried = Trials([1, 2, 4, 8, 16], [1.0, 0.4, 0.38, 0.6, 0.36], least_gain=0.25)
    assert tried.gains()[3] == pytest.approx(1 - (0.36 / 0.38) ** 0.5)
    assert tried.chosen == 2


@pytest.mark.parametrize("num_checkpoints", [1, 2, 3, 4, 5, 12])
def test_what_a_doubling_must_gain_is_what_noise_of_half_the_dimensions_does(num_checkpoints):
    # A cube cut into 2^D: twice as many cells, D times over, and half as wide.
    expected = max(0.25, 1 - 0.25 ** (1 / (num_checkpoints / 2)))
    assert choosing.least_gain(num_checkpoints) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("tried", "words"),
    [
        (
            {"": Trials([1, 2, 3], [1, 0.5, 0.45], 0.25)},
            "2 clusters: .* by 25% .there by 50%; beyond by 16% at most",
        ),
        ({"": Trials([1, 2], [1, 0.5], 0.25)}, "2 clusters: .*no larger number was tried"),
        ({"": Trials([1, 2], [1, 0.9], 0.25)}, "1 cluster: no doubling lowers .* by 25%$"),
        ({"": Trials([1], [1], 0.25)}, "1 cluster: .*too few rows, or too few that differ"),
        ({"code": Trials([1, 2], [1, 0.9], 0.25)}, "1 cluster in stratum 'code': no doubling"),
        (
            {"a": Trials([1, 2], [1, 0.5], 0.25), "b": Trials([1, 2], [1, 1], 0.25)},
            "1 to 2 clusters in each of 2 strata: .*; in 1 of them also the largest number tried",
        ),
        (
            {name: Trials([1, 2], [1, 0.5], 0.25) for name in "ab"},
            "2 clusters in each of 2 strata:",
        ),
    ],
)
def test_the_choice_is_told_with_its_reason(tried, words):
    assert re.search(f"auto chose {words}", choosing.sentence(tried))
