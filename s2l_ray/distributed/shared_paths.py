"""Paths that all nodes of a cluster must share, looked at before work on them begins."""

import glob
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from s2l_ray.errors import ConfigError, first, one_line
from s2l_ray.storage.location import Location, is_uri

SECONDS_TO_ANSWER = 60.0
"""A node that starts no worker in this time is left to those who need it."""


@dataclass(frozen=True)
class Seen:
    """What a worker sees on its node.

    Attributes:
        node: the address of the node.
        missing: keys whose paths are not there, and the first such path of each.
    """

    node: str
    missing: Mapping[str, str] = field(default_factory=dict)


def check(run: Location, paths: Mapping[str, Sequence[str]]) -> None:
    """Refuse a cluster with a node that does not share `run` and `paths` with this process.

    A task on every other node reads a file that this process has written into `run`, and leaves one
    that this process then looks for. Where every path is a URI, or there is no other node, nothing
    is done.

    Args:
        run: the folder of a run.
        paths: input files and patterns by configuration key, each absolute or a URI.

    Raises:
        ConfigError: naming the key, the nodes, and what to use instead.
    """
    local = {
        key: kept for key, values in paths.items() if (kept := [v for v in values if not is_uri(v)])
    }
    others = _other_nodes() if run.is_local or local else {}
    if not others:
        return
    probe = run / f".probe-{uuid.uuid4().hex}"
    if run.is_local:
        (probe / "driver").write_bytes(b"")
    try:
        found = _looked_at(others, probe, local)
        left = set(probe.names()) if run.is_local else {seen.node for seen in found}
    finally:
        if run.is_local:
            probe.remove()
    for key, path in [("run_dir", str(run)), *((k, v[0]) for k, v in local.items())]:
        blind = [
            seen
            for seen in found
            if key in seen.missing or (key == "run_dir" and seen.node not in left)
        ]
        if blind:
            shown = blind[0].missing.get(key, path)
            raise ConfigError(unshared(key, shown, [seen.node for seen in blind]))


def unshared(key: str, path: str, nodes: Sequence[str]) -> str:
    """Return the message that nodes do not see a path as this program does."""
    return (
        f"{key}: {len(nodes)} node(s) of the cluster do not see {path} as the node of this program "
        f"does (first: {first(nodes)}). Workers run on all nodes: give a folder that all of them "
        "mount at the same place, or a URI such as s3://bucket/..."
    )


def look(node: str, probe: Location, paths: Mapping[str, Sequence[str]]) -> Seen:
    """Return what this process sees, and leave a file for the one that has written `probe`."""
    missing = {
        key: absent[0]
        for key, values in paths.items()
        if (absent := [value for value in values if not _exists(value)])
    }
    if probe.is_local and not (probe / "driver").is_file():
        missing["run_dir"] = str(probe.parent)
    elif probe.is_local:
        (probe / node).write_bytes(b"")
    return Seen(node, missing)


def _exists(path: str) -> bool:
    whole = str(Path(path).expanduser())
    return Path(whole).exists() or any(True for _ in glob.iglob(whole, recursive=True))


def _other_nodes() -> dict[str, str]:
    """Return id -> address of the nodes that can work, without that of this process."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return {
        node["NodeID"]: f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != here and node["Resources"].get("CPU", 0) > 0
    }


def _looked_at(
    nodes: Mapping[str, str], probe: Location, paths: Mapping[str, Sequence[str]]
) -> list[Seen]:
    """Return what is seen on each node that answers."""
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(look)
    futures = [
        task.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(name, probe, paths)
        for node, name in nodes.items()
    ]
    name_of = dict(zip(futures, nodes.values(), strict=True))
    done, slow = ray.wait(futures, num_returns=len(futures), timeout=SECONDS_TO_ANSWER)
    for future in slow:
        ray.cancel(future)
    found = []
    for future in done:
        try:
            found.append(ray.get(future))
        except RayTaskError as error:
            raise ConfigError(
                f"{name_of[future]} cannot run this program: {one_line(error.cause)[:300]}. Every "
                "node needs the s2l_ray of the driver, and its packages."
            ) from None
        except RayError:
            continue  # the node has left the cluster meanwhile
    return found
