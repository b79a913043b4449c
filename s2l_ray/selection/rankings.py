"""Functions that rank the pool, one for each method of selection; `methods` has their table.

The subset for budget B is the first B rows of a ranking. Even spreading is one step,
`water_filled`: Algorithm 1 of S2L for all budgets at once. Order among equals comes from a hash of
seed and example key, so no ranking depends on the order of rows. Two examples with the same 64-bit
key (probability about N^2 / 2^65) stay in row order.

Shape letters: N examples.
"""

import numpy as np

from s2l_ray import hashing
from s2l_ray.selection.examples import Examples
from s2l_ray.selection.water_filling import Quotas, numbered, water_filled, weighted

_SELECTION = 0x5E1EC7
"""Salt: selection gets other random numbers than other uses of the same seed."""

_SMALL_CLUSTER = 2
"""Clusters up to this size form the pool that comes last in the authors' variant."""


def s2l(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples so that every prefix is the subset of Algorithm 1 for its size.

    Args:
        examples: the pool, clustered.
        seed: decides the order inside each cluster, among examples with equal `inside_N`.
        stratify: spread the budget over the strata first, by the same rule, and then inside a
            stratum over its clusters. The part of a cluster in one stratum counts as a cluster.
        quotas: spread the budget over the strata by these quotas instead.

    Returns:
        order_N, int64 (N,): order_N[r] is the row that has rank r. Among clusters (or strata) of
        equal size, Algorithm 1 visits the lower number first.

    Source:
        Algorithm 1 of S2L, Yang et al. (2024), arXiv:2403.07384.
    """
    inside_N = _shuffled(examples, seed)
    if examples.inside_N is not None:
        inside_N = _increasing(examples.inside_N, inside_N)
    order_N = water_filled(_cells(examples, stratify), inside_N)
    return over_strata(examples, order_N, quotas) if stratify else order_N


def s2l_authors(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples as the authors' code selects them: clusters of one or two come last.

    As `s2l`, but the clusters of at most two examples (in a stratum, if stratified) form one pool
    in hash order. It is drawn on when all larger clusters are used up.

    Source:
        github.com/BigML-CS-UCLA/S2L, the code of arXiv:2403.07384.
    """
    cell_N = _cells(examples, stratify)
    shuffled_N = _shuffled(examples, seed)
    order_N = water_filled(cell_N, shuffled_N)
    small_N = np.bincount(cell_N)[cell_N] <= _SMALL_CLUSTER
    order_N = np.concatenate([order_N[~small_N[order_N]], shuffled_N[small_N[shuffled_N]]])
    return over_strata(examples, order_N, quotas) if stratify else order_N


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
    return over_strata(examples, _shuffled(examples, seed), quotas)


def least_confidence(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples by their loss at the last checkpoint, highest first.

    The loss is the mean over the response's tokens, so this is the order of perplexity, and that
    of decreasing uncertainty of the fully trained reference.

    Source:
        The baseline of that name in S2L, arXiv:2403.07384.
    """
    return _by(-examples.numbers["last_loss"], examples, seed, stratify, quotas)


def middle_perplexity(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples by how near their loss at the last checkpoint is to the pool's median.

    The median is that of all examples, stratified or not; in a pool of even size the mean of the
    two in the middle.

    Source:
        Keeping the middle of the perplexities is Marion et al. (2023), arXiv:2309.04564.
    """
    loss_N = examples.numbers["last_loss"].astype(np.float64)
    median = np.median(loss_N) if len(loss_N) else 0.0
    return _by(np.abs(loss_N - median), examples, seed, stratify, quotas)


def quantile_perplexity(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples by how near the rank of their last loss is to a quantile of the pool.

    The order is that of |r / N - q| for q = `settings["quantile"]`, where r is the number of
    examples with a lower loss, plus half of those with the same one. Ranks are those among all
    examples, stratified or not.

    Source:
        Quantiles of perplexity, where Marion et al. (2023), arXiv:2309.04564, keep the middle.
    """
    loss_N = examples.numbers["last_loss"]
    sorted_N = np.sort(loss_N)
    below_N = np.searchsorted(sorted_N, loss_N, side="left")
    rank_N = (below_N + np.searchsorted(sorted_N, loss_N, side="right")) / 2
    distance_N = np.abs(rank_N / max(len(loss_N), 1) - examples.settings["quantile"])
    return _by(distance_N, examples, seed, stratify, quotas)


def high_learnability(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples by how much their loss falls from first to last checkpoint, most first.

    Source:
        The baseline of that name in S2L, arXiv:2403.07384.
    """
    return _by(-examples.numbers["loss_drop"], examples, seed, stratify, quotas)


def confidence_curriculum(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples by the reference's confidence over its training, most confident first.

    Confidence is the mean over the checkpoints of exp(-loss), the probability of a response token
    (the geometric mean over the response). A prefix is the beginning of a curriculum from easy to
    hard.

    Source:
        The instance-level curriculum by confidence of Varshney, Mishra and Baral (2022),
        arXiv:2205.09898, a baseline of S2L; neither says how it becomes a subset, so the ranking
        is ours.
    """
    return _by(-examples.numbers["confidence"], examples, seed, stratify, quotas)


def ambiguous(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples by how much the reference's confidence varies over its training, most first.

    The variability is the standard deviation over the checkpoints of exp(-loss).

    Source:
        The ambiguous examples of Swayamdipta et al. (2020), arXiv:2009.10795, who use the
        probability of the right class.
    """
    return _by(-examples.numbers["variability"], examples, seed, stratify, quotas)


def ifd(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples by their instruction-following difficulty below 1, highest first.

    It is the loss of the response divided by its loss without the prompt. From 1 on the prompt
    does not help, so these examples come last, the lowest of them first.

    Source:
        IFD of Li et al. (2023), arXiv:2308.12032, who leave out those above 1.
    """
    ifd_N = examples.numbers["ifd"]
    return _by(np.where(ifd_N < 1, -ifd_N, ifd_N), examples, seed, stratify, quotas)


def score(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples by a score that somebody else computed; see `scores.read`."""
    return _by(examples.numbers["score"], examples, seed, stratify, quotas)


def longest_responses(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples by the number of tokens of their response, most first.

    Source:
        Zhao et al. (2024), arXiv:2402.04833.
    """
    return _by(-examples.numbers["response_tokens"], examples, seed, stratify, quotas)


def el2n(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples by their error norm early in the training, highest first.

    The error norm is the mean over the response's tokens of ||softmax(logits) - onehot(token)||_2
    at one checkpoint. The paper, which has one label for each example, prunes the lowest.

    Source:
        EL2N of Paul, Ganguli and Dziugaite (2021), arXiv:2107.07075.
    """
    return _by(-examples.numbers["error_norm"], examples, seed, stratify, quotas)


def facility_location(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples in the order of greedy maximisation of facility location on embeddings.

    Every prefix covers the pool about as well as a subset of its size can; see
    `facility_location.gains`.

    Source:
        Wei, Iyer and Bilmes (2015); on hidden states, a baseline of S2L, arXiv:2403.07384.
    """
    # Imported here: compiled code takes a second to load, which `s2l --help` should not spend.
    from s2l_ray.selection.facility_location import gains

    gain_N = gains(examples.vectors["embeddings"], _shuffled(examples, seed))
    return _by(-gain_N, examples, seed, stratify, quotas)


def rds_plus(
    examples: Examples, seed: int, *, stratify: bool, quotas: Quotas | None = None
) -> np.ndarray:
    """Rank examples by the cosines of their embeddings with those of queries, which take turns.

    Source:
        RDS+ of Ivison et al. (2025), arXiv:2503.01807, on the reference's hidden states.
    """
    from s2l_ray.selection import rds  # imported here for the same reason

    vectors = examples.vectors
    turn_N = rds.round_robin(vectors["embeddings"], vectors["queries"], _shuffled(examples, seed))
    return _by(turn_N, examples, seed, stratify, quotas)


def over_strata(examples: Examples, order_N: np.ndarray, quotas: Quotas | None) -> np.ndarray:
    """Reorder `order_N` so that its prefixes take from strata evenly, or by quotas.

    Inside a stratum the order stays.
    """
    if quotas is None:
        return water_filled(examples.stratum_N, order_N)
    return weighted(examples.stratum_N, order_N, quotas)


def _by(
    value_N: np.ndarray, examples: Examples, seed: int, stratify: bool, quotas: Quotas | None
) -> np.ndarray:
    """Rank by increasing `value_N`, equal ones in the order of their hashes."""
    order_N = _increasing(value_N, _shuffled(examples, seed))
    return over_strata(examples, order_N, quotas) if stratify else order_N


def _increasing(value_N: np.ndarray, order_N: np.ndarray) -> np.ndarray:
    """Return `order_N` sorted by the values of its rows; equal ones stay in order."""
    return order_N[np.argsort(value_N[order_N], kind="stable")]


def _shuffled(examples: Examples, seed: int) -> np.ndarray:
    return np.argsort(hashing.mixed(examples.key_N, seed, _SELECTION), kind="stable")


def _cells(examples: Examples, stratify: bool) -> np.ndarray:
    """Return the clusters, or (stratum, cluster) pairs if stratified, numbered 0, 1, ..."""
    cluster_N = numbered(examples.cluster_N)
    if not stratify:
        return cluster_N
    stratum_N = numbered(examples.stratum_N)
    num_clusters, num_strata = (int(n.max(initial=0)) + 1 for n in (cluster_N, stratum_N))
    cell_N = stratum_N.astype(np.min_scalar_type(num_clusters * num_strata))
    cell_N *= cell_N.dtype.type(num_clusters)
    np.add(cell_N, cluster_N, out=cell_N, casting="unsafe")  # they may be of a wider type
    return numbered(cell_N)
