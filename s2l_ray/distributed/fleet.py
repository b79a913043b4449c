"""Actors that each hold a share of the parts and are called together.

Small results come to the driver; what is large goes from actor to actor.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any, TypeVar

import ray

from s2l_ray import events
from s2l_ray.distributed import resources, waiting
from s2l_ray.distributed.failures import MAX_ATTEMPTS, LostWorkerError, user_errors
from s2l_ray.distributed.session import worker_environment
from s2l_ray.errors import StorageError, first
from s2l_ray.storage.location import Location

MAX_RETRIES = MAX_ATTEMPTS - 1
RETRIED_ERRORS = [StorageError, OSError, MemoryError, RuntimeError]
"""Errors that another attempt may not meet again."""
SECONDS_UNTIL_LOST, SECONDS_PER_LOOK = 60.0, 0.5
"""Longest time in which Ray takes a node that does not answer off its list, and between looks."""
Result = TypeVar("Result")


class RayFleet:
    """The actors of one stage.

    When a node is lost, all of them start again on those that are left, and the call is repeated.
    What an actor returns does not depend on the calls before, nor on how many actors there are.

    Attributes:
        wanted: their stage, and the advice for a message that memory ran out.
        actors: Ray's handles.
        names: each actor, as messages name it: by the parts that it holds.
    """

    def __init__(
        self, worker: type, files: Sequence[Location], wanted: resources.Workers, *arguments: Any
    ) -> None:
        """Start actors of `worker(files by part number, *arguments)`; each holds at least one part.

        There are `wanted.max` actors, or one for each part if that is less.

        Raises:
            ConfigError: the cluster has no room for them, and got none in time.
        """
        self.wanted, self._files, self._arguments = wanted, files, arguments
        # Ray restarts an actor that died; it reads its parts again, and the call is repeated.
        self._actor = ray.remote(worker).options(
            num_cpus=wanted.cpus,
            max_restarts=MAX_RETRIES,
            max_task_retries=MAX_RETRIES,
            runtime_env=worker_environment(cpus=1, gpus=0),
        )
        self._start(wanted.max)

    def _start(self, most: int) -> None:
        count = max(min(most, len(self._files)), 1)
        waiting.for_room(replace(self.wanted, min=count))
        shares = [
            {part: self._files[part] for part in range(index, len(self._files), count)}
            for index in range(count)
        ]
        self.names = [
            f"{self.wanted.stage}: the worker of parts {first(list(share))}" for share in shares
        ]
        self.actors = [self._actor.remote(share, *self._arguments) for share in shares]
        self._nodes = resources.nodes()

    def call_all(self, method: str, *arguments: Any) -> list[Any]:
        """Return what `method` returns on every actor, in the order of the actors.

        Raises:
            UserError: an actor raised it; or an actor died or had too little memory in
                MAX_ATTEMPTS attempts.
            UnitError: an actor failed in another way, MAX_ATTEMPTS times if it may be retried.
        """

        def work() -> list[Any]:
            shared = [ray.put(argument) for argument in arguments]
            calls = [self._call(actor, method, *shared) for actor in self.actors]
            return self._results(calls, self.names)

        return self._repeated(work)

    def shuffle(
        self, names: Sequence[str], mapper: str, reducer: str, *arguments: Any
    ) -> dict[str, Any]:
        """Map on all actors, and reduce each name on one of them.

        Every actor calls `mapper(names, *arguments)`. The results for some of the names go to one
        actor, which calls `reducer(*results)` and returns a dictionary by name.

        Args:
            names: dealt out over the actors.
            mapper: a method that takes the names it is to compute.
            reducer: a method that takes one result of `mapper` from each actor.
            arguments: the further arguments of `mapper`.

        Returns:
            What the reducers return, by name, names ascending.

        Raises:
            UserError, UnitError: as for `call_all`.
        """
        items = self._repeated(lambda: self._shuffled(names, mapper, reducer, *arguments))
        return dict(sorted(items, key=itemgetter(0)))

    def _shuffled(
        self, names: Sequence[str], mapper: str, reducer: str, *arguments: Any
    ) -> list[tuple[str, Any]]:
        count = min(len(self.actors), len(names))
        shares = [names[index::count] for index in range(count)]
        # The driver holds references only. All mappers are submitted before any reducer, because
        # an actor does its calls in order.
        shared = [ray.put(argument) for argument in arguments]
        mapped = [
            [self._call(actor, mapper, share, *shared) for actor in self.actors] for share in shares
        ]
        futures = [
            self._call(actor, reducer, *shards)
            for actor, shards in zip(self.actors, mapped, strict=False)
        ]
        who = [f"{name}, or one that it took from," for name in self.names]
        return [item for of_actor in self._results(futures, who) for item in of_actor.items()]

    def _repeated(self, work: Callable[[], list[Result]]) -> list[Result]:
        """Return what `work` returns; after the loss of a node, at most MAX_RETRIES times more."""
        for _ in range(MAX_RETRIES):
            try:
                return work()
            except LostWorkerError as error:
                if not error.with_node and self._nodes <= resources.nodes():
                    raise
                lost = f"  {self.wanted.stage}: a node was lost; its workers start again elsewhere"
                events.tell("notice", text=lost)
                self._restart()
        return work()

    def _restart(self) -> None:
        """Start all actors again, as many as the nodes that are left can hold."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []
        # A node that does not answer counts as one of the cluster for some ten seconds more.
        deadline = time.monotonic() + SECONDS_UNTIL_LOST
        while self._nodes <= resources.nodes() and time.monotonic() < deadline:
            time.sleep(SECONDS_PER_LOOK)
        fitting = resources.as_many_as_fit(replace(self.wanted, min=1)).max
        self._start(min(self.wanted.max, fitting))

    def _call(self, actor: Any, method: str, *arguments: Any) -> Any:
        return getattr(actor, method).options(retry_exceptions=RETRIED_ERRORS).remote(*arguments)

    def _results(self, futures: Sequence[Any], who: Sequence[str]) -> list[Any]:
        results = []
        for future, name in zip(futures, who, strict=False):
            with user_errors(name, self.wanted.advice):
                results.append(ray.get(future))
        return results
