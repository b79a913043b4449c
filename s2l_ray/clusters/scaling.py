"""Scaling of trajectories before k-means: none, to standard deviations, or to their shape alone.

The scale of a set of rows is computed from exact integer sums, which add up to the same in any
order. A scaled row is a function of that row and, if standardised, of the stored scale.

Shape letters: N rows, T checkpoints, K clusters.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

UNIT_NATS = 2.0**-24
"""Losses are rounded to multiples of this before they are summed."""
LARGEST = 64.0
"""Deviations from the mean are clipped to this many standard deviations. Rows of an extension may
be farther out, and k-means sums squares in 64 bits."""
LEAST_DEVIATION_NATS = 0.01
"""A trajectory with a smaller standard deviation is flat: its differences are rounding errors."""

_HALF_BITS = 20
_ROWS_PER_BLOCK = 1 << 16


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of the losses of a set of rows at each checkpoint.

    Attributes:
        mean_T: float64 (T,), nats per token.
        deviation_T: float64 (T,), nats per token; 1 where all losses are equal.
    """

    mean_T: np.ndarray
    deviation_T: np.ndarray

    def as_json(self) -> dict[str, list[float]]:
        """Return the numbers as JSON values; `of_json` gives the same bits again."""
        return {"mean": self.mean_T.tolist(), "deviation": self.deviation_T.tolist()}

    @classmethod
    def of_json(cls, value: dict[str, list[float]]) -> "Scale":
        return cls(np.array(value["mean"]), np.array(value["deviation"]))


@dataclass(frozen=True)
class Moments:
    """Exact sums over a set of rows, in `UNIT_NATS` and its square; sums of shards add up.

    Attributes:
        count: number of rows.
        sum_T, square_sum_T: a Python integer for each checkpoint, which cannot overflow.
    """

    count: int
    sum_T: tuple[int, ...]
    square_sum_T: tuple[int, ...]

    @classmethod
    def of(cls, loss_NT: np.ndarray) -> "Moments":
        """Sum up rows.

        Args:
            loss_NT: float array (N, T), finite and below 2^16 nats.
        """
        zeros = (0,) * loss_NT.shape[1]
        total = cls(0, zeros, zeros)
        for start in range(0, len(loss_NT), _ROWS_PER_BLOCK):
            total = total.merge(_of_block(loss_NT[start : start + _ROWS_PER_BLOCK]))
        return total

    def merge(self, other: "Moments") -> "Moments":
        """Return the sums over the rows of both."""
        return Moments(
            self.count + other.count,
            _added(self.sum_T, other.sum_T),
            _added(self.square_sum_T, other.square_sum_T),
        )

    def scale(self) -> Scale:
        """Return mean and standard deviation; only the last division of each is rounded.

        The variance is (count * sum of squares - sum^2) / count^2.

        Raises:
            ValueError: there is no row.
        """
        if not self.count:
            raise ValueError("no row, and so no mean of it")
        mean_T = [float(Fraction(total, self.count)) * UNIT_NATS for total in self.sum_T]
        pairs = zip(self.sum_T, self.square_sum_T, strict=True)
        variance_T = [
            float(Fraction(self.count * squares - total * total, self.count**2))
            for total, squares in pairs
        ]
        deviation_T = [math.sqrt(variance) * UNIT_NATS or 1.0 for variance in variance_T]
        return Scale(np.array(mean_T), np.array(deviation_T))


def standardised(loss_NT: np.ndarray, scale: Scale) -> np.ndarray:
    """Return (loss - mean) / deviation at each checkpoint, float32 (N, T).

    All checkpoints then count alike: over the rows that the scale was computed from, the mean is 0
    and the variance 1 at every checkpoint (0 where all losses are equal). Values beyond `LARGEST`
    are clipped to it.
    """
    value_NT = (loss_NT.astype(np.float64) - scale.mean_T) / scale.deviation_T
    return value_NT.clip(-LARGEST, LARGEST).astype(np.float32)


def shape(loss_NT: np.ndarray) -> np.ndarray:
    """Return (loss - m) / max(s, LEAST_DEVIATION_NATS), float32 (N, T).

    m and s are the mean and the standard deviation of the row's own T losses, so level and size
    are removed. The squared distance of two rows that are not flat is 2 T (1 - r), with r their
    correlation. A constant row becomes 0 throughout. Sums are taken checkpoint by checkpoint, so
    the values of a row do not depend on other rows.
    """
    loss_NT = loss_NT.astype(np.float64)
    num_checkpoints = loss_NT.shape[1]
    mean_N = sum(loss_NT.T, np.zeros(len(loss_NT))) / num_checkpoints
    away_NT = loss_NT - mean_N[:, None]
    square_N = sum((away_NT**2).T, np.zeros(len(loss_NT))) / num_checkpoints
    deviation_N = np.maximum(np.sqrt(square_N), LEAST_DEVIATION_NATS)
    return (away_NT / deviation_N[:, None]).astype(np.float32)


UNIT: dict[str, str] = {
    "raw": "nats",
    "standardised": "standard deviations",
    "shape": "standard deviations of a trajectory",
}
"""The unit of distances between scaled trajectories, by the name of the scaling."""


def scaled(loss_NT: np.ndarray, name: str, scale: Scale | None) -> np.ndarray:
    """Return trajectories in the space that they are clustered in.

    Args:
        loss_NT: float32 (N, T), nats per token.
        name: the scaling, a key of `UNIT`.
        scale: that of all rows that are clustered together; needed for `standardised` alone.

    Returns:
        float32 (N, T); `loss_NT` itself for `raw`.
    """
    if name == "raw":
        return loss_NT
    value_NT = np.empty(loss_NT.shape, np.float32)
    for start in range(0, len(loss_NT), _ROWS_PER_BLOCK):
        rows = slice(start, start + _ROWS_PER_BLOCK)
        if name == "shape":
            value_NT[rows] = shape(loss_NT[rows])
        else:
            assert name == "standardised" and scale is not None
            value_NT[rows] = standardised(loss_NT[rows], scale)
    return value_NT


def in_nats(centroid_KT: np.ndarray, scale: Scale) -> np.ndarray:
    """Return the mean losses, nats per token, of clusters with these standardised centroids."""
    return centroid_KT.astype(np.float64) * scale.deviation_T + scale.mean_T


def _added(a_T: tuple[int, ...], b_T: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(a_T, b_T, strict=True))


def _of_block(loss_NT: np.ndarray) -> Moments:
    """Return the sums over at most _ROWS_PER_BLOCK rows; 64 bits hold each of their terms."""
    unit_NT = np.rint(loss_NT.astype(np.float64) / UNIT_NATS).astype(np.int64)
    # u = high * 2^20 + low: with |u| < 2^41 all three products are below 2^42.
    high_NT, low_NT = unit_NT >> _HALF_BITS, unit_NT & ((1 << _HALF_BITS) - 1)
    products: list[Any] = [high_NT * high_NT, 2 * high_NT * low_NT, low_NT * low_NT]
    sums = [product_NT.sum(axis=0).tolist() for product_NT in products]
    squares = tuple(
        (high << 2 * _HALF_BITS) + (mixed << _HALF_BITS) + low
        for high, mixed, low in zip(*sums, strict=True)
    )
    return Moments(len(loss_NT), tuple(unit_NT.sum(axis=0).tolist()), squares)
