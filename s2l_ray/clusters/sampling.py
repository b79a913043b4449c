"""Samples that a start of k-means is fitted to; far rows are drawn more often than others.

A few outliers among a million rows can make up a tenth of the inertia, and a uniform sample has
none of them. So half of the chance of a row is equal for all rows, and half is in proportion to its
squared distance from the mean. A row weighs the more, the less likely it was drawn. Every row has a
time, and the earliest rows are the sample. So the sample of a union is the sample of its shards'
samples put together.

Shape letters: N rows, S sample rows, T checkpoints.

Sources: lightweight coresets, Bachem, Lucic and Krause (2018), arXiv:1702.08248; weights from the
time of the first row that is not in the sample, Cohen and Kaplan (2007),
doi:10.1145/1281100.1281133.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from s2l_ray.clusters import kernels
from s2l_ray.clusters.fixed_point import LARGEST

LEAST_WEIGHT, MOST_WEIGHT = 4, 2**14
"""The weight of the farthest rows, and the largest one of common rows. Weights are integers, so
that sums stay exact."""

_ROWS_PER_BLOCK = 1 << 20


@dataclass(frozen=True)
class Centre:
    """The mean of a pool, and its spread.

    Attributes:
        mean_T: float64 (T,), nats per token.
        mean_sqdist: mean squared distance of its rows from `mean_T`, nats squared.
    """

    mean_T: np.ndarray
    mean_sqdist: float


@dataclass(frozen=True)
class Sample:
    """The rows of a sample, and the first row that is not in it, if any; in order of their times.

    Attributes:
        time_S: float64 (S,), ascending.
        rate_S: float64 (S,), how many times as often as on average a row is drawn; at least 1/2.
        loss_ST: float32 (S, T).
    """

    time_S: np.ndarray
    rate_S: np.ndarray
    loss_ST: np.ndarray


def draw(loss_NT: np.ndarray, key_N: np.ndarray, size: int, centre: Centre | None) -> Sample:
    """Return the `size` + 1 rows with the earliest times.

    Args:
        loss_NT: float32 (N, T).
        key_N: uint64 (N,), hashes, which decide the times.
        size: rows of the sample.
        centre: that of the whole pool; None draws all rows equally often.
    """
    mean_T = np.zeros(loss_NT.shape[1]) if centre is None else centre.mean_T
    mean_sqdist = 0.0 if centre is None else centre.mean_sqdist
    # A new array: numba compiles anew for a read-only one, such as comes from another process.
    mean_1T = np.array(mean_T[None], np.float32)
    drawn: list[Sample] = []
    # Times of all rows would take a third of the memory that the losses take.
    for start in range(0, max(len(loss_NT), 1), _ROWS_PER_BLOCK):
        rows = slice(start, start + _ROWS_PER_BLOCK)
        time_B, rate_B = np.empty((2, len(loss_NT[rows])))
        kernels.waiting_times(loss_NT[rows], key_N[rows], mean_1T, mean_sqdist, time_B, rate_B)
        drawn = [join([*drawn, Sample(time_B, rate_B, loss_NT[rows])], size)]
    return drawn[0]


def join(samples: Sequence[Sample], size: int) -> Sample:
    """Return what `draw` returns for all rows that these samples were drawn from."""
    parts = [(sample.time_S, sample.rate_S, sample.loss_ST) for sample in samples]
    time_S, rate_S, loss_ST = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _earliest(Sample(time_S, rate_S, loss_ST), size)


def weighted(sample: Sample, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the sample, and how many rows each stands for.

    Returns:
        loss_ST, float32, and weight_S, int64. A weight is in proportion to 1 / (the chance that
        the row was drawn before the first row that is not in the sample). All are 1 if the sample
        is the whole pool. Weights are as coarse as it takes for sums of the weighted rows to fit
        into 64 bits.
    """
    loss_ST, rate_S = sample.loss_ST[:size], sample.rate_S[:size]
    if len(sample.time_S) <= size:
        return loss_ST, np.ones(len(loss_ST), np.int64)
    end = sample.time_S[size]
    chance_S = -np.expm1(-rate_S * end)
    common = min(MOST_WEIGHT, LEAST_WEIGHT * chance_S.max() / chance_S.min(), _fitting(loss_ST))
    weight_S = np.rint(common * chance_S.min() / chance_S)
    return loss_ST, np.maximum(weight_S, 1).astype(np.int64)


def _fitting(loss_ST: np.ndarray) -> float:
    """Return the largest weight with which sums of losses and squared distances fit into int64."""
    low_T, high_T = loss_ST.min(axis=0).astype(np.float64), loss_ST.max(axis=0).astype(np.float64)
    largest = max(np.abs(low_T).max(), np.abs(high_T).max()) / kernels.LOSS_UNIT_NATS
    farthest = ((high_T - low_T) ** 2).sum() / kernels.SQDIST_UNIT
    return float(LARGEST / max(largest, farthest, 1) / len(loss_ST))


def _earliest(sample: Sample, size: int) -> Sample:
    count = min(size + 1, len(sample.time_S))
    first = np.argpartition(sample.time_S, count - 1)[:count] if count else np.arange(0)
    rows = first[np.argsort(sample.time_S[first], kind="stable")]
    return Sample(sample.time_S[rows], sample.rate_S[rows], sample.loss_ST[rows])
