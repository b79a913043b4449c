"""Cosines whose bits do not depend on which other rows are compared in the same product.

A matrix product adds up in an order that depends on the shapes, and so do its last bits. Here every
component is a multiple of 2^-24, as those of float16 are, and vectors have length one. So products
are multiples of 2^-48, all their sums are below two, and float64 holds each of them exactly.

Shape letters: N, M rows, H components.
"""

import numpy as np

STEP = 2.0**-24
"""The unit of components and cosines."""


def unit(vector_NH: np.ndarray) -> np.ndarray:
    """Return the vectors scaled to length one, float64 (N, H), rounded to multiples of STEP.

    A zero vector stays zero.
    """
    wide_NH = vector_NH.astype(np.float64)
    length_N1 = np.sqrt(np.square(wide_NH).sum(axis=1, keepdims=True))
    wide_NH /= np.where(length_N1 > 0, length_N1, 1.0)
    wide_NH /= STEP
    np.rint(wide_NH, out=wide_NH)
    wide_NH *= STEP
    return wide_NH


def cosines(unit_NH: np.ndarray, other_MH: np.ndarray) -> np.ndarray:
    """Return the cosines of the rows of two results of `unit`, int32 (N, M), multiples of STEP."""
    steps_NM = unit_NH @ other_MH.T
    steps_NM /= STEP
    return np.rint(steps_NM, out=steps_NM).astype(np.int32)
