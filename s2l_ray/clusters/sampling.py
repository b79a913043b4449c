"""Samples on which a start of k-means is found: most rows at random, and far ones more often.

A few outliers among a million rows can make up a tenth of the inertia, and a uniform sample has
none of them. So a row is drawn half by chance and half in proportion to its squared distance from
the mean, and stands for as many rows as it was unlikely to be drawn. Every row has a time, and the
earliest are the sample: so the sample of a union is that of its shards' samples put together.

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
"""Weights are integers, so that sums stay exact: of far rows and, at most, of common ones."""


@dataclass(frozen=True)
class Centre:
    """Where a pool lies, and how wide.

    Attributes:
        mean_T: float64 (T,), nats per token.
        mean_sqdist: of its rows from `mean_T`, nats squared.
    """

    mean_T: np.ndarray
    mean_sqdist: float


@dataclass(frozen=True)
class Sample:
    """Rows in the order of their times, and the one that comes next, if there is another.

    Attributes:
        time_S: float64 (S,), ascending.
        rate_S: float64 (S,), how much more often than by chance a row is drawn; at least 1/2.
        loss_ST: float32 (S, T).
    """

    time_S: np.ndarray
    rate_S: np.ndarray
    loss_ST: np.ndarray


def draw(loss_NT: np.ndarray, key_N: np.ndarray, size: int, centre: Centre | None) -> Sample:
    """The first `size` + 1 rows to be drawn.

    Args:
        loss_NT: float32 (N, T).
        key_N: uint64 (N,), hashes, which decide the times.
        centre: of the whole pool; None draws all rows equally often.
    """
    time_N, rate_N = np.empty((2, len(loss_NT)))
    mean_T = np.zeros(loss_NT.shape[1]) if centre is None else centre.mean_T
    mean_sqdist = 0.0 if centre is None else centre.mean_sqdist
    # One type of array, whether it came from another process or not: each would be compiled anew.
    mean_1T = np.array(mean_T[None], np.float32)
    kernels.waiting_times(loss_NT, key_N, mean_1T, mean_sqdist, time_N, rate_N)
    return _earliest(Sample(time_N, rate_N, loss_NT), size)


def join(samples: Sequence[Sample], size: int) -> Sample:
    """What `draw` finds in all rows that any of these was drawn from."""
    parts = [(sample.time_S, sample.rate_S, sample.loss_ST) for sample in samples]
    time_S, rate_S, loss_ST = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _earliest(Sample(time_S, rate_S, loss_ST), size)


def weighted(sample: Sample, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the sample, and what each stands for.

    Returns:
        loss_ST, float32, and weight_S, int64, in proportion to 1 / (the chance that the row was
        drawn before the first row that is not in the sample); all 1 where no row is left out. As
        coarse as it takes for sums of the weighted rows to fit into 64 bits.
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
    """The most that each row may count, so that k-means can sum losses and squared distances."""
    low_T, high_T = loss_ST.min(axis=0).astype(np.float64), loss_ST.max(axis=0).astype(np.float64)
    largest = max(np.abs(low_T).max(), np.abs(high_T).max()) / kernels.LOSS_UNIT_NATS
    farthest = ((high_T - low_T) ** 2).sum() / kernels.SQDIST_UNIT
    return float(LARGEST / max(largest, farthest, 1) / len(loss_ST))


def _earliest(sample: Sample, size: int) -> Sample:
    num_kept = min(size + 1, len(sample.time_S))
    near = np.argpartition(sample.time_S, num_kept - 1)[:num_kept] if num_kept else np.arange(0)
    keep = near[np.argsort(sample.time_S[near], kind="stable")]
    return Sample(sample.time_S[keep], sample.rate_S[keep], sample.loss_ST[keep])
