"""Summaries of a trajectory in one number, which rankings read besides its cluster.

Every function takes loss_NT, float (N, T), mean response loss per checkpoint in nats per token, and
returns float32 (N,). Sums are taken checkpoint by checkpoint in float64, so the number of an
example does not depend on the other rows of its part.

Shape letters: N examples, T checkpoints.
"""

from collections.abc import Callable, Mapping

import numpy as np


def last_loss(loss_NT: np.ndarray) -> np.ndarray:
    """Return the loss at the last checkpoint, nats per token."""
    return loss_NT[:, -1].astype(np.float32)


def loss_drop(loss_NT: np.ndarray) -> np.ndarray:
    """Return the loss at the first checkpoint minus that at the last; negative if it has risen."""
    first_N, last_N = loss_NT[:, 0].astype(np.float64), loss_NT[:, -1].astype(np.float64)
    return (first_N - last_N).astype(np.float32)


def variation(loss_NT: np.ndarray) -> np.ndarray:
    """Return the total variation: the sum over t of |loss at t + 1 - loss at t|.

    Source:
        XMAS, arXiv:2510.01454, orders clusters by that of attention's singular values.
    """
    sum_N = np.zeros(len(loss_NT))
    for before_N, after_N in zip(loss_NT.T[:-1], loss_NT.T[1:], strict=True):
        sum_N += np.abs(after_N.astype(np.float64) - before_N.astype(np.float64))
    return sum_N.astype(np.float32)


def confidence(loss_NT: np.ndarray) -> np.ndarray:
    """Return the mean over the checkpoints of exp(-loss): between 0 and 1.

    Source:
        Varshney, Mishra and Baral (2022), arXiv:2205.09898, after Swayamdipta et al. (2020),
        arXiv:2009.10795, who use the probability of the right class.
    """
    sum_N = np.zeros(len(loss_NT))
    for loss_N in loss_NT.T:
        sum_N += np.exp(-loss_N.astype(np.float64))
    return (sum_N / loss_NT.shape[1]).astype(np.float32)


def variability(loss_NT: np.ndarray) -> np.ndarray:
    """Return the standard deviation over the checkpoints of exp(-loss), that of a population.

    Source:
        Swayamdipta et al. (2020), arXiv:2009.10795, of the probability of the right class.
    """
    mean_N, square_N = np.zeros(len(loss_NT)), np.zeros(len(loss_NT))
    for loss_N in loss_NT.T:
        mean_N += np.exp(-loss_N.astype(np.float64)) / loss_NT.shape[1]
    for loss_N in loss_NT.T:
        square_N += (np.exp(-loss_N.astype(np.float64)) - mean_N) ** 2 / loss_NT.shape[1]
    return np.sqrt(square_N).astype(np.float32)


def loss_slope(loss_NT: np.ndarray) -> np.ndarray:
    """Return the slope of the line fitted to the losses by least squares, nats per checkpoint.

    It is exactly 0 if all losses are equal, and for a single checkpoint.

    Source:
        The learned slope of "Prune, then Select".
    """
    num_checkpoints = loss_NT.shape[1]
    sum_N, squares = np.zeros(len(loss_NT)), 0.0
    # Checkpoints at the same distance from the middle are taken together, so equal losses cancel.
    for t in range(num_checkpoints // 2):
        distance = (num_checkpoints - 1) / 2 - t
        early_N, late_N = loss_NT[:, t], loss_NT[:, num_checkpoints - 1 - t]
        sum_N += distance * (late_N.astype(np.float64) - early_N.astype(np.float64))
        squares += 2 * distance**2
    return (sum_N / (squares or 1.0)).astype(np.float32)


SUMMARIES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "last_loss": last_loss,
    "loss_drop": loss_drop,
    "variation": variation,
    "confidence": confidence,
    "variability": variability,
    "loss_slope": loss_slope,
}
"""Name of a number -> the function that computes it."""
