"""RDS+: queries take turns, and each names the example that is next nearest to it.

Shape letters: N examples, Q queries, q of one pass, H components.
"""

import numpy as np

from s2l_ray.selection import similarity
from s2l_ray.selection.cells import blocks

BYTES_PER_PASS = 1 << 30
"""Memory for the cosines of one pass, four bytes each."""


def round_robin(
    vector_NH: np.ndarray,
    query_QH: np.ndarray,
    order_N: np.ndarray,
    *,
    bytes_per_pass: int = BYTES_PER_PASS,
) -> np.ndarray:
    """Return the turn in which a query first names each example.

    In round r = 0, 1, ... every query, in their order, names the example with its r-th highest
    cosine, ties in `order_N`. If that was named before, the query names none in this round.

    Args:
        vector_NH: float16 (N, H), may be a file that is mapped into memory. It is read in blocks,
            once for every `bytes_per_pass` of the 4 N Q bytes of cosines.
        query_QH: float16 (Q, H), Q above zero.
        order_N: int64 (N,), all rows in a random order.

    Returns:
        turn_N, int64 (N,), all different: the lowest r Q + q at which query q names the example.

    Source:
        RDS+, Ivison et al. (2025), arXiv:2503.01807, as its authors' code takes turns.
    """
    num_rows, num_queries = len(vector_NH), len(query_QH)
    unit_QH = similarity.unit(query_QH)
    turn_N = np.full(num_rows, num_rows * num_queries)
    rank_N = np.arange(num_rows)
    width = max(1, bytes_per_pass // (4 * max(num_rows, 1)))
    for left in range(0, num_queries, width):
        steps_qN = np.empty((min(width, num_queries - left), num_rows), np.int32)
        for rows in blocks(num_rows):
            unit_mH = similarity.unit(vector_NH[rows])
            steps_qN[:, rows] = similarity.cosines(unit_QH[left : left + width], unit_mH)
        for query, steps_N in enumerate(steps_qN, start=left):
            nearest_N = order_N[np.argsort(-steps_N[order_N], kind="stable")]
            turn_N[nearest_N] = np.minimum(turn_N[nearest_N], rank_N * num_queries + query)
    return turn_N
