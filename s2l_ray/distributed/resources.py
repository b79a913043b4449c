"""What the workers of a stage take, and what a cluster has of it: now, free, and ever."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from s2l_ray.config.sections import WorkerRange
from s2l_ray.errors import ConfigError

MAX_WORKERS = 1_024
"""Of a stage without a setting for it, on a cluster that grows."""
NODE_GROUP = "ray.io/node-group"
"""Ray's label for the kind of a node that an autoscaler manages."""


@dataclass(frozen=True)
class Workers:
    """How many workers a stage wants, and what each of them takes."""

    stage: str
    min: int
    max: int
    cpus: float = 1
    gpus: float = 0

    @property
    def asks(self) -> dict[str, float]:
        """Of each, under the names of Ray's resources."""
        return {"CPU": self.cpus, "GPU": self.gpus}


def workers(
    stage: str, count: int | WorkerRange, *, cpus: float, gpus: float | None = None
) -> Workers:
    """Workers with a GPU each where the cluster has GPUs and `gpus` was left open."""
    low, high = (count.min, count.max) if isinstance(count, WorkerRange) else (count, count)
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in _nodes()) else 0.0
    wanted = Workers(stage, low, high, cpus, gpus)
    check_resources(wanted)
    return wanted


def one_per_cpu() -> WorkerRange:
    """As many workers of one CPU as there are, or will be, CPUs; the work itself bounds them."""
    cpus = int(sum(node.get("CPU", 0) for node in _nodes()))
    return WorkerRange(min=1, max=MAX_WORKERS if _can_grow() else max(cpus, 1))


def check_resources(wanted: Workers) -> None:
    """Refuse what the nodes of a cluster of fixed size will never hold.

    Raises:
        ConfigError: naming what was asked for and what there is.
    """
    if _can_grow():
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
    """How many such workers fit on resources that nothing has taken, as far as is known by now."""
    from ray._private.state import available_resources_per_node

    return sum(
        min(int(node.get(kind, 0) / each + 1e-9) for kind, each in wanted.asks.items() if each)
        for node in available_resources_per_node().values()
    )


def _nodes() -> list[Mapping[str, float]]:
    """The resources of every node that is there now."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _can_grow() -> bool:
    """Whether the cluster is managed by something that may add nodes, to which sizes unknown here.

    Ray's newer autoscaler (KubeRay, `ray up`) labels nodes with their group; the older one reports
    nodes by their types, where for nodes that were started by hand there is a type for each. What
    they may add is in their own configuration, which jobs cannot read.
    """
    import ray
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if any(NODE_GROUP in node["Labels"] for node in nodes):
        return True
    status = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}")
    report = status.get("autoscaler_report") or {}
    own_types = {f"node_{node['NodeID']}" for node in ray.nodes()}
    types = {*report.get("active_nodes", {}), *(report.get("idle_nodes") or {})}
    return bool(types - own_types)
