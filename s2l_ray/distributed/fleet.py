"""Actors that hold a share of the parts each, and are asked together.

The driver sees what they return, small as it is; what is large goes from actor to actor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import ray

from s2l_ray.distributed import resources, session
from s2l_ray.errors import StorageError, first
from s2l_ray.storage.location import Location

MAX_RETRIES = session.MAX_ATTEMPTS - 1
MAY_PASS = [StorageError, OSError, MemoryError, RuntimeError]
"""What another attempt may not meet again."""


@dataclass(frozen=True)
class RayFleet:
    """Actors of a stage, and what each of them holds, in words."""

    stage: str
    actors: list[Any]
    held: list[str]

    @classmethod
    def start(
        cls, worker: type, files: Sequence[Location], wanted: resources.Workers, *arguments: Any
    ) -> "RayFleet":
        """`worker(files by part number, *arguments)` on every actor; none without a part."""
        count = max(min(wanted.max, len(files)), 1)
        # An actor that died is started again, reads its parts again, and repeats the call.
        actor = ray.remote(worker).options(
            num_cpus=wanted.cpus,
            max_restarts=MAX_RETRIES,
            max_task_retries=MAX_RETRIES,
            runtime_env=session.worker_environment(cpus=1, gpus=0),
        )
        shares = [
            {part: files[part] for part in range(index, len(files), count)}
            for index in range(count)
        ]
        held = [f"{wanted.stage}: the worker of parts {first(list(share))}" for share in shares]
        return cls(wanted.stage, [actor.remote(share, *arguments) for share in shares], held)

    def everywhere(self, method: str, *arguments: Any) -> list[Any]:
        """What `method` returns on every actor.

        Raises:
            UserError: as an actor raised it, or an actor died or had too little memory, too often.
            UnitError: an actor failed in another way, too often.
        """
        shared = [ray.put(argument) for argument in arguments]
        calls = [self._call(actor, method, *shared) for actor in self.actors]
        return self._results(calls, self.held)

    def exchange(
        self, names: Sequence[str], give: str, take: str, *arguments: Any
    ) -> dict[str, Any]:
        """By name, in order: what `take` makes on one actor of what `give` returns on all.

        Args:
            arguments: of `give`, after the names that are wanted.

        Raises:
            UserError, UnitError: as for `everywhere`.
        """
        count = min(len(self.actors), len(names))
        shares = [names[index::count] for index in range(count)]
        # Only references come by here. All of it is asked for first, because an actor does its
        # calls in order.
        shared = [ray.put(argument) for argument in arguments]
        given = [
            [self._call(actor, give, share, *shared) for actor in self.actors] for share in shares
        ]
        futures = [
            self._call(actor, take, *shards)
            for actor, shards in zip(self.actors, given, strict=False)
        ]
        who = [f"{held}, or one that it took from," for held in self.held]
        taken = [item for of_actor in self._results(futures, who) for item in of_actor.items()]
        return dict(sorted(taken, key=itemgetter(0)))

    def _call(self, actor: Any, method: str, *arguments: Any) -> Any:
        return getattr(actor, method).options(retry_exceptions=MAY_PASS).remote(*arguments)

    def _results(self, futures: Sequence[Any], who: Sequence[str]) -> list[Any]:
        results = []
        for future, name in zip(futures, who, strict=False):
            with session.user_errors(name, self.stage):
                results.append(ray.get(future))
        return results
