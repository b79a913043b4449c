"""Workers that die again and again, before one of them has done anything.

Attempts at a unit of work are counted, and so are restarts of a fleet. A worker that dies while it
starts has begun nothing that could be counted, and Ray starts another one, for ever: Ray's memory
monitor kills all workers of a machine that others have filled, and none can start where Ray cannot
write.
"""

import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from s2l_ray.distributed import failures, resources
from s2l_ray.errors import DataError, UserError
from s2l_ray.progress import Progress

if TYPE_CHECKING:
    from ray.core.generated.gcs_pb2 import WorkerTableData

SECONDS_OF_DEATHS = 30.0
"""How long workers die, and nothing is done, until a step is given up."""
LOOKS_WITH_DEATHS = 5
"""How often workers must then have died: more often than a unit of work or a training is tried,
whose last failure says more."""
Worker = tuple[str, int]
"""Ray's id of an actor, and its process: another one after a restart."""


class Deaths:
    """The workers that have died since a step got anywhere.

    It gets somewhere when a unit is done, or when a worker lives for SECONDS_OF_DEATHS.
    """

    def __init__(self) -> None:
        self._reached: tuple[Progress, int | None] | None = None
        self._born: dict[Worker, float] = {}
        self._known: Collection[bytes] | None = None
        self._seen: list[float] = []

    def look(
        self,
        step: Progress,
        living: Collection[Worker],
        all_dead: Callable[[], Mapping[bytes, "WorkerTableData"]],
    ) -> "WorkerTableData | None":
        """Return the worker whose death ends the step; None while there is hope for it.

        Args:
            step: the current one.
            living: its workers that have started.
            all_dead: returns those that have died by now; asked only if the step got nowhere.
        """
        now = time.monotonic()
        self._born = {worker: self._born.get(worker, now) for worker in living}
        lasting = any(now - born >= SECONDS_OF_DEATHS for born in self._born.values())
        if lasting or self._reached != (step, step.reached):
            self._reached, self._seen, self._known = (step, step.reached), [], None
            return None
        dead = all_dead()
        fresh = dead.keys() - (dead.keys() if self._known is None else self._known)
        self._known = dead.keys()
        if not fresh:
            return None
        # Many that die together count as one: a node may have been taken away.
        self._seen.append(now)
        if len(self._seen) < LOOKS_WITH_DEATHS or now - self._seen[0] < SECONDS_OF_DEATHS:
            return None
        return max((dead[worker] for worker in fresh), key=lambda worker: worker.end_time_ms)


def dead_workers() -> dict[bytes, "WorkerTableData"]:
    """Return this job's workers that have not ended by themselves, on nodes that live, by id."""
    import ray
    from ray._private.state import state
    from ray.core.generated.common_pb2 import NODE_OUT_OF_MEMORY, SYSTEM_ERROR
    from ray.core.generated.gcs_pb2 import WorkerTableData

    job, nodes = ray.get_runtime_context().get_job_id(), resources.nodes()
    records = map(WorkerTableData.FromString, state._connect_and_get_accessor().get_worker_table())
    return {
        worker.worker_address.worker_id: worker
        for worker in records
        if not worker.is_alive
        and worker.exit_type in (NODE_OUT_OF_MEMORY, SYSTEM_ERROR)
        and worker.job_id.hex() == job
        and worker.worker_address.node_id.hex() in nodes
    }


def explained(stage: str, last: "WorkerTableData") -> UserError:
    """Return the error for a stage that the death of `last`, after many others, ends."""
    from ray.core.generated.common_pb2 import NODE_OUT_OF_MEMORY

    said, node = " ".join(last.exit_detail.split())[:300], last.worker_address.ip_address
    if last.exit_type == NODE_OUT_OF_MEMORY:
        return DataError(
            f"{stage}: the memory of a machine (node {node}) does not suffice: Ray's memory "
            f"monitor kills every worker before it has done anything ({said}). Free memory there, "
            "run fewer workers on a machine, or use machines with more memory; the same command "
            "then goes on from here."
        )
    return failures.death(f"{stage}: every worker on node {node}", said)
