"""Facility location: which examples, one after the other, stand for the most others.

Shape letters: N examples, C of one cell, R of one block of it, H components.
"""

# mypy: disable-error-code="no-untyped-def, assignment"
# numba compiles a function for the types it is called with.

import numpy as np

from s2l_ray.clusters.compilation import cached_njit
from s2l_ray.selection import similarity
from s2l_ray.selection.cells import ROWS_PER_CELL, blocks, cells

ONE = round(1 / similarity.STEP)


def gains(
    vector_NH: np.ndarray, order_N: np.ndarray, *, rows_per_cell: int = ROWS_PER_CELL
) -> np.ndarray:
    """By how much each example raised the objective when greedy maximisation took it.

    The objective of a subset is the sum over all examples of the highest cosine, at least 0, with
    one of the subset in their own cell; pairs that no cell has together count as 0. Greedy takes
    the example that raises it most, of equal ones the first in `order_N`. Its gains never rise, so
    decreasing gain, ties in `order_N`, is the order in which it takes examples. As cells add
    nothing to each other, greedy over
    all cells takes from each in the order that it would by itself.

    Args:
        vector_NH: float16 (N, H), may be a file that is mapped into memory.
        order_N: int64 (N,), all rows in an order at random.
        rows_per_cell: on average, and half of the most; a pool of no more is one cell, and exact.

    Returns:
        gain_N, int64 (N,), in multiples of `similarity.STEP`.

    Source:
        Greedy: Nemhauser, Wolsey and Fisher (1978), doi:10.1007/BF01588971; lazily: Minoux (1978),
        doi:10.1007/BFb0006528. For subsets of training data: Mirzasoleiman et al. (2020),
        arXiv:1906.01827, and Wei, Iyer and Bilmes (2015).
    """
    gain_N = np.empty(len(order_N), np.int64)
    for row_C in cells(vector_NH, order_N, rows_per_cell=rows_per_cell):
        gain_N[row_C] = _greedy(_similarities(vector_NH[row_C]))
    return gain_N


def _similarities(vector_CH: np.ndarray) -> np.ndarray:
    """int32 (C, C), cosines of at least zero; symmetric, and of equal rows exactly one."""
    unit_CH = similarity.unit(vector_CH)
    steps_CC = np.empty((len(unit_CH), len(unit_CH)), np.int32)
    # What rounding leaves of a row's cosine with itself or a twin; zero has no twin.
    own_C = np.maximum(np.rint(np.square(unit_CH).sum(axis=1) / similarity.STEP), 1)
    for rows in blocks(len(unit_CH), 512):
        steps_RC = np.maximum(similarity.cosines(unit_CH[rows], unit_CH), 0)
        # So a twin gains nothing, and of two rows that gain by each other alone none gains more.
        steps_RC[steps_RC >= np.minimum(own_C[rows, None], own_C)] = ONE
        steps_CC[rows] = steps_RC
    np.fill_diagonal(steps_CC, ONE)
    return steps_CC


@cached_njit
def _greedy(steps_CC):
    """The gain of each row when greedy takes it; `steps_CC` is symmetric."""
    num_rows = len(steps_CC)
    covered_C = np.zeros(num_rows, np.int32)
    # What a row would have gained when it was last looked at: by now it may be less, never more.
    bound_C = np.empty(num_rows, np.int64)
    for row in range(num_rows):
        bound_C[row] = _gain(steps_CC[row], covered_C)
    gain_C = np.empty(num_rows, np.int64)
    for _ in range(num_rows):
        while True:
            row = bound_C.argmax()
            gain = _gain(steps_CC[row], covered_C)
            if gain == bound_C[row]:
                break
            bound_C[row] = gain
        gain_C[row] = gain
        bound_C[row] = -1
        for other in range(num_rows):
            covered_C[other] = max(covered_C[other], steps_CC[row, other])
    return gain_C


@cached_njit
def _gain(steps_C, covered_C):
    gain = np.int64(0)
    for other in range(len(steps_C)):
        gain += max(steps_C[other] - covered_C[other], 0)
    return gain
