"""Actors that each hold a share of the parts and are called together.

Small results come to the driver; what is large goes from actor to actor.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import ray

from s2l_ray.distributed import resources, waiting
from s2l_ray.distributed.failures import MAX_ATTEMPTS, user_errors
from s2l_ray.distributed.session import worker_environment
from s2l_ray.errors import StorageError, first
from s2l_ray.storage.location import Location

MAX_RETRIES = MAX_ATTEMPTS - 1
RETRIED_ERRORS = [StorageError, OSError, MemoryError, RuntimeError]
"""Errors that another attempt may not meet again."""


@dataclass(frozen=True)
class RayFleet:
    """The actors of one stage.

    Attributes:
        wanted: their stage, and the advice for a message that memory ran out.
        actors: Ray's handles.
        names: each actor, as messages name it: by the parts that it holds.
    """

    wanted: resources.Workers
    actors: list[Any]
    names: list[str]

    @classmethod
    def start(
        cls, worker: type, files: Sequence[Location], wanted: resources.Workers, *arguments: Any
    ) -> "RayFleet":
        """Start actors of `worker(files by part number, *arguments)`; each holds at least one part.

        There are `wanted.max` actors, or one for each part if that is less.

        Raises:
            ConfigError: the cluster has no room for them, and got none in time.
        """
        count = max(min(wanted.max, len(files)), 1)
        waiting.for_room(replace(wanted, min=count))
        # Ray restarts an actor that died; it reads its parts again, and the call is repeated.
        actor = ray.remote(worker).options(
            num_cpus=wanted.cpus,
            max_restarts=MAX_RETRIES,
            max_task_retries=MAX_RETRIES,
            runtime_env=worker_environment(cpus=1, gpus=0),
        )
        shares = [
            {part: files[part] for part in range(index, len(files), count)}
            for index in range(count)
        ]
        names = [f"{wanted.stage}: the worker of parts {first(list(share))}" for share in shares]
        return cls(wanted, [actor.remote(share, *arguments) for share in shares], names)

    def call_all(self, method: str, *arguments: Any) -> list[Any]:
        """Return what `method` returns on every actor, in the order of the actors.

        Raises:
            UserError: an actor raised it; or an actor died or had too little memory in
                MAX_ATTEMPTS attempts.
            UnitError: an actor failed in another way, MAX_ATTEMPTS times if it may be retried.
        """
        shared = [ray.put(argument) for argument in arguments]
        calls = [self._call(actor, method, *shared) for actor in self.actors]
        return self._results(calls, self.names)

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
        reduced = [item for of_actor in self._results(futures, who) for item in of_actor.items()]
        return dict(sorted(reduced, key=itemgetter(0)))

    def _call(self, actor: Any, method: str, *arguments: Any) -> Any:
        return getattr(actor, method).options(retry_exceptions=RETRIED_ERRORS).remote(*arguments)

    def _results(self, futures: Sequence[Any], who: Sequence[str]) -> list[Any]:
        results = []
        for future, name in zip(futures, who, strict=False):
            with user_errors(name, self.wanted.advice):
                results.append(ray.get(future))
        return results
