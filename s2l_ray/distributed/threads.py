"""Work of threads of this process, where it is too small to start Ray and workers for it.

The workers are those that Ray's actors would be, so the results are the same bytes.
"""

import contextlib
import gc
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from s2l_ray.distributed import resources
from s2l_ray.distributed.failures import MAX_ATTEMPTS
from s2l_ray.errors import DataError, StorageError, first, one_line
from s2l_ray.storage.location import Location

if TYPE_CHECKING:
    from s2l_ray.distributed.fleet import RayFleet

Row = Mapping[str, Any]


def finished(
    runner: type, rows: Sequence[Row], wanted: resources.Workers, constructor: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield `runner(**constructor)(row)` for every row, in the order in which they finish.

    Every thread has a runner of its own. When the caller stops, rows that wait are left out.
    """
    count = min(wanted.max, len(rows))
    idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(count):
        idle.put(runner(**constructor))

    def run(row: Row) -> dict[str, Any]:
        own = idle.get()
        try:
            result: dict[str, Any] = own(row)
            return result
        finally:
            idle.put(own)

    pool, waiting, begun = ThreadPoolExecutor(count), iter(rows), set[Future[dict[str, Any]]]()
    try:
        # Futures of all rows would hold 3 kB each; two for a thread keep all of them at work.
        while begun := begun | {
            pool.submit(run, r) for r in islice(waiting, 2 * count - len(begun))
        }:
            done, begun = wait(begun, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        gc.unfreeze()  # what the workers told the collector to forget


def start_fleet(
    worker: type, files: Sequence[Location], wanted: resources.Workers, *arguments: Any
) -> "ThreadFleet | RayFleet":
    """Start workers `worker(files by part number, *arguments)`: threads here, or else actors.

    There are `wanted.max` workers, or one for each part if that is less.
    """
    if not wanted.here:
        from s2l_ray.distributed.fleet import RayFleet  # imports Ray

        return RayFleet(worker, files, wanted, *arguments)
    count = max(min(wanted.max, len(files)), 1)
    shares = [
        {part: files[part] for part in range(index, len(files), count)} for index in range(count)
    ]
    names = [f"{wanted.stage}: the worker of parts {first(list(share))}" for share in shares]
    return ThreadFleet(wanted, [worker(share, *arguments) for share in shares], names)


@dataclass(frozen=True)
class ThreadFleet:
    """Workers that each hold a share of the parts, called at the same time.

    Attributes:
        wanted: their stage, and the advice for a message that memory ran out.
        workers: the workers.
        names: each worker, as messages name it.
    """

    wanted: resources.Workers
    workers: Sequence[Any]
    names: Sequence[str]

    def call_all(self, method: str, *arguments: Any) -> list[Any]:
        """Return what `method` returns on every worker, in the order of the workers.

        Raises:
            UserError: a worker raised it, a StorageError MAX_ATTEMPTS times; or one had too little
                memory.
        """
        calls = [partial(getattr(worker, method), *arguments) for worker in self.workers]
        return self._at_once(calls)

    def shuffle(
        self, names: Sequence[str], mapper: str, reducer: str, *arguments: Any
    ) -> dict[str, Any]:
        """Map on all workers, and reduce each name on one of them, as `RayFleet.shuffle` does."""
        count = min(len(self.workers), len(names))
        shares = [names[index::count] for index in range(count)]
        mapped = [self.call_all(mapper, share, *arguments) for share in shares]
        pairs = zip(self.workers, mapped, strict=False)
        reduced = self._at_once([partial(getattr(w, reducer), *given) for w, given in pairs])
        items = (item for of_worker in reduced for item in of_worker.items())
        return dict(sorted(items, key=lambda item: item[0]))

    def _at_once(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        with ThreadPoolExecutor(max(len(calls), 1)) as pool:
            return list(pool.map(self._tried, calls, self.names))

    def _tried(self, call: Callable[[], Any], name: str) -> Any:
        """Return the result of `call`; an object store that fails once is asked again."""
        for _ in range(MAX_ATTEMPTS - 1):
            with contextlib.suppress(StorageError):
                return self._once(call, name)
        return self._once(call, name)

    def _once(self, call: Callable[[], Any], name: str) -> Any:
        try:
            return call()
        except MemoryError as error:
            what = f"had too little memory ({one_line(error)[:200]})"
            raise DataError(f"{name} {what}. {self.wanted.advice}") from error
