"""Work that goes on beside other work of the same process."""

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def running_thread(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Inside, a thread does `work(stop)`, which is to return soon after `stop` is set."""
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
