"""Python's garbage collector, which searches all that is there while large libraries load."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Collect no garbage inside the block. Torch and transformers then load in four fifths of the
    time: they make a million objects, which the collector would visit several times, and keep them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
