"""Background threads that end with a block."""

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def running_thread(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run `work(stop)` in a thread during the block; set `stop` and wait for it at the end.

    Args:
        work: has to return soon after `stop` is set.
    """
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
