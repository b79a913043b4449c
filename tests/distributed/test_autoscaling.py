"""A cluster without a CPU, to which Ray's own autoscaler adds nodes as they are waited for."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.own_ray import BIN, Head, head_node
from tests.reporting import HOOK
from tests.small_run import sets, stages_done

pytestmark = [pytest.mark.ray, pytest.mark.cluster]

ROOT = Path(__file__).parents[2]
NODES = """
import json, sys, time, ray
from ray.util.state import list_nodes
ray.init(log_to_driver=False)
while True:
    nodes = list_nodes(detail=True, limit=1000)
    alive = [node for node in nodes if node.state == "ALIVE"]
    if sys.argv[1] == "now" or len(alive) == 1:
        break
    time.sleep(0.5)
print(json.dumps([
    (node.is_head_node, node.state, node.resources_total.get("CPU", 0)) for node in nodes
]))
"""
"""All nodes that the cluster has ever had; as `left`, once the head alone is left of them."""

INTERRUPTED = "s2l: interrupted; the same command goes on from what is saved"


def autoscaler(port: int) -> dict:
    """At most two nodes of one CPU, which go again after fifteen idle seconds."""
    worker = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2}
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    unused = {
        "docker": {},
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }
    return unused | {
        "cluster_name": "fake_multinode",
        "max_workers": 2,
        "idle_timeout_minutes": 0.25,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": f"127.0.0.1:{port}",
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {"ray.head.default": head, "worker": worker},
    }


def interrupted_in_vain(head: Head, config: Path, run: Path) -> tuple[str, str, int]:
    """Ask for a node that no type offers, and press Ctrl-C when it is said.

    Returns:
        the line that says it, what comes after it, and the exit code.
    """
    overrides = sets(run_dir=run, trajectories__gpus_per_worker=1)
    with subprocess.Popen(
        [BIN / "python", "-m", "s2l_ray", "run", config, "--until", "selection", *overrides],
        env=head.environment,
        cwd=head.home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A process that a shell has started in the background ignores Ctrl-C from its birth.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as asking:
        assert asking.stdout is not None
        said = next((line for line in asking.stdout if "(resources.wait)" in line), "")
        asking.send_signal(signal.SIGINT)
        rest = asking.stdout.read()
    return said, rest, asking.returncode


def test_nodes_come_for_the_work_and_go_after_it(copied, finished, config, tmp_path):
    run, options = copied("prepared", "reference"), tmp_path / "cluster.yaml"
    variables = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "0",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(HOOK)]),
    }

    def write_options(port: int) -> None:
        options.write_text(yaml.safe_dump(autoscaler(port)))

    with head_node(
        "--num-cpus=0",
        f"--autoscaling-config={options}",
        before=write_options,
        **variables,
    ) as head:
        head.environment["RAY_ADDRESS"] = f"127.0.0.1:{head.port}"

        def nodes(when: str) -> list[list]:
            done = head.call("python", "-c", NODES, when)
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout.splitlines()[-1])

        assert nodes("now") == [[True, "ALIVE", 0]]
        said, rest, code = interrupted_in_vain(head, config, run)
        assert "trajectories: waiting for room for 1 worker of 1 CPU and 1 GPU, at most" in said
        assert "The cluster has 0 CPU (0 free), 0 GPU (0 free). Its autoscaler has nodes" in said
        assert "it is starting no node" in said
        assert (code, rest.strip()) == (130, INTERRUPTED)
        overrides = sets(run_dir=run, trajectories__workers="{min: 1, max: 2}")
        done = head.call(
            "python", "-m", "s2l_ray", "run", config, "--until", "selection", *overrides
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert stages_done(done.stdout) == {"trajectories", "clusters", "selection"}
        # Whether the nodes are still there depends on how soon we ask; that they came does not.
        (*came, _) = sorted(nodes("left"))
        assert {(is_head, cpus) for is_head, _, cpus in came} == {(False, 1)}
        assert {state for _, state, _ in came} == {"DEAD"}

    for name in ("trajectories/part-000000.parquet", "selection/ranking.parquet"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()
