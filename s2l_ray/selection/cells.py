"""Cells: groups of rows with similar vectors, small enough to compare all pairs of rows.

Shape letters: N rows, S rows of the sample, B of a block, C centroids, F of them that have rows,
H components.
"""

import math
from collections.abc import Iterator

import numpy as np

from s2l_ray.selection import similarity

ROWS_PER_CELL = 2048
"""The average size of a cell; the largest cells have twice as many rows."""
SAMPLED_PER_CENTROID = 16
SWEEPS = 5
ROWS_PER_BLOCK = 4096


def cells(
    vector_NH: np.ndarray, order_N: np.ndarray, *, rows_per_cell: int = ROWS_PER_CELL
) -> list[np.ndarray]:
    """Return cells: arrays of row numbers in the order of `order_N`; every row is in one cell.

    Each row goes to its nearest centroid, ties to the lowest number. The centroids are those of
    spherical k-means (by cosine) on a sample, the first rows of `order_N`; the very first of these
    are its start. A cell with too many rows is cut into runs of consecutive rows. All arithmetic
    is exact, so cells depend on the vectors and on `order_N`, not on the order of the rows.

    Args:
        vector_NH: float16 (N, H), may be a file that is mapped into memory; it is read in blocks.
        order_N: int64 (N,), all rows in a random order.
        rows_per_cell: the average size of a cell.

    Source:
        Dhillon and Modha (2001), doi:10.1023/A:1007612920971.
    """
    num_cells = math.ceil(len(order_N) / rows_per_cell)
    if num_cells <= 1:
        return [order_N] if len(order_N) else []
    centroid_CH = spherical_centroids(
        vector_NH[order_N[: SAMPLED_PER_CENTROID * num_cells]], num_cells
    )
    cell_N = np.empty(len(order_N), np.int32)
    for rows in blocks(len(order_N)):
        cell_N[rows] = _nearest(similarity.unit(vector_NH[rows]), centroid_CH)
    row_N = order_N[np.argsort(cell_N[order_N], kind="stable")]
    ends = np.cumsum(np.bincount(cell_N, minlength=num_cells))
    parts = []
    for row_C in np.split(row_N, ends[:-1]):
        if len(row_C):
            parts += np.array_split(row_C, math.ceil(len(row_C) / (2 * rows_per_cell)))
    return parts


def blocks(num_rows: int, rows_per_block: int = ROWS_PER_BLOCK) -> Iterator[slice]:
    """Yield slices of consecutive rows; all but the last have `rows_per_block` rows."""
    for start in range(0, num_rows, rows_per_block):
        yield slice(start, start + rows_per_block)


def spherical_centroids(vector_SH: np.ndarray, num_centroids: int) -> np.ndarray:
    """Return centroids of length one, float64 (C, H).

    A centroid stays where it was if it has no nearest rows or their sum is zero. The sample stays
    in float16, as it would take gigabytes in float64; blocks are converted as they are needed.
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
