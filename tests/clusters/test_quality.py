"""Silhouette and adjusted Rand index: scikit-learn is the oracle."""

import numpy as np
import pytest

from s2l_ray.clusters import quality
from tests.clusters.test_kmeans import trajectories

metrics = pytest.importorskip("sklearn.metrics")
RNG = np.random.default_rng(10)


@pytest.mark.parametrize("num_clusters", [2, 7, 60])
def test_the_silhouette_is_that_of_scikit_learn(num_clusters):
    loss_ST = trajectories(120)
    label_S = RNG.integers(0, num_clusters, 120) * 3
    expected = metrics.silhouette_score(loss_ST, label_S)
    assert quality.silhouette(loss_ST, label_S) == pytest.approx(expected, abs=1e-6)


def test_the_silhouette_of_equal_rows_is_zero():
    assert quality.silhouette(np.ones((6, 3)), np.array([0, 0, 0, 1, 1, 1])) == 0


def test_a_silhouette_needs_two_clusters():
    with pytest.raises(ValueError, match="two clusters, not 1"):
        quality.silhouette(trajectories(5), np.zeros(5, int))


@pytest.mark.parametrize(("first", "second"), [(2, 2), (5, 9), (1, 4), (40, 40), (1, 1)])
def test_the_rand_index_is_that_of_scikit_learn(first, second):
    label_S, other_S = RNG.integers(0, first, 40), 5 * RNG.integers(0, second, 40)
    expected = metrics.adjusted_rand_score(label_S, other_S)
    assert quality.adjusted_rand_index(label_S, other_S) == pytest.approx(expected)


def test_equal_clusterings_under_other_names_agree_wholly():
    label_S = RNG.integers(0, 6, 50)
    assert quality.adjusted_rand_index(label_S, 9 - label_S) == pytest.approx(1)
    assert quality.adjusted_rand_index(np.arange(50), np.arange(50)) == 1
