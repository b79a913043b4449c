"""Rankings of the pool: the subset for budget B is the first B rows of a ranking.

Every ranking is made of one step, `_water_filled`, which is Algorithm 1 of S2L for all budgets at
once. Order among equals comes from a hash of seed and example key, so no ranking depends on the
order of rows. Two examples with one 64-bit key (probability about N^2 / 2^65) stay in row order.

Shape letters: N examples, G groups (clusters, strata or cells).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from s2l_ray.errors import ConfigError, DataError
from s2l_ray.maths import hashing

_SELECTION = 0x5E1EC7
"""Salt that keeps the order of selection apart from other uses of the same seed."""

_SMALL_CLUSTER = 2
"""Clusters up to this size form the pooled tail of the authors' variant."""


@dataclass(frozen=True)
class Examples:
    """What a ranking may look at, one entry per example, in any order.

    Attributes:
        key_N: uint64 (N,), from `hashing.example_keys`.
        cluster_N: integer (N,), cluster numbers from 0.
        stratum_N: integer (N,), stratum numbers from 0; all equal where there are no strata.
    """

    key_N: np.ndarray
    cluster_N: np.ndarray
    stratum_N: np.ndarray

    def __post_init__(self) -> None:
        shapes = {self.key_N.shape, self.cluster_N.shape, self.stratum_N.shape}
        if len(shapes) > 1 or self.key_N.ndim != 1:
            raise ValueError(f"keys, clusters and strata must be of one length, not {shapes}")
        if self.key_N.dtype != np.uint64:
            raise ValueError(f"keys must be uint64, not {self.key_N.dtype}")
        if min(self.cluster_N.min(initial=0), self.stratum_N.min(initial=0)) < 0:
            raise ValueError("cluster and stratum numbers must not be negative")


class Ranking(Protocol):
    """A function from examples and a seed to order_N: order_N[r] is the row that holds rank r."""

    def __call__(self, examples: Examples, seed: int, *, stratify: bool) -> np.ndarray: ...


def s2l(examples: Examples, seed: int, *, stratify: bool) -> np.ndarray:
    """Rank examples so that every prefix is the subset of Algorithm 1 for its size.

    Args:
        examples: the pool, clustered.
        seed: decides the order inside each cluster.
        stratify: spread the budget over the strata first, by the same rule, and then inside a
            stratum over its clusters; the part of a cluster in one stratum counts as a cluster.

    Returns:
        order_N, int64 (N,): order_N[r] is the row that holds rank r. Among clusters (or strata)
        of one size, Algorithm 1 visits the lower number first.

    Source:
        Algorithm 1 of S2L, Yang et al. (2024), arXiv:2403.07384.
    """
    order_N = _water_filled(_cells(examples, stratify), _shuffled(examples, seed))
    return _water_filled(examples.stratum_N, order_N) if stratify else order_N


def s2l_authors(examples: Examples, seed: int, *, stratify: bool) -> np.ndarray:
    """Rank examples as the authors' code selects them: clusters of one or two come last.

    As `s2l`, but the clusters of at most two examples (in a stratum, when stratified) form one
    pool in hash order that is drawn on when all larger clusters are used up.

    Source:
        github.com/BigML-CS-UCLA/S2L, the code of arXiv:2403.07384.
    """
    cell_N = _cells(examples, stratify)
    shuffled_N = _shuffled(examples, seed)
    order_N = _water_filled(cell_N, shuffled_N)
    small_N = np.bincount(cell_N)[cell_N] <= _SMALL_CLUSTER
    order_N = np.concatenate([order_N[~small_N[order_N]], shuffled_N[small_N[shuffled_N]]])
    return _water_filled(examples.stratum_N, order_N) if stratify else order_N


def random(examples: Examples, seed: int, *, stratify: bool = False) -> np.ndarray:
    """Rank examples uniformly at random; clusters, strata and `stratify` change nothing."""
    return _shuffled(examples, seed)


def balanced_random(examples: Examples, seed: int, *, stratify: bool = True) -> np.ndarray:
    """Rank examples at random, evenly over strata: Algorithm 1 with strata for clusters.

    `stratify` changes nothing.

    Source:
        Source-balanced random selection of Ivison et al. (2025), arXiv:2503.01807.
    """
    return _water_filled(examples.stratum_N, _shuffled(examples, seed))


@dataclass(frozen=True)
class Method:
    """A row of the table of selectors."""

    ranking: Ranking
    description: str


METHODS: Mapping[str, Method] = {
    "s2l": Method(s2l, "even over clusters of loss trajectories (S2L, arXiv:2403.07384)"),
    "s2l-authors": Method(
        s2l_authors, "S2L as its authors' code has it: clusters of one or two examples last"
    ),
    "random": Method(random, "uniform over the pool"),
    "balanced-random": Method(balanced_random, "random, even over strata (arXiv:2503.01807)"),
}


def budget_rows(budget: int | float, num_rows: int) -> int:
    """The number of examples that `budget` stands for in a pool of `num_rows`.

    Args:
        budget: an integer is a number of examples; a float is a fraction of the pool, rounded
            down to whole examples, and at least one.
        num_rows: examples in the pool.

    Raises:
        ConfigError: the budget is not above zero, or a fraction above one.
        DataError: the budget is more than the pool, or the pool is empty.
    """
    if isinstance(budget, bool) or not budget > 0 or (isinstance(budget, float) and budget > 1):
        raise ConfigError(
            f"budget {budget} (pool: {num_rows:,} examples): give a number of examples "
            f"from 1 to {num_rows:,}, or a fraction above 0 and up to 1.0"
        )
    if isinstance(budget, float):
        # 0.29 * 100 is 28.999999999999996; whoever writes 0.29 means 29.
        num_wanted = max(1, math.floor(budget * num_rows + 1e-6))
    else:
        num_wanted = int(budget)
    if num_wanted > num_rows:
        raise DataError(
            f"budget {budget:,} is more than the pool of {num_rows:,} examples: "
            f"lower the budget or add data"
        )
    return num_wanted


def _shuffled(examples: Examples, seed: int) -> np.ndarray:
    return np.argsort(hashing.mixed(examples.key_N, seed, _SELECTION), kind="stable")


def _cells(examples: Examples, stratify: bool) -> np.ndarray:
    """Clusters numbered 0, 1, ... in order; when stratified, (stratum, cluster) pairs."""
    cluster_N = _numbered(examples.cluster_N)
    if not stratify:
        return cluster_N
    num_clusters = int(cluster_N.max(initial=0)) + 1
    return _numbered(_numbered(examples.stratum_N) * np.int64(num_clusters) + cluster_N)


def _numbered(group_N: np.ndarray) -> np.ndarray:
    """The same groups in the same order, numbered 0, 1, ... without gaps.

    In the narrowest dtype: pools are large, and up to 16 bits numpy sorts by radix.
    """
    if group_N.max(initial=0) > 4 * len(group_N):
        present_G, number_N = np.unique(group_N, return_inverse=True)
        return number_N.astype(np.min_scalar_type(len(present_G)))
    # The same without a sort, where a table of all numbers is about as long as the pool.
    number_G = np.cumsum(np.bincount(group_N) > 0) - 1
    return number_G.astype(np.min_scalar_type(len(number_G)))[group_N]


def _water_filled(group_N: np.ndarray, order_N: np.ndarray) -> np.ndarray:
    """Reorder `order_N` so that its prefixes take evenly from groups, as Algorithm 1 does.

    Inside a group the order stays. Algorithm 1 gives all groups the same quota, smallest group
    first, and what does not divide goes to those visited last. So the example in place p of its
    group comes before all in place p + 1, and in one place the group visited last comes first.
    """
    group_N = _numbered(group_N)
    size_G = np.bincount(group_N)
    visit_order_G = np.argsort(size_G, kind="stable")
    turn_G = np.empty_like(visit_order_G)
    turn_G[visit_order_G[::-1]] = np.arange(len(size_G))
    # (place, turn) as one integer; no two examples share it.
    turn_N = _places(group_N, size_G, order_N)
    turn_N *= len(size_G)
    turn_N += turn_G[group_N]
    return np.argsort(turn_N)


def _places(group_N: np.ndarray, size_G: np.ndarray, order_N: np.ndarray) -> np.ndarray:
    """How many of its group stand before each example in `order_N`."""
    grouped_N = order_N[np.argsort(group_N[order_N], kind="stable")]
    place_in_group_N = np.arange(len(order_N))
    place_in_group_N -= np.repeat(np.cumsum(size_G) - size_G, size_G)
    place_N = np.empty_like(order_N)
    place_N[grouped_N] = place_in_group_N
    return place_N
