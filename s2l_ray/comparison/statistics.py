"""Means over seeds and items together, paired differences, and p-values for several of them.

Seeds and items are crossed: every seed's target answers the same items. Both are samples, so an
interval has to cover other seeds as well as other items.

Shape letters: S seeds, I items, M methods.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from s2l_ray.intervals import t_interval, t_tail, variance_of_macro_mean


@dataclass(frozen=True)
class Estimate:
    """A mean, its 95% interval, and the p-value of a mean of zero.

    `low`, `high` and `p` are None if neither seeds nor items show their spread, as where all values
    are equal.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None


def crossed_mean(
    value_SI: np.ndarray,
    group_I: Sequence[str] | np.ndarray | None = None,
    *,
    confidence: float = 0.95,
) -> Estimate:
    """Return the mean of values that vary by seed and by item.

    With v_s the mean of seed s over the items, w_i the mean of item i over the seeds, and e^2 the
    variance of what remains of an item without its own mean and its seed's,

        variance = var(v_s) / S + (var(w_i) - e^2 / S) / I

    with Satterthwaite's degrees of freedom; inside each stratum if these count the same. A second
    term below zero is zero. With one seed the interval covers the items alone.

    Args:
        value_SI: finite (S, I); for a paired difference, that of two methods.
        group_I: the stratum of each item; then every stratum counts the same. None: every item
            counts the same.
        confidence: of the interval.

    Source:
        Random effects of two crossed factors, Searle, Casella and McCulloch, Variance Components
        (1992), section 4.6. It is the variance of a bootstrap of seeds and items, whose percentiles
        are too narrow for three seeds (docs/decisions.md has the numbers).
    """
    labels = np.zeros(value_SI.shape[1]) if group_I is None else np.asarray(group_I)
    columns = [labels == name for name in np.unique(labels)]
    seed_mean_S = np.mean([value_SI[:, rows].mean(axis=1) for rows in columns], axis=0)
    item_mean_I = value_SI.mean(axis=0)
    mean = float(seed_mean_S.mean())
    by_seeds = variance_of_macro_mean([seed_mean_S])
    by_items = variance_of_macro_mean([item_mean_I[rows] for rows in columns])
    if by_seeds is not None and by_items is not None:
        shared = np.mean([_shared(value_SI[:, rows]) for rows in columns]) / len(columns)
        by_items = max(by_items[0] - float(shared), 0.0), by_items[1]
    parts = [part for part in (by_seeds, by_items) if part is not None]
    if not parts:
        return Estimate(mean, None, None, None)
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Estimate(mean, None, None, None)
    degrees = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    interval = t_interval(mean, variance, degrees, confidence=confidence)
    p = t_tail(mean / math.sqrt(variance), degrees)
    return Estimate(mean, interval.low, interval.high, p)


def _shared(value_SI: np.ndarray) -> float:
    """Return e^2 / (S I) of the items of a stratum, which both means of `crossed_mean` contain."""
    num_seeds, num_items = value_SI.shape
    if num_items == 1:
        return 0.0
    means_S1, means_I = value_SI.mean(axis=1, keepdims=True), value_SI.mean(axis=0)
    rest_SI = value_SI - means_S1 - means_I + value_SI.mean()
    degrees = (num_seeds - 1) * (num_items - 1)
    return float(np.square(rest_SI).sum()) / degrees / value_SI.size


def holm(p_M: Sequence[float]) -> list[float]:
    """Return p-values that hold for all M tests together, in the order given.

    The k-th smallest, k from 0, is multiplied by M - k; none is below a smaller one's, or above 1.

    Source:
        Holm (1979), A simple sequentially rejective multiple test procedure.
    """
    order = np.argsort(p_M, kind="stable")
    factors = len(order) - np.arange(len(order))
    adjusted = np.minimum(np.maximum.accumulate(np.asarray(p_M, float)[order] * factors), 1.0)
    result = np.empty(len(order))
    result[order] = adjusted
    return result.tolist()
