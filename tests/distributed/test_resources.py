"""What workers ask for: a cluster that will never have it is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from s2l_ray.clusters.declaration import CLUSTERS
from s2l_ray.config.load import from_tree
from s2l_ray.config.training import WorkerRange
from s2l_ray.distributed import resources
from s2l_ray.errors import ConfigError
from s2l_ray.pipeline import preflight
from s2l_ray.trajectories.declaration import TRAJECTORIES

ROOT = Path(__file__).parents[2]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_workers_fit_when_the_fewest_do():
    assert resources.workers("trajectories", WorkerRange(min=2, max=64), cpus=1) == (
        resources.Workers("trajectories", 2, 64, 1, 0)
    )
    assert resources.workers("reference", 2, cpus=1).gpus == 0


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("count", "cpus", "gpus", "message"),
    [
        (3, 1, None, r"target: 3 worker\(s\) of 1 CPU need 3 CPU, .* 2, at most 2 on a node\."),
        (1, 4, None, r"target: 1 worker\(s\) of 4 CPU .*target\.cpus_per_worker"),
        (WorkerRange(min=3, max=4), 1, None, r"target: 3 worker\(s\) of 1 CPU"),
        (
            1,
            1,
            1,
            r"target: 1 worker\(s\) of 1 GPU need 1 GPU, .* more than 0, at most 0 on a node",
        ),
        (1, 1, 0.5, r"need 0\.5 GPU, .*target\.workers or target\.gpus_per_worker"),
    ],
)
def test_workers_that_never_fit_are_refused(count, cpus, gpus, message):
    with pytest.raises(ConfigError, match=message):
        resources.workers("target", count, cpus=cpus, gpus=gpus)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_late_stage_that_never_fits_is_refused_before_an_early_one_runs():
    run = from_tree(
        {
            "run_dir": "unused",
            "trajectories": {"path": "unused", "workers": 9},
            "clusters": {"workers": 3},
        },
        "test",
    )

    with pytest.raises(ConfigError, match=r"clusters: 3 worker\(s\) of 1 CPU"):
        preflight.check_resources(run, [TRAJECTORIES, CLUSTERS])
    preflight.check_resources(run, [TRAJECTORIES])


TWO_NODES = """
import os
import ray
from ray.cluster_utils import Cluster
from s2l_ray.distributed import resources
from s2l_ray.errors import ConfigError

def look():
    print(resources.one_per_cpu().max)
    for count, cpus in ((3, 1), (1, 2), (2, 2), (1, 3), (4, 1)):
        try:
            resources.workers("target", count, cpus=cpus, gpus=0)
            print(count, cpus, "fits")
        except ConfigError as error:
            print(count, cpus, error)

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=2)
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)
look()
os.environ["RAY_NODE_TYPE_NAME"] = "workers"  # as autoscalers do
cluster.add_node(num_cpus=0)
cluster.wait_for_nodes()
look()
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.ray
@pytest.mark.cluster
def test_workers_must_fit_on_nodes_where_nobody_can_add_any():
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    fixed, managed = lines[:6], lines[6:]

    assert fixed[0] == "3"
    assert [line.endswith(" fits") for line in fixed[1:]] == [True, True, False, False, False]
    assert "never have more than 3, at most 2 on a node. Lower target.workers" in fixed[4]
    assert managed[0] == str(resources.MAX_WORKERS)
    assert [line.endswith(" fits") for line in managed[1:]] == [True] * 5
