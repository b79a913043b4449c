"""Nodes that come and go, and workers that start, seen from the driver while it waits for them."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from s2l_ray import events, progress
from s2l_ray.background import running_thread
from s2l_ray.distributed import ray_metrics, worker_deaths
from s2l_ray.errors import UserError

SECONDS_PER_LOOK, SECONDS_PER_LOOK_AT_NODES = 1.0, 5.0
OF_TRAININGS = ("RayTrainWorker",)
WORKERS = (
    *OF_TRAININGS,
    "MapWorker",
    "ClusterWorker",
    "MomentsWorker",
    "StrataWorker",
    "RankingWorker",
)
"""What the classes of workers that steps wait for begin with: Ray Train's, Ray Data's, and ours."""

_watching = threading.Lock()
_watch: "_Watch | None" = None


def is_connected() -> bool:
    """Return True if this process is connected to Ray already."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


@contextlib.contextmanager
def watched(give_up: Callable[[UserError], None]) -> Iterator[None]:
    """Inside the block, tell nodes that come and go, count workers, and export metrics.

    A block inside such a block changes nothing.

    Args:
        give_up: called, in a thread, with the error with which the current step is to end. Who
            waits for workers in another way than that ends asks `given_up`.
    """
    global _watch
    if not _watching.acquire(blocking=False):
        yield
        return
    try:
        _watch = _Watch(give_up)
        with ray_metrics.exported(), running_thread(_watch.keep):
            yield
    finally:
        _watch = None
        _watching.release()


def given_up() -> UserError | None:
    """Return the error with which the current step is to end; None while there is hope for it."""
    watch = _watch
    step, error = (None, None) if watch is None else watch.given_up
    return error if step is progress.current() else None


class _Watch:
    """What was seen of the cluster at the last look."""

    def __init__(self, give_up: Callable[[UserError], None]) -> None:
        self.given_up: tuple[progress.Progress | None, UserError | None] = (None, None)
        """A step, and the error with which it is to end; until the next look, if nobody asks."""
        self._give_up = give_up
        self._deaths = worker_deaths.Deaths()
        self._nodes: dict[str, str] | None = None
        self._next_nodes = 0.0
        self._step: progress.Progress | None = None
        self._earlier: set[str] = set()

    def keep(self, stop: threading.Event) -> None:
        """Look at the cluster until `stop` is set; a look that fails is left out."""
        while not stop.wait(SECONDS_PER_LOOK):
            # Whoever needs the cluster reports that it is lost.
            with contextlib.suppress(Exception):
                self._look_at_workers()
                if time.monotonic() >= self._next_nodes:
                    self._next_nodes = time.monotonic() + SECONDS_PER_LOOK_AT_NODES
                    self._look_at_nodes()
                    self._look_at_deaths()

    def _look_at_workers(self) -> None:
        step = progress.current()
        if step is None:
            return
        actors = workers()
        if step is not self._step:
            # Those of the step before may take a moment to end.
            self._step, self._earlier = step, set(actors)
        new = [state for name, state in actors.items() if name not in self._earlier]
        step.workers = (new.count("ALIVE"), len(new)) if new else None

    def _look_at_nodes(self) -> None:
        import ray

        nodes = {
            node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]
        }
        before = nodes if self._nodes is None else self._nodes
        for node in nodes.keys() - before.keys():
            events.tell("node joined", node=node, address=nodes[node], nodes=len(nodes))
        for node in before.keys() - nodes.keys():
            events.tell("node lost", node=node, address=before[node], nodes=len(nodes))
        self._nodes = nodes

    def _look_at_deaths(self) -> None:
        step = progress.current()
        if step is None:
            return
        alive = (actor for actor in _actors(WORKERS) if actor["State"] == "ALIVE")
        living = {(actor["ActorID"], actor["Pid"]) for actor in alive}
        last = self._deaths.look(step, living, worker_deaths.dead_workers)
        error = None if last is None else worker_deaths.explained(step.stage, last)
        self.given_up = (step, error)
        if error is not None:
            self._give_up(error)


def workers(kinds: tuple[str, ...] = WORKERS) -> dict[str, str]:
    """Return the state of each worker of this job that has not ended, by Ray's id.

    Args:
        kinds: what the names of their classes begin with.
    """
    return {actor["ActorID"]: actor["State"] for actor in _actors(kinds)}


def _actors(kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return what Ray knows of each worker of this job that has not ended."""
    import ray
    from ray._private.state import actors

    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    return [
        actor
        for actor in actors(None, job).values()
        if actor["State"] != "DEAD" and actor["ActorClassName"].startswith(kinds)
    ]
