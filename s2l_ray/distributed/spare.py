"""Units of work done early, on what a cluster has to spare.

Nothing may depend on it: whoever needs a unit does what was not done here, and the work itself
gives way at once to whoever needs the resources.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from s2l_ray.background import beside
from s2l_ray.distributed import resources, session

SECONDS_PER_LOOK = 0.5
SECONDS_TO_START = 120.0
"""After which actors that have not started are taken to wait for a place."""

Unit = Mapping[str, Any]


@contextlib.contextmanager
def working(
    worker: type,
    units: Sequence[Unit],
    num_due: Callable[[], int | None],
    wanted: resources.Workers,
    **constructor: Any,
) -> Iterator[None]:
    """Inside, up to `wanted.max` actors do `worker(**constructor)(unit)` where resources are free.

    Units are done in order, as soon as they are due, and their results are not looked at. No
    actor is there while nothing is due. A unit whose actor fails is left out. After
    `runtime.MAX_ATTEMPTS` failures, of actors or of those who wanted their resources back, there
    are no more actors; those at work at the end are ended.

    Args:
        num_due: how many of the first units may be done by now; None, and all resources are given
            back at once. Asked twice a second, from a thread.
    """
    crew = _Crew(worker, constructor, wanted, units)

    def look(stop: threading.Event) -> None:
        try:
            while not stop.wait(SECONDS_PER_LOOK):
                crew.look(num_due())
        except RayError:
            pass  # a cluster that is lost is others' to report
        finally:
            crew.let_go()

    with beside(look):
        yield


class _Crew:
    """Actors that come and go with the work that is due and the resources that are free."""

    def __init__(
        self,
        worker: type,
        constructor: Mapping[str, Any],
        wanted: resources.Workers,
        units: Sequence[Unit],
    ) -> None:
        self._actor = ray.remote(worker).options(
            num_cpus=wanted.cpus,
            num_gpus=wanted.gpus,
            runtime_env=session.worker_environment(cpus=wanted.cpus, gpus=wanted.gpus),
        )
        self._constructor, self._wanted, self._units = constructor, wanted, units
        self._waiting = deque(range(len(units)))
        self._starting: dict[Any, Any] = {}
        self._deadline = 0.0
        self._busy: dict[Any, tuple[Any, int]] = {}
        self._failures = 0

    def look(self, num_due: int | None) -> None:
        """Take in what was done, and let actors work, start or end as `num_due` says."""
        if num_due is None:
            # The others may have failed because of the work that was done beside them.
            self._failures += bool(self._busy)
            self.let_go()
            return
        for actor in self._idle():
            if self._is_due(num_due):
                number = self._waiting.popleft()
                self._busy[actor.__call__.remote(self._units[number])] = (actor, number)
            else:
                self._end([actor])
        if self._starting and time.monotonic() > self._deadline:
            self._failures += 1  # the place that was free has gone to others
            self._end(self._starting.values())
            self._starting = {}
        # Those that are starting take what looks free.
        if self._is_due(num_due) and not self._starting and self._failures < session.MAX_ATTEMPTS:
            due = sum(number < num_due for number in self._waiting)
            room = min(resources.num_free(self._wanted), self._wanted.max - len(self._busy))
            for _ in range(min(room, due)):
                actor = self._actor.remote(**self._constructor)
                self._starting[actor.__ray_ready__.remote()] = actor
            self._deadline = time.monotonic() + SECONDS_TO_START

    def let_go(self) -> None:
        """End all actors; what they were at waits again."""
        actors = [*self._starting.values(), *(actor for actor, _ in self._busy.values())]
        self._waiting.extendleft(sorted((n for _, n in self._busy.values()), reverse=True))
        self._starting, self._busy = {}, {}
        self._end(actors)

    def _end(self, actors: Iterable[Any]) -> None:
        for actor in actors:
            with contextlib.suppress(RayError):
                ray.kill(actor)

    def _is_due(self, num_due: int) -> bool:
        return bool(self._waiting) and self._waiting[0] < num_due

    def _idle(self) -> list[Any]:
        """Actors that have just started, or finished a unit."""
        futures = [*self._starting, *self._busy]
        if not futures:
            return []
        done, _ = ray.wait(futures, num_returns=len(futures), timeout=0)
        idle, failed = [], False
        for future in done:
            actor = self._starting.pop(future, None) or self._busy.pop(future)[0]
            try:
                ray.get(future)
                idle.append(actor)
            except RayError:
                failed = True
                self._end([actor])
        # A node that is lost takes several actors with it.
        self._failures += failed
        return idle
