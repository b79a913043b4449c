"""Functions compiled by numba."""

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Any:
    """Compiled at its first call, and kept beside the source or in the user's cache."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither can be written
        return njit(nogil=True)(function)
