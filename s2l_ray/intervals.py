"""Confidence intervals for proportions, means and paired differences of scores.

Shape letters: N items of an evaluation, G groups (tasks or sources) that they belong to.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

Values = np.ndarray | Sequence[float]
Groups = np.ndarray | Sequence[Any]


@dataclass(frozen=True)
class Interval:
    """An estimate, and the range that holds the true value with the requested confidence.

    If the items do not show their spread (a single item, or one in every group), the other fields
    are None.
    """

    estimate: float
    standard_error: float | None
    low: float | None
    high: float | None


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval for a proportion; unlike a normal one it stays in [0, 1].

    Raises:
        ValueError: no trials, or more successes than trials.

    Source:
        Wilson (1927), doi:10.1080/01621459.1927.10502953.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"a proportion needs 0 <= successes <= n and n > 0, not {successes} / {n}")
    z = _normal_quantile(confidence)
    p = successes / n
    # (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
    # Rounding may move the exact bounds 0 and 1 by one bit.
    low = 0.0 if successes == 0 else centre - half_width
    high = 1.0 if successes == n else centre + half_width
    return Interval(p, math.sqrt(p * (1 - p) / n), low, high)


def mean_interval(values_N: Values, confidence: float = 0.95) -> Interval:
    """Return Student's t interval for the mean of independent values.

    Args:
        values_N: float (N,), in the unit of the result.

    Raises:
        ValueError: no values, or one that is NaN or infinite.
    """
    value_N = _finite(values_N)
    return _stratified([value_N], confidence)


def macro_mean(values_N: Values, group_N: Groups, confidence: float = 0.95) -> Interval:
    """Return the mean of the groups' means with its interval; every group counts the same.

    The groups are fixed, and their items are a sample. With s_g^2 the variance in a group of n_g,

        SE^2 = (1 / G^2) sum_g s_g^2 / n_g

    with Welch-Satterthwaite degrees of freedom. A group of one item takes the pooled variance of
    the others. One group gives `mean_interval`. For scores of 0 and 1 this is a normal
    approximation.

    Raises:
        ValueError: no values, one that is NaN or infinite, or another number of group labels.

    Source:
        Cochran, Sampling Techniques (1977), section 5.4; Satterthwaite (1946), doi:10.2307/3002019.
    """
    value_N = _finite(values_N)
    if len(group_N) != len(value_N):
        raise ValueError(f"{len(value_N):,} values, but {len(group_N):,} group labels")
    _, label_N = np.unique(np.asarray(group_N), return_inverse=True)
    num_groups = int(label_N.max()) + 1
    return _stratified([value_N[label_N == g] for g in range(num_groups)], confidence)


def paired_difference(
    a_N: Values, b_N: Values, group_N: Groups | None = None, confidence: float = 0.95
) -> Interval:
    """Return the mean of a - b over the same items; with groups, their macro mean.

    Pairing removes the difficulty that an item has for both, so the interval is narrower than for
    two separate samples.

    Raises:
        ValueError: a and b have different lengths, or as for `macro_mean`.
    """
    if len(a_N) != len(b_N):
        raise ValueError(f"items are not paired: {len(a_N):,} values against {len(b_N):,}")
    difference_N = _finite(a_N) - _finite(b_N)
    if group_N is None:
        return mean_interval(difference_N, confidence)
    return macro_mean(difference_N, group_N, confidence)


def paired_rate_difference(
    a_N: np.ndarray, b_N: np.ndarray, group_N: Groups | None = None, confidence: float = 0.95
) -> Interval:
    """Return the share of a minus that of b over the same items; with groups, their macro mean.

    The Wilson intervals of both shares are combined with their correlation. So the interval has a
    width even if a and b agree on every item. Groups are combined as in `combined`.

    Args:
        a_N: bool (N,), which items a got right.
        b_N: bool (N,), the same for b.

    Raises:
        ValueError: a and b have different lengths, or there are no items.

    Source:
        Newcombe (1998), Statistics in Medicine 17:2635-2650, method 10.
    """
    if len(a_N) != len(b_N):
        raise ValueError(f"items are not paired: {len(a_N):,} values against {len(b_N):,}")
    label_N = np.zeros(len(a_N)) if group_N is None else np.asarray(group_N)
    groups = [label_N == name for name in np.unique(label_N)]
    return combined([_paired_rates(a_N[rows], b_N[rows], confidence) for rows in groups])


def combined(parts: Sequence[Interval]) -> Interval:
    """Return the mean of independent estimates, with an interval that is asymmetric as theirs are.

    With (l_g, u_g) the interval of estimate p_g of G,

        low = mean p_g - sqrt(sum_g (p_g - l_g)^2) / G
        high = mean p_g + sqrt(sum_g (u_g - p_g)^2) / G

    so one part gives its own interval. (The normal interval of a share of 0 or 1 has no width.)

    Raises:
        ValueError: there are no parts, or one has no interval.

    Source:
        MOVER, Zou and Donner (2008), doi:10.1002/sim.3095.
    """
    if not parts or any(part.low is None for part in parts):
        raise ValueError("intervals can only be combined if every part has one")
    table = np.array([[p.estimate, p.standard_error, p.low, p.high] for p in parts], np.float64)
    estimate_G, error_G, low_G, high_G = table.T
    estimate = float(estimate_G.mean())
    return Interval(
        estimate,
        float(np.linalg.norm(error_G)) / len(parts),
        estimate - float(np.linalg.norm(estimate_G - low_G)) / len(parts),
        estimate + float(np.linalg.norm(high_G - estimate_G)) / len(parts),
    )


def t_quantile(confidence: float, degrees: float) -> float:
    """Return the t with P(|T| <= t) = confidence for Student's distribution.

    At a confidence of 0.95 the relative error is below 5e-5, and below 1e-7 from 2 degrees of
    freedom on.
    """
    z = _normal_quantile(confidence)
    if degrees > 1_000:  # Cornish-Fisher, Abramowitz and Stegun 26.7.5
        return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    # With t = sqrt(df) tan(angle), the density of the angle is proportional to cos(angle)^(df-1).
    angle = np.linspace(0, math.pi / 2, 100_001)
    density = np.cos(angle) ** (degrees - 1)
    cumulative = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    quantile = np.interp(confidence, cumulative / cumulative[-1], angle)
    return math.sqrt(degrees) * math.tan(float(quantile))


def t_tail(t: float, degrees: float) -> float:
    """Return P(|T| > |t|) for Student's distribution: the p-value of a two-sided test.

    The relative error is below 1e-3 for probabilities down to 1e-12.
    """
    if degrees > 1_000:
        return math.erfc(abs(t) * (1 - 1 / (4 * degrees)) / math.sqrt(2 + t * t / degrees))
    # The density of the angle, as in `t_quantile`, from the tail's side to keep small values exact.
    start = math.atan(abs(t) / math.sqrt(degrees))
    tail, whole = (
        np.trapezoid(np.cos(angle) ** (degrees - 1), angle)
        for angle in (
            np.linspace(start, math.pi / 2, 20_001),
            np.linspace(0, math.pi / 2, 20_001),
        )
    )
    return min(float(tail / whole), 1.0)


def _paired_rates(a_N: np.ndarray, b_N: np.ndarray, confidence: float) -> Interval:
    n = len(a_N)
    both, only_a = int((a_N & b_N).sum()), int((a_N & ~b_N).sum())
    only_b, neither = int((~a_N & b_N).sum()), int((~a_N & ~b_N).sum())
    a = wilson_interval(both + only_a, n, confidence)
    b = wilson_interval(both + only_b, n, confidence)
    assert a.low is not None and a.high is not None and b.low is not None and b.high is not None
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    association = float(both * neither - only_a * only_b)
    if association > 0:  # the continuity correction
        association = max(association - n / 2, 0.0)
    correlation = association / math.sqrt(margins) if margins else 0.0
    difference = a.estimate - b.estimate
    variance = ((only_a + only_b) / n - difference**2) / n
    return Interval(
        difference,
        math.sqrt(max(variance, 0.0)),
        difference - _half_width(a.estimate - a.low, b.high - b.estimate, correlation),
        difference + _half_width(a.high - a.estimate, b.estimate - b.low, correlation),
    )


def _half_width(from_a: float, from_b: float, correlation: float) -> float:
    return math.sqrt(from_a**2 - 2 * correlation * from_a * from_b + from_b**2)


def _finite(values_N: Values) -> np.ndarray:
    value_N = np.asarray(values_N, dtype=np.float64)
    if value_N.ndim != 1 or value_N.size == 0:
        raise ValueError(f"a mean needs a list of values, not an array of shape {value_N.shape}")
    bad = np.flatnonzero(~np.isfinite(value_N))
    if bad.size:
        positions = ", ".join(str(i) for i in bad[:3])
        raise ValueError(f"{bad.size:,} of {value_N.size:,} values are not finite (at {positions})")
    return value_N


def _stratified(groups: Sequence[np.ndarray], confidence: float) -> Interval:
    """Return the mean of the groups' means, with the standard error of `macro_mean`."""
    estimate = float(np.mean([group.mean() for group in groups]))
    spread = variance_of_macro_mean(groups)
    if spread is None:
        return Interval(estimate, None, None, None)
    return t_interval(estimate, *spread, confidence=confidence)


def variance_of_macro_mean(groups: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """Return the variance of the mean of the groups' means, and its degrees of freedom.

    The formula is that of `macro_mean`. None if every group has one item.
    """
    size_G = np.array([len(group) for group in groups])
    num_degrees = int((size_G - 1).sum())
    if num_degrees == 0:
        return None
    squares_G = np.array([np.square(group - group.mean()).sum() for group in groups])
    degrees_G = np.where(size_G > 1, size_G - 1, num_degrees)
    variance_G = np.where(size_G > 1, squares_G / degrees_G, squares_G.sum() / num_degrees)
    part_G = variance_G / size_G
    variance = float(part_G.sum()) / len(groups) ** 2
    if variance == 0:
        return 0.0, float(num_degrees)
    return variance, float(part_G.sum() ** 2 / (part_G**2 / degrees_G).sum())


def t_interval(
    estimate: float, variance: float, degrees: float, *, confidence: float = 0.95
) -> Interval:
    """Return Student's t interval of an estimate whose variance has these degrees of freedom."""
    standard_error = math.sqrt(variance)
    if standard_error == 0:
        return Interval(estimate, 0.0, estimate, estimate)
    half_width = t_quantile(confidence, degrees) * standard_error
    return Interval(estimate, standard_error, estimate - half_width, estimate + half_width)


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies between 0 and 1, not at {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)
