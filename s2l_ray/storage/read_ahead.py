"""Reading ahead: an object store takes tens of milliseconds to answer, however little is asked."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

AHEAD = 4
"""Files that are read, or wait, before they are asked for."""
Item = TypeVar("Item")
Content = TypeVar("Content")


def read_ahead(read: Callable[[Item], Content], items: Iterable[Item]) -> Iterator[Content]:
    """Yield `read(item)` of each item in order, while threads read the next AHEAD ones.

    An error of `read` is raised in its turn.
    """
    waiting = deque[Future[Content]]()
    with ThreadPoolExecutor(AHEAD) as threads:
        try:
            for item in items:
                waiting.append(threads.submit(read, item))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
