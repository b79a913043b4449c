"""Units of work done early, on resources of the cluster that are free.

Nothing depends on this work: a unit that was not done here is done where it is needed. The work
gives its resources back at once to whoever needs them.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from s2l_ray.background import running_thread
from s2l_ray.distributed import resources
from s2l_ray.distributed.failures import MAX_ATTEMPTS
from s2l_ray.distributed.session import worker_environment

SECONDS_PER_LOOK = 0.5
SECONDS_TO_START = 120.0
"""Actors that have not started after so long are taken to wait for resources that are gone."""

Unit = Mapping[str, Any]


@contextlib.contextmanager
def run_on_free_resources(
    worker: type,
    units: Sequence[Unit],
    num_due: Callable[[], int | None],
    wanted: resources.Workers,
    **constructor: Any,
) -> Iterator[None]:
    """Do `worker(**constructor)(unit)` in up to `wanted.max` actors during the block.

    Actors run where resources are free. Units are done in order, as soon as they are due, and
    their results are ignored. While nothing is due there is no actor. A unit whose actor fails is
    left out. After MAX_ATTEMPTS failures no more actors start; it counts as one failure, too, when
    the resources are wanted back while actors work. At the end of the block all actors are ended.

    Args:
        num_due: returns how many of the first units may be done by now, or None to give all
            resources back at once. It is called twice a second, from a thread.
    """
    with running_thread(_Crew(worker, constructor, wanted, units, num_due).work):
        yield


class _Crew:
    """Actors that start and end with the work that is due and the resources that are free."""

    def __init__(
        self,
        worker: type,
        constructor: Mapping[str, Any],
        wanted: resources.Workers,
        units: Sequence[Unit],
        num_due: Callable[[], int | None],
    ) -> None:
        self._num_due = num_due
        self._actor = ray.remote(worker).options(
            num_cpus=wanted.cpus,
            num_gpus=wanted.gpus,
            runtime_env=worker_environment(cpus=wanted.cpus, gpus=wanted.gpus),
        )
        self._constructor, self._wanted, self._units = constructor, wanted, units
        self._waiting = deque(range(len(units)))
        self._starting: dict[Any, Any] = {}
        self._deadline = 0.0
        self._busy: dict[Any, tuple[Any, int]] = {}
        self._failures = 0

    def work(self, stop: threading.Event) -> None:
        """Do what is due until `stop` is set; then end all actors."""
        try:
            while not stop.wait(SECONDS_PER_LOOK):
                self._step(self._num_due())
        except RayError:
            pass  # whoever needs the cluster reports that it is lost
        finally:
            self._end_all()

    def _step(self, num_due: int | None) -> None:
        """Collect finished units; give actors the next ones, start actors, or end them."""
        if num_due is None:
            # Those who want the resources may have failed because of this work.
            self._failures += bool(self._busy)
            self._end_all()
            return
        for actor in self._idle():
            if self._is_due(num_due):
                number = self._waiting.popleft()
                self._busy[actor.__call__.remote(self._units[number])] = (actor, number)
            else:
                self._end([actor])
        if self._starting and time.monotonic() > self._deadline:
            self._failures += 1  # others took the resources that were free
            self._end(self._starting.values())
            self._starting = {}
        # Resources of actors that are starting still count as free, so none is added meanwhile.
        if self._is_due(num_due) and not self._starting and self._failures < MAX_ATTEMPTS:
            due = sum(number < num_due for number in self._waiting)
            room = min(resources.num_free(self._wanted), self._wanted.max - len(self._busy))
            for _ in range(min(room, due)):
                actor = self._actor.remote(**self._constructor)
                self._starting[actor.__ray_ready__.remote()] = actor
            self._deadline = time.monotonic() + SECONDS_TO_START

    def _end_all(self) -> None:
        """End all actors; the units that they were doing wait again."""
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
        """Return the actors that have just started or have finished a unit."""
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
        # One failure however many: a node that is lost takes several actors with it.
        self._failures += failed
        return idle
