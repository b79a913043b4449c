"""Rankings of the pool: the subset for budget B is the first B rows of a ranking.

A method is one function from what is known of the examples to their order, and a row of METHODS.
Even spreading is one step, `filling.water_filled`, which is Algorithm 1 of S2L for all budgets at
once. Order among equals comes from a hash of seed and example key, so no ranking depends on the
order of rows. Two examples with one 64-bit key (probability about N^2 / 2^65) stay in row order.

Shape letters: N examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from s2l_ray import hashing
from s2l_ray.selection.water_filling import Quotas, numbered, water_filled, weighted

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
        values: by name, finite numbers (N,): those that a method needs (`Method.needs`).
        inside_N: finite numbers (N,), in increasing order of which `s2l` takes the examples of a
            cluster; None for an order at random.
        vectors: by name, finite (rows, H): those that a method compares (`Method.compares`);
            "embeddings" has a row for every example, "queries" one for every query.
    """

    key_N: np.ndarray
    cluster_N: np.ndarray
    stratum_N: np.ndarray
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    inside_N: np.ndarray | None = None
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = [self.key_N, self.cluster_N, self.stratum_N, *self.values.values()]
        columns += [] if self.inside_N is None else [self.inside_N]
        shapes = {column.shape for column in columns}
        if len(shapes) > 1 or self.key_N.ndim != 1:
            raise ValueError(f"keys, clusters and strata must be of one length, not {shapes}")
        if len(self.vectors.get("embeddings", self.key_N)) != len(self.key_N):
            raise ValueError("every example needs one embedding")
        if self.key_N.dtype != np.uint64:
            raise ValueError(f"keys must be uint64, not {self.key_N.dtype}")
        if min(self.cluster_N.min(initial=0), self.stratum_N.min(initial=0)) < 0:
            raise ValueError("cluster and stratum numbers must not be negative")


class Ranking(Protocol):
    """A function from examples and a seed to order_N: order_N[r] is the row that holds rank r.

    With `stratify`, the budget is first spread over the strata, evenly or as `quotas` (by stratum
    number) say, and the method's own order decides inside each.
    """

    def __call__(
        self, examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
    ) -> np.ndarray: ...


def s2l(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples so that every prefix is the subset of Algorithm 1 for its size.

    Args:
        examples: the pool, clustered.
        seed: decides the order inside each cluster, among examples of one `inside_N`.
        stratify: spread the budget over the strata first, by the same rule, and then inside a
            stratum over its clusters; the part of a cluster in one stratum counts as a cluster.
        quotas: spread it over the strata by this rule instead.

    Returns:
        order_N, int64 (N,): order_N[r] is the row that holds rank r. Among clusters (or strata)
        of one size, Algorithm 1 visits the lower number first.

    Source:
        Algorithm 1 of S2L, Yang et al. (2024), arXiv:2403.07384.
    """
    inside_N = _shuffled(examples, seed)
    if examples.inside_N is not None:
        inside_N = _increasing(examples.inside_N, inside_N)
    order_N = water_filled(_cells(examples, stratify), inside_N)
    return _over_strata(examples, order_N, quotas) if stratify else order_N


def s2l_authors(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples as the authors' code selects them: clusters of one or two come last.

    As `s2l`, but the clusters of at most two examples (in a stratum, when stratified) form one
    pool in hash order that is drawn on when all larger clusters are used up.

    Source:
        github.com/BigML-CS-UCLA/S2L, the code of arXiv:2403.07384.
    """
    cell_N = _cells(examples, stratify)
    shuffled_N = _shuffled(examples, seed)
    order_N = water_filled(cell_N, shuffled_N)
    small_N = np.bincount(cell_N)[cell_N] <= _SMALL_CLUSTER
    order_N = np.concatenate([order_N[~small_N[order_N]], shuffled_N[small_N[shuffled_N]]])
    return _over_strata(examples, order_N, quotas) if stratify else order_N


def random(
    examples: Examples, seed: int, *, stratify: bool = False, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples uniformly at random; clusters, strata and `quotas` change nothing."""
    return _shuffled(examples, seed)


def balanced_random(
    examples: Examples, seed: int, *, stratify: bool = True, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples at random, evenly over strata: Algorithm 1 with strata for clusters.

    `stratify` changes nothing; `quotas` may make it uneven.

    Source:
        Source-balanced random selection of Ivison et al. (2025), arXiv:2503.01807.
    """
    return _over_strata(examples, _shuffled(examples, seed), quotas)


def least_confidence(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples by their loss at the last checkpoint, highest first.

    The loss is the mean over the response's tokens, so this is the order of perplexity, and that
    of decreasing uncertainty of the fully trained reference.

    Source:
        The baseline of that name in S2L, arXiv:2403.07384.
    """
    return _by(-examples.values["last_loss"], examples, seed, stratify, quotas)


def middle_perplexity(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples by how near their loss at the last checkpoint is to the pool's median.

    The median is that of all examples, stratified or not; in a pool of even size the mean of the
    two in the middle.

    Source:
        Keeping the middle of the perplexities is Marion et al. (2023), arXiv:2309.04564.
    """
    loss_N = examples.values["last_loss"].astype(np.float64)
    median = np.median(loss_N) if len(loss_N) else 0.0
    return _by(np.abs(loss_N - median), examples, seed, stratify, quotas)


def high_learnability(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples by what their loss falls from the first checkpoint to the last, most first.

    Source:
        The baseline of that name in S2L, arXiv:2403.07384.
    """
    return _by(-examples.values["loss_drop"], examples, seed, stratify, quotas)


def confidence_curriculum(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples by the reference's confidence over its training, most confident first.

    Confidence is the mean over the checkpoints of exp(-loss), the probability of a response token
    (the geometric mean over the response). A prefix is what a curriculum from easy to hard begins
    with.

    Source:
        The instance-level curriculum by confidence of Varshney, Mishra and Baral (2022),
        arXiv:2205.09898, a baseline of S2L; neither says how it becomes a subset, so the ranking
        is ours.
    """
    return _by(-examples.values["confidence"], examples, seed, stratify, quotas)


def longest_responses(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples by the number of tokens of their response, most first.

    Source:
        Zhao et al. (2024), arXiv:2402.04833.
    """
    return _by(-examples.values["response_tokens"], examples, seed, stratify, quotas)


def el2n(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples by their error norm early in the training, highest first.

    It is the mean over the response's tokens of ||softmax(logits) - onehot(token)||_2 at one
    checkpoint; the paper, which has one label for each example, prunes the lowest.

    Source:
        EL2N of Paul, Ganguli and Dziugaite (2021), arXiv:2107.07075.
    """
    return _by(-examples.values["error_norm"], examples, seed, stratify, quotas)


def facility_location(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples as greedy maximisation of facility location takes them, by their embeddings.

    Every prefix covers the pool about as well as a subset of its size can: `coverage.gains`.

    Source:
        Wei, Iyer and Bilmes (2015); on hidden states, a baseline of S2L, arXiv:2403.07384.
    """
    # Compiled code takes a second to load, which `s2l --help` need not spend.
    from s2l_ray.selection import facility_location as coverage

    gain_N = coverage.gains(examples.vectors["embeddings"], _shuffled(examples, seed))
    return _by(-gain_N, examples, seed, stratify, quotas)


def rds_plus(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples by the likeness of their embeddings to those of queries, which take turns.

    Source:
        RDS+ of Ivison et al. (2025), arXiv:2503.01807, on the reference's hidden states.
    """
    from s2l_ray.selection import rds  # compiled code, as above

    vectors = examples.vectors
    turn_N = rds.round_robin(vectors["embeddings"], vectors["queries"], _shuffled(examples, seed))
    return _by(turn_N, examples, seed, stratify, quotas)


@dataclass(frozen=True)
class Method:
    """A row of the table of selectors."""

    ranking: Ranking
    description: str
    needs: tuple[str, ...] = ()
    """Names of the values that `ranking` looks at."""
    compares: tuple[str, ...] = ()
    """Names of the vectors that it compares."""
    ignores_strata: bool = False


METHODS: Mapping[str, Method] = {
    "s2l": Method(s2l, "even over clusters of loss trajectories (S2L, arXiv:2403.07384)"),
    "s2l-authors": Method(
        s2l_authors, "S2L as its authors' code has it: clusters of one or two examples last"
    ),
    "random": Method(random, "uniform over the pool", ignores_strata=True),
    "balanced-random": Method(balanced_random, "random, even over strata (arXiv:2503.01807)"),
    "least-confidence": Method(
        least_confidence, "highest loss at the last checkpoint first", ("last_loss",)
    ),
    "middle-perplexity": Method(
        middle_perplexity,
        "nearest to the median loss at the last checkpoint first (arXiv:2309.04564)",
        ("last_loss",),
    ),
    "high-learnability": Method(
        high_learnability, "greatest fall of the loss over the training first", ("loss_drop",)
    ),
    "confidence-curriculum": Method(
        confidence_curriculum,
        "most confident over the training first (arXiv:2205.09898)",
        ("confidence",),
    ),
    "longest-responses": Method(
        longest_responses,
        "most response tokens first (arXiv:2402.04833)",
        ("response_tokens",),
    ),
    "el2n": Method(
        el2n,
        "farthest-off predictions at the first checkpoint first (arXiv:2107.07075)",
        ("error_norm",),
    ),
    "facility-location": Method(
        facility_location,
        "what covers the rest best, by cosines of embeddings (Wei et al., 2015)",
        compares=("embeddings",),
    ),
    "rds-plus": Method(
        rds_plus,
        "most like the queries, which take turns, by cosines of embeddings (arXiv:2503.01807)",
        compares=("embeddings", "queries"),
    ),
}

WITHIN: Mapping[str, str | None] = {
    "random": None,
    "nearest": "sqdist",
    "lowest-variation": "variation",
}
"""Orders of the examples inside a cluster of `s2l`, and the value that `Examples.inside_N` is for
each: at random (S2L), by the distance to the centroid, and by the total variation of the
trajectory (XMAS, arXiv:2510.01454)."""


def _over_strata(examples: Examples, order_N: np.ndarray, quotas: Quotas | None) -> np.ndarray:
    if quotas is None:
        return water_filled(examples.stratum_N, order_N)
    return weighted(examples.stratum_N, order_N, quotas)


def _by(
    value_N: np.ndarray, examples: Examples, seed: int, stratify: bool, quotas: Quotas | None
) -> np.ndarray:
    """Increasing in `value_N`, equal ones in the order of their hashes; stratified if asked for."""
    order_N = _increasing(value_N, _shuffled(examples, seed))
    return _over_strata(examples, order_N, quotas) if stratify else order_N


def _increasing(value_N: np.ndarray, order_N: np.ndarray) -> np.ndarray:
    """`order_N` sorted by the values of its rows; equal ones stay in order."""
    return order_N[np.argsort(value_N[order_N], kind="stable")]


def _shuffled(examples: Examples, seed: int) -> np.ndarray:
    return np.argsort(hashing.mixed(examples.key_N, seed, _SELECTION), kind="stable")


def _cells(examples: Examples, stratify: bool) -> np.ndarray:
    """Clusters numbered 0, 1, ... in order; when stratified, (stratum, cluster) pairs."""
    cluster_N = numbered(examples.cluster_N)
    if not stratify:
        return cluster_N
    num_clusters = int(cluster_N.max(initial=0)) + 1
    return numbered(numbered(examples.stratum_N) * np.int64(num_clusters) + cluster_N)
