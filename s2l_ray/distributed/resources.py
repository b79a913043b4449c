"""The resources that workers of a stage need, and those that a cluster has or can get."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from s2l_ray.config.training import WorkerRange
from s2l_ray.distributed import autoscaler, session
from s2l_ray.errors import ConfigError

MAX_WORKERS = 1_024
"""The most workers of a stage that has no setting for their number, on a cluster that grows."""
MAX_BYTES_HERE = 2 << 30
"""Work that holds at most so many bytes is done in this process, unless a cluster was joined."""


MOST_THREADS = 8
"""Threads for work that fits this process; each may hold a part with its embeddings."""


@dataclass(frozen=True)
class Workers:
    """The workers that a stage wants.

    Attributes:
        stage: the name of the stage, as messages begin with it.
        min, max: the fewest and the most workers.
        cpus, gpus: what each of them takes.
        advice: what to do when a worker runs out of memory, one or more sentences.
        here: whether they are threads of this process, or processes beside it, for which Ray is not
            needed.
        preload: modules that are loaded once for all of these processes; empty for threads.
    """

    stage: str
    min: int
    max: int
    cpus: float = 1
    gpus: float = 0
    advice: str = ""
    here: bool = False
    preload: tuple[str, ...] = ()

    @property
    def asks(self) -> dict[str, float]:
        """The resources of one worker, under Ray's names."""
        return {"CPU": self.cpus, "GPU": self.gpus}


def workers(
    stage: str,
    count: int | WorkerRange,
    *,
    cpus: float,
    gpus: float | None = None,
    advice: str = "",
) -> Workers:
    """Return the workers of a stage, after a check that the cluster can hold the fewest of them.

    Args:
        gpus: GPUs of each; None for one where the cluster has GPUs, and none where it has none.
        advice: what to do when a worker runs out of memory.

    Raises:
        ConfigError: as `check_resources`.
    """
    low, high = (count.min, count.max) if isinstance(count, WorkerRange) else (count, count)
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in _nodes()) else 0.0
    wanted = Workers(stage, low, high, cpus, gpus, advice)
    check_resources(wanted)
    return wanted


def fits_here(num_bytes: Callable[[], int]) -> bool:
    """Tell whether work that holds so many bytes is done by threads of this process.

    That saves the starts of Ray and of its workers. On a cluster that was joined it is not done:
    this process may run on a small node.
    """
    return not session.is_shared() and num_bytes() <= MAX_BYTES_HERE


def threads(stage: str, *, advice: str = "") -> Workers:
    """Return workers that are threads of this process, one for each CPU that it may use."""
    return Workers(stage, 1, min(_usable_cpus(), MOST_THREADS), advice=advice, here=True)


def processes(stage: str, *preload: str, advice: str = "") -> Workers:
    """Return workers that are processes of this machine, as many as a Ray started here would have.

    Args:
        preload: names of the modules that take long to load.
    """
    from ray._private.utils import get_num_cpus  # heeds the limit of a container

    count = max(min(_usable_cpus(), int(get_num_cpus())), 1)
    return Workers(stage, 1, count, advice=advice, here=True, preload=preload)


def _usable_cpus() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return usable or 1


def one_per_cpu() -> WorkerRange:
    """Return a range from one worker of one CPU to as many as the cluster has CPUs.

    A cluster that can grow may have MAX_WORKERS. The number of units bounds the workers as well.
    """
    cpus = int(sum(node.get("CPU", 0) for node in _nodes()))
    return WorkerRange(min=1, max=MAX_WORKERS if autoscaler.manages_cluster() else max(cpus, 1))


def as_many_as_fit(wanted: Workers) -> Workers:
    """Return `wanted` with the most workers that the cluster can hold, and at least `wanted.min`.

    A cluster that can grow may have MAX_WORKERS. The number of units bounds the workers as well.
    """
    fitting = (
        MAX_WORKERS
        if autoscaler.manages_cluster()
        else sum(_num_fitting(wanted, node) for node in _nodes())
    )
    return replace(wanted, max=max(fitting, wanted.min))


def _num_fitting(wanted: Workers, node: Mapping[str, float]) -> int:
    """Return how many of the workers fit on what a node has."""
    return min(int(node.get(kind, 0) / each + 1e-9) for kind, each in wanted.asks.items() if each)


def check_resources(wanted: Workers) -> None:
    """Refuse workers that a cluster of fixed size can never hold.

    Raises:
        ConfigError: the fewest workers do not fit; it names what they need and what there is.
    """
    if autoscaler.manages_cluster():
        return
    nodes = _nodes()
    for kind, each in wanted.asks.items():
        if each == 0:
            continue
        fitting = sum(int(node.get(kind, 0) / each + 1e-9) for node in nodes)
        if wanted.min > fitting:
            total = sum(node.get(kind, 0) for node in nodes)
            largest = max((node.get(kind, 0) for node in nodes), default=0)
            raise ConfigError(
                f"{wanted.stage}: {wanted.min} worker(s) of {each:g} {kind} need "
                f"{each * wanted.min:g} {kind}, and this cluster will never have more than "
                f"{total:g}, at most {largest:g} on a node. Lower {wanted.stage}.workers or "
                f"{wanted.stage}.{kind.lower()}s_per_worker, or use a larger cluster."
            )


def num_free(wanted: Workers) -> int:
    """Return the number of such workers that fit on resources that are free, as last reported."""
    return sum(_num_fitting(wanted, node) for node in _free_by_node())


def nodes() -> frozenset[str]:
    """Return the ids of the nodes that are alive."""
    import ray

    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


def total() -> Mapping[str, float]:
    """Return the resources of all nodes that are alive."""
    return sum(map(Counter[str], _nodes()), Counter[str]())


def free() -> Mapping[str, float]:
    """Return the resources of all nodes that are free, as last reported."""
    return sum(map(Counter[str], _free_by_node()), Counter[str]())


def _free_by_node() -> list[Mapping[str, float]]:
    from ray._private.state import available_resources_per_node

    return list(available_resources_per_node().values())


def _nodes() -> list[Mapping[str, float]]:
    """Return the resources of every node that is alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
