"""Facility location: a greedy order of examples in which each one represents the most others.

Shape letters: N examples, C of one cell, R of one block of it, H components.
"""

# mypy: disable-error-code="no-untyped-def, assignment"
# numba compiles a function for the types it is called with.

import numpy as np

from s2l_ray.compilation import cached_njit
from s2l_ray.selection import similarity
from s2l_ray.selection.cells import ROWS_PER_CELL, blocks, cells

ONE = round(1 / similarity.STEP)


def gains(
    vector_NH: np.ndarray, order_N: np.ndarray, *, rows_per_cell: int = ROWS_PER_CELL
) -> np.ndarray:
    """Return by how much each example raised the objective when greedy maximisation took it.

    The objective of a subset is a sum over all examples: of the highest cosine of the example with
    a member of the subset in its own cell, at least 0. Pairs in different cells count as 0. Greedy
    takes the example that raises the objective most; of equal ones, the first in `order_N`. Its
    gains never rise, so it takes examples in order of decreasing gain, ties in `order_N`. Cells add
    nothing to each other, so greedy over all cells takes the examples of a cell in the order in
    which it would take them from that cell alone.

    Args:
        vector_NH: float16 (N, H), may be a file that is mapped into memory.
        order_N: int64 (N,), all rows in a random order.
        rows_per_cell: the average size of a cell, half of the largest. A pool of at most this size
            is one cell, and its gains are exact.

    Returns:
        gain_N, int64 (N,), in multiples of `similarity.STEP`.

    Source:
        Greedy: Nemhauser, Wolsey and Fisher (1978), doi:10.1007/BF01588971; lazily: Minoux (1978),
        doi:10.1007/BFb0006528. For subsets of training data: Mirzasoleiman et al. (2020),
        arXiv:1906.01827, and Wei, Iyer and Bilmes (2015).
    """
    gain_N = np.empty(len(order_N), np.int64)
    for row_C in cells(vector_NH, order_N, rows_per_cell=rows_per_cell):
        gain_N[row_C] = greedy_gains(cosine_steps(vector_NH[row_C]))
    return gain_N


def cosine_steps(vector_CH: np.ndarray) -> np.ndarray:
    """Return cosines, at least zero, int32 (C, C); symmetric, and exactly one for equal rows."""
    unit_CH = similarity.unit(vector_CH)
    steps_CC = np.empty((len(unit_CH), len(unit_CH)), np.int32)
    # The cosine of a row with itself or an equal row after rounding; a zero vector equals no other.
    own_C = np.maximum(np.rint(np.square(unit_CH).sum(axis=1) / similarity.STEP), 1)
    for rows in blocks(len(unit_CH), 512):
        steps_RC = np.maximum(similarity.cosines(unit_CH[rows], unit_CH), 0)
        # So an equal row gains nothing, and two rows that gain by each other alone gain the same.
        steps_RC[steps_RC >= np.minimum(own_C[rows, None], own_C)] = ONE
        steps_CC[rows] = steps_RC
    np.fill_diagonal(steps_CC, ONE)
    return steps_CC


@cached_njit
def greedy_gains(steps_CC):
    """Return the gain of each row when greedy takes it; `steps_CC` is symmetric."""
    num_rows = len(steps_CC)
    covered_C = np.zeros(num_rows, np.int32)
    # The gain of a row when it was last computed. By now it may be lower, never higher.
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
