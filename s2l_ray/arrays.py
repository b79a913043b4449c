"""S2L on arrays: clusters and rankings of trajectories in memory, without Ray and without files.

For the same losses, ids, strata and seed the numbers are those of a run, bit for bit.

Shape letters: N examples, T checkpoints, K clusters of all strata.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from s2l_ray import hashing
from s2l_ray.clusters import kmeans, minibatch, sampling
from s2l_ray.clusters.held_rows import SAMPLE
from s2l_ray.clusters.worker import START
from s2l_ray.config.clusters import ClustersConfig
from s2l_ray.config.selection import SelectionConfig
from s2l_ray.errors import ConfigError, DataError, first
from s2l_ray.selection import methods, summaries
from s2l_ray.selection.examples import Examples

_ONE_STRATUM = ""


@dataclass(frozen=True, eq=False)
class Clusters:
    """Trajectories in clusters.

    Attributes:
        labels: int32 (N,), the cluster of each example. Numbers run through all strata.
        sqdist: float32 (N,), squared distance of each example to its centroid, nats squared.
        centroids: float32 (K, T), nats per token; strata in the order of their names.
    """

    labels: np.ndarray
    sqdist: np.ndarray
    centroids: np.ndarray


def cluster(
    losses: np.ndarray,
    num_clusters: int = 100,
    seed: int = 0,
    ids: Sequence[str] | None = None,
    *,
    strata: Sequence[str] | None = None,
    rows_per_sample: int | None = None,
    rows_per_cluster: int = ClustersConfig.model_fields["rows_per_cluster"].default,
) -> Clusters:
    """Group loss trajectories by k-means, as the stage `clusters` does with its defaults.

    Args:
        losses: float (N, T), mean response loss of each example at each checkpoint, nats per
            token. Read as float32.
        num_clusters: over all, or in each stratum; fewer where there are fewer rows for each than
            `rows_per_cluster`, or fewer trajectories that differ.
        seed: decides the sample that the start is fitted to, and the start.
        ids: N unique texts, by whose hashes rows are sampled, so that the result does not depend
            on the order of rows. Default: the row numbers.
        strata: N names; k-means runs inside each of them. Default: over all.
        rows_per_sample: `clusters.rows_per_sample` of a run file, with its default.
        rows_per_cluster: the same of `clusters.rows_per_cluster`; with 1 there are as many clusters
            as asked for.

    Returns:
        labels, squared distances and centroids; see `Clusters`.

    Raises:
        UserError: shapes differ, ids repeat, or a loss is NaN, infinite or above 65,536 nats
            (`DataError`); a number makes no sense (`ConfigError`).

    Examples:
        >>> clusters = s2l.cluster(losses, num_clusters=50)
        >>> losses[clusters.labels == 0].mean(axis=0)     # nearly clusters.centroids[0]
    """
    checked = _checked(losses, ids, strata)
    config = _section(num_clusters, seed, rows_per_sample=rows_per_sample)
    if not isinstance(rows_per_cluster, int | np.integer) or rows_per_cluster < 1:
        raise ConfigError(f"rows_per_cluster must be at least 1, not {rows_per_cluster!r}")
    update = {"rows_per_cluster": int(rows_per_cluster)}
    return _clustered(*checked, config.model_copy(update=update), seed)


def _section(num_clusters: int, seed: int, *, rows_per_sample: int | None = None) -> ClustersConfig:
    """Return the settings of k-means; refuse numbers that make no sense."""
    for name, value in (("num_clusters", num_clusters), ("seed", seed)):
        if not isinstance(value, int | np.integer):
            raise ConfigError(f"{name} must be a whole number, not {value!r}")
    if num_clusters < 1:
        raise ConfigError(f"num_clusters must be at least 1, not {num_clusters}")
    if rows_per_sample is not None and rows_per_sample < num_clusters:
        raise ConfigError(f"rows_per_sample ({rows_per_sample}) is below num_clusters")
    return ClustersConfig(num_clusters=int(num_clusters), rows_per_sample=rows_per_sample)


def _clustered(
    loss_NT: np.ndarray,
    key_N: np.ndarray,
    rows_by_stratum: Mapping[str, np.ndarray],
    config: ClustersConfig,
    seed: int,
) -> Clusters:
    mixed_N = hashing.mixed(key_N, seed, SAMPLE)
    held = {name: _Stratum.of(loss_NT, mixed_N, row_N) for name, row_N in rows_by_stratum.items()}
    centroids = _fitted(held, config, seed)
    label_N, sqdist_N = np.empty(len(loss_NT), np.int32), np.empty(len(loss_NT), np.float32)
    first_number = 0
    for name, stratum in held.items():
        label, sqdist_N[stratum.row_N] = stratum.tracked.nearest(centroids[name])
        label_N[stratum.row_N] = label + first_number
        first_number += len(centroids[name])
    return Clusters(label_N, sqdist_N, np.concatenate(list(centroids.values())))


def rank(
    losses: np.ndarray,
    ids: Sequence[str],
    strata: Sequence[str] | None = None,
    method: str = "s2l",
    seed: int = 0,
    *,
    num_clusters: int = 100,
) -> np.ndarray:
    """Rank examples so that the subset for every budget B is the first B of the ranking.

    Args:
        losses: float (N, T), nats per token, as for `cluster`.
        ids: N unique texts; order at random follows from their hashes.
        strata: N names that the budget is spread over first. Default: one stratum.
        method: a name that `s2l select --help` lists, of those that need losses alone. Its
            settings have their defaults.
        seed: decides clusters and order at random.
        num_clusters: of each stratum, for methods that look at clusters; fewer in a stratum with
            fewer than 25 rows for each, as `clusters.rows_per_cluster` of a run file says.

    Returns:
        order, int64 (N,): `order[r]` is the row that holds rank r.

    Raises:
        UserError: as `cluster`; the method is unknown, or needs more than losses.

    Examples:
        >>> order = s2l.rank(losses, ids, strata)
        >>> chosen = [ids[row] for row in order[:1000]]
    """
    chosen = _method(method)
    loss_NT, key_N, rows_by_stratum = _checked(losses, ids, strata)
    stratum_N = np.empty(len(key_N), np.int32)
    for number, row_N in enumerate(rows_by_stratum.values()):
        stratum_N[row_N] = number
    label_N = np.zeros(len(key_N), np.int32)
    if method in ("s2l", "s2l-authors"):
        config = _section(num_clusters, seed)
        label_N = _clustered(loss_NT, key_N, rows_by_stratum, config, seed).labels
    values = {name: summaries.SUMMARIES[name](loss_NT) for name in chosen.numbers}
    defaults = {key: SelectionConfig.model_fields[key].default for key in chosen.settings}
    examples = Examples(key_N, label_N, stratum_N, values, settings=defaults)
    return chosen.ranking(examples, seed, stratify=True)


def _method(name: str) -> methods.Method:
    """Return the row of the table of methods; refuse one that needs more than losses."""
    if name not in methods.METHODS:
        raise ConfigError(f"method {name!r} is unknown; methods: {', '.join(methods.METHODS)}")
    method = methods.METHODS[name]
    more = [need for need in method.numbers if need not in summaries.SUMMARIES]
    more += method.vectors
    if more:
        raise ConfigError(
            f"method {name!r} needs {' and '.join(more)}, which losses do not tell. Select from a "
            f"run that has them: s2l.load(RUN_DIR).select(budget, method={name!r})."
        )
    return method


def _checked(
    losses: np.ndarray, ids: Sequence[str] | None, strata: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return losses as float32 (N, T), keys of the ids, and the rows of each stratum by name."""
    loss_NT = np.asarray(losses, np.float32)
    if loss_NT.ndim != 2 or not loss_NT.size:
        raise DataError(f"losses must be an array (examples, checkpoints), not {loss_NT.shape}")
    num_rows = len(loss_NT)
    try:
        kmeans.check(loss_NT, loss_NT[:1])
    except ValueError as error:
        raise DataError(f"losses: {error}") from None
    names = [str(row) for row in range(num_rows)] if ids is None else list(map(str, ids))
    of_rows = [_ONE_STRATUM] * num_rows if strata is None else list(map(str, strata))
    for what, given in (("ids", names), ("strata", of_rows)):
        if len(given) != num_rows:
            raise DataError(f"{len(given):,} {what} for {num_rows:,} trajectories")
    key_N = hashing.example_keys(names)
    _, first_row, count = np.unique(key_N, return_index=True, return_counts=True)
    if len(first_row) < num_rows:
        repeated = [names[row] for row in np.sort(first_row[count > 1])]
        raise DataError(
            f"{len(repeated):,} of {num_rows:,} ids are given more than once (first: "
            f"{first(repeated)}). Every id must be unique."
        )
    stratum_names, stratum_N = np.unique(of_rows, return_inverse=True)
    rows = {str(name): np.flatnonzero(stratum_N == n) for n, name in enumerate(stratum_names)}
    return loss_NT, key_N, rows


@dataclass(frozen=True)
class _Stratum:
    """The rows of one stratum, in the order of their hashes: a mini-batch comes first.

    Attributes:
        row_N: where each row stands in the arrays that were given.
        key_N: uint64 (N,), hashed keys, ascending.
        tracked: the trajectories.
    """

    row_N: np.ndarray
    key_N: np.ndarray
    tracked: kmeans.TrackedRows

    @classmethod
    def of(cls, loss_NT: np.ndarray, key_N: np.ndarray, row_N: np.ndarray) -> "_Stratum":
        row_N = row_N[np.argsort(key_N[row_N], kind="stable")]
        return cls(row_N, key_N[row_N], kmeans.TrackedRows(loss_NT.take(row_N, axis=0)))

    def sums(self, centroid_KT: np.ndarray, share: float) -> kmeans.ClusterSums:
        """Return sums over the rows whose hashes are among the lowest `share` of all."""
        num_rows = len(self.key_N)
        if share < 1:
            num_rows = int(np.searchsorted(self.key_N, np.uint64(share * 2.0**64)))
        return self.tracked.sums(centroid_KT, num_rows)


def _fitted(
    strata: Mapping[str, _Stratum], config: ClustersConfig, seed: int
) -> dict[str, np.ndarray]:
    """Return the centroids of every stratum: a start on a sample, then growing mini-batches."""

    def summed(centroids: minibatch.Centroids, shares: Mapping[str, float]) -> minibatch.Sums:
        return {name: strata[name].sums(centroids[name], shares[name]) for name in centroids}

    num_checkpoints = next(iter(strata.values())).tracked.loss_NT.shape[1]
    centres = minibatch.centres(summed, strata, num_checkpoints)
    start, size = {}, config.sample_size
    for name, stratum in strata.items():
        sample = sampling.draw(stratum.tracked.loss_NT, stratum.key_N, size, centres[name])
        sample_ST, weight_S = sampling.weighted(sample, size)
        wanted = config.clusters_of(len(stratum.row_N))
        assert wanted != "auto"
        start[name] = kmeans.initial_centroids(sample_ST, wanted, seed + START, weight_S)
    return minibatch.fit(
        start,
        {name: len(stratum.row_N) for name, stratum in strata.items()},
        summed,
        rows_in_start=dict.fromkeys(strata, size),
        limits=minibatch.Limits(config.lloyd_sweeps, config.tolerance),
    ).centroids
