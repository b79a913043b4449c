"""Cosines that do not depend on which rows are compared beside each other.

A product of matrices adds up in an order that depends on their shapes, and so does its last bit.
Here every component is a multiple of 2^-24, as those of float16 are, and vectors have length one:
then products are multiples of 2^-48, all sums of them below two, and float64 holds each exactly.

Shape letters: N, M rows, H components.
"""

import numpy as np

STEP = 2.0**-24


def unit(vector_NH: np.ndarray) -> np.ndarray:
    """float64 (N, H): the vectors at length one, rounded to multiples of STEP; zero stays zero."""
    wide_NH = vector_NH.astype(np.float64)
    length_N1 = np.sqrt(np.square(wide_NH).sum(axis=1, keepdims=True))
    wide_NH /= np.where(length_N1 > 0, length_N1, 1.0)
    wide_NH /= STEP
    np.rint(wide_NH, out=wide_NH)
    wide_NH *= STEP
    return wide_NH


def cosines(unit_NH: np.ndarray, other_MH: np.ndarray) -> np.ndarray:
    """int32 (N, M): cosines of the rows of two results of `unit`, in multiples of STEP."""
    steps_NM = unit_NH @ other_MH.T
    steps_NM /= STEP
    return np.rint(steps_NM, out=steps_NM).astype(np.int32)
