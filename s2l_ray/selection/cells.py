"""Rows of similar vectors together, in cells small enough to compare all of their pairs.

Shape letters: N rows, S rows of the sample, B of a block, C centroids, F of them that have rows,
H components.
"""

import math
from collections.abc import Iterator

import numpy as np

from s2l_ray.selection import similarity

ROWS_PER_CELL = 2048
"""On average; a cell has at most twice as many."""
SAMPLED_PER_CENTROID = 16
SWEEPS = 5
ROWS_PER_BLOCK = 4096


def cells(
    vector_NH: np.ndarray, order_N: np.ndarray, *, rows_per_cell: int = ROWS_PER_CELL
) -> list[np.ndarray]:
    """Every row in one cell; the rows of a cell, and the cells' sample, in the order of `order_N`.

    Centroids are those of spherical k-means (by cosine) on the first rows of `order_N`, which
    starts at the very first of them; each row goes to the nearest, ties to the lowest number. Rows
    that are too many for a cell are dealt out, consecutive ones in the order given. Everything is
    exact arithmetic, so cells depend on the vectors and on `order_N`, not on the order of rows.

    Args:
        vector_NH: float16 (N, H), may be a file that is mapped into memory; blocks are read.
        order_N: int64 (N,), all rows in an order at random.

    Source:
        Dhillon and Modha (2001), doi:10.1023/A:1007612920971.
    """
    num_cells = math.ceil(len(order_N) / rows_per_cell)
    if num_cells <= 1:
        return [order_N] if len(order_N) else []
    centroid_CH = _centroids(vector_NH[order_N[: SAMPLED_PER_CENTROID * num_cells]], num_cells)
    cell_N = np.empty(len(order_N), np.int32)
    for rows in blocks(len(order_N)):
        cell_N[rows] = _nearest(similarity.unit(vector_NH[rows]), centroid_CH)
    row_N = order_N[np.argsort(cell_N[order_N], kind="stable")]
    ends = np.cumsum(np.bincount(cell_N, minlength=num_cells))
    found = []
    for row_C in np.split(row_N, ends[:-1]):
        if len(row_C):
            found += np.array_split(row_C, math.ceil(len(row_C) / (2 * rows_per_cell)))
    return found


def blocks(num_rows: int, rows_per_block: int = ROWS_PER_BLOCK) -> Iterator[slice]:
    """Consecutive rows, as many at a time."""
    for start in range(0, num_rows, rows_per_block):
        yield slice(start, start + rows_per_block)


def _centroids(vector_SH: np.ndarray, num_centroids: int) -> np.ndarray:
    """float64 (C, H) of length one; one whose nearest rows add up to nothing, or are none, stays.

    The sample stays in float16: in float64 it would be gigabytes, and a block is made soon.
    """
    centroid_CH = similarity.unit(vector_SH[:num_centroids])
    for _ in range(SWEEPS):
        sum_CH = np.zeros_like(centroid_CH)
        for rows in blocks(len(vector_SH)):
            unit_BH = similarity.unit(vector_SH[rows])
            nearest_B = _nearest(unit_BH, centroid_CH)
            order_B = np.argsort(nearest_B, kind="stable")
            filled_F, start_F = np.unique(nearest_B[order_B], return_index=True)
            sum_CH[filled_F] += np.add.reduceat(unit_BH[order_B], start_F)
        filled_C = sum_CH.any(axis=1)
        centroid_CH[filled_C] = similarity.unit(sum_CH[filled_C])
    return centroid_CH


def _nearest(unit_NH: np.ndarray, centroid_CH: np.ndarray) -> np.ndarray:
    return similarity.cosines(unit_NH, centroid_CH).argmax(axis=1)
