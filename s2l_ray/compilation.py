"""Compilation of functions by numba."""

from collections.abc import Callable
from typing import Any

from numba import njit


def cached_njit(function: Callable[..., Any]) -> Any:
    """Compile `function` at its first call, and cache the machine code on disk.

    The cache is in the folder of the source or, if that cannot be written, in the user's cache. If
    neither can be written, every process compiles anew.
    """
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba has no folder to write to
        return njit(nogil=True)(function)
