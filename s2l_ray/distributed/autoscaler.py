"""What Ray's autoscalers say of themselves: whether there is one, and what it is doing.

There are two. KubeRay and `ray up` of today start the newer one, which labels nodes with their
group. The older one reports nodes by type, and gives every node that was started by hand a type of
its own. What they may add is in their own configuration, which jobs cannot read: a type is known
from the first node of it that was asked for.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NODE_GROUP = "ray.io/node-group"
"""Ray's label that names the kind of a node which an autoscaler manages."""


@dataclass(frozen=True)
class Autoscaler:
    """What an autoscaler has reported.

    Attributes:
        node_types: of nodes that it has, starts or could not start.
        starting: node type -> nodes that are on their way.
        failures: node type -> why none of it could be started lately.
    """

    node_types: frozenset[str]
    starting: Mapping[str, int]
    failures: Mapping[str, str]

    def __str__(self) -> str:
        types = ", ".join(sorted(self.node_types)) or "none"
        if self.starting:
            doing = "it is starting " + ", ".join(
                f"{count} {name}" for name, count in sorted(self.starting.items())
            )
        else:
            doing = "it is starting no node: no type has what is asked for, or its limits are met"
        failed = "".join(
            f"; it could not start {name}: {why}" for name, why in sorted(self.failures.items())
        )
        return f"Its autoscaler has nodes of the types {types}; {doing}{failed}."


def manages_cluster() -> bool:
    """Return True if an autoscaler may add nodes, of sizes unknown here."""
    import ray

    if any(NODE_GROUP in node["Labels"] for node in ray.nodes() if node["Alive"]):
        return True
    return bool(_older().node_types)


def report() -> Autoscaler | None:
    """Return what the autoscaler of the cluster is doing; None if there is none."""
    if not manages_cluster():
        return None
    older, newer = _older(), _newer()
    return Autoscaler(
        older.node_types | newer.node_types,
        {**older.starting, **newer.starting},
        {**older.failures, **newer.failures},
    )


def _older() -> Autoscaler:
    import ray
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    status = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}")
    manual = {f"node_{node['NodeID']}" for node in ray.nodes()}
    return read_status(status.get("autoscaler_report") or {}, manual)


def read_status(status: Mapping[str, Any], manual_types: set[str]) -> Autoscaler:
    """Return the report of the older autoscaler, without nodes that were started by hand."""
    starting = Counter(status.get("pending_launches") or {})
    starting.update(node_type for _, node_type, _ in status.get("pending_nodes") or [])
    known = (status.get("node_availability_summary") or {}).get("node_availabilities") or {}
    failures = {
        name: record["unavailable_node_information"]["description"]
        for name, record in known.items()
        if record.get("unavailable_node_information")
    }
    present = {*(status.get("active_nodes") or {}), *(status.get("idle_nodes") or {})}
    types = frozenset({*present, *starting, *failures} - manual_types)
    return Autoscaler(types, dict(starting), failures)


def _newer() -> Autoscaler:
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    starting = Counter[str]()
    for launch in status.pending_launches:
        starting[launch.ray_node_type_name] += launch.count
    starting.update(node.ray_node_type_name for node in status.pending_nodes)
    failures = {
        launch.ray_node_type_name: launch.details or "no reason given"
        for launch in status.failed_launches
    }
    labels = [node["Labels"].get(NODE_GROUP) for node in ray.nodes() if node["Alive"]]
    return Autoscaler(
        frozenset({*filter(None, labels), *starting, *failures}), dict(starting), failures
    )
