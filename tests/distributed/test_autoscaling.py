"""A cluster without a CPU, to which Ray's own autoscaler adds nodes as they are waited for."""

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.own_ray import free_ports, head_node
from tests.small_run import sets, stages_done

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
COUNT_CPUS = """
import json, ray
ray.init(log_to_driver=False)
print(json.dumps([node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]))
"""


def autoscaler(port: int) -> dict:
    """At most two nodes of one CPU, which go again after three idle seconds."""
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
        "idle_timeout_minutes": 0.05,
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


def test_nodes_come_for_the_work_and_go_after_it(finished, config, tmp_path):
    (port,) = free_ports(1)
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(autoscaler(port)))
    for stage in ("prepared", "reference"):
        shutil.copytree(finished / stage, tmp_path / "run" / stage)
    shutil.copy(finished / "run.json", tmp_path / "run")
    options = ["--num-cpus=0", f"--autoscaling-config={tmp_path / 'cluster.yaml'}"]
    variables = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "0",
        "RAY_ADDRESS": f"127.0.0.1:{port}",
    }
    overrides = sets(run_dir=tmp_path / "run", trajectories__workers="{min: 1, max: 2}")
    with head_node(*options, port=port, **variables) as head:

        def cpus() -> list[float]:
            done = head.call("python", "-c", COUNT_CPUS)
            assert done.returncode == 0, done.stderr
            return sorted(json.loads(done.stdout.splitlines()[-1]))

        assert cpus() == [0]
        head.environment["PYTHONPATH"] = str(ROOT)
        run = [config, "--until", "selection", *overrides]
        done = head.call(Path(sys.executable).name, "-m", "s2l_ray", "run", *run)
        assert done.returncode == 0, done.stdout + done.stderr
        assert stages_done(done.stdout) == {"trajectories", "clusters", "selection"}
        assert max(cpus()) == 1

        deadline = time.monotonic() + 90
        while cpus() != [0]:
            assert time.monotonic() < deadline, "idle nodes stay"

    for name in ("trajectories/part-000000.parquet", "selection/ranking.parquet"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()
