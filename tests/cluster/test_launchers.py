"""Ray's own launcher, Slurm and Anyscale: files that they accept, and authentication."""

import re
import shlex

import pytest

from tests.cluster.manifests import GIB, manifest, text

LAUNCHED = ("aws.yaml", "gcp.yaml")
every_cloud = pytest.mark.parametrize("name", LAUNCHED)


@pytest.fixture(params=LAUNCHED)
def prepared(request):
    pytest.importorskip("jsonschema")
    util = pytest.importorskip("ray.autoscaler._private.util")
    config = util.prepare_config(manifest(request.param))
    util.validate_config(config)
    return config


def test_the_launcher_accepts_a_cluster(prepared):
    assert prepared["cluster_name"] == "s2l"


@every_cloud
def test_a_cluster_starts_with_a_head_that_takes_no_work(name):
    config = manifest(name)
    types = config["available_node_types"]
    assert config["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0}
    workers = {name: kind for name, kind in types.items() if name != "head"}
    assert {kind["min_workers"] for kind in workers.values()} == {0}
    assert sum(kind["max_workers"] for kind in workers.values()) <= config["max_workers"]


@every_cloud
def test_no_one_without_the_token_submits_or_joins(name):
    config = manifest(name)
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"].get("/home/ray/.ray/auth_token", "").startswith("~/")
    (start,) = (line for line in config["head_start_ray_commands"] if "--head" in line)
    assert "--dashboard-host=127.0.0.1" in shlex.split(start)


@every_cloud
def test_workers_join_the_port_of_the_head_with_an_object_store_that_fits(name):
    config = manifest(name)
    starts = [
        shlex.split(line)
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for line in config[key]
        if line.startswith("ray start")
    ]
    head, worker = ({word.partition("=")[0]: word.partition("=")[2] for word in words}
                    for words in starts)  # fmt: skip
    assert worker["--address"].endswith(f":{head['--port']}")
    (shared,) = re.findall(r"--shm-size=(\d+)g", " ".join(config["docker"]["run_options"]))
    for options in (head, worker):
        assert int(options["--object-store-memory"]) + GIB <= int(shared) * GIB


@every_cloud
def test_spot_workers_are_like_the_others_and_come_first(name):
    types = manifest(name)["available_node_types"]
    spot, other = dict(types["gpu_spot"]), dict(types["gpu"])
    assert spot.pop("priority") > other.pop("priority", 0)
    markets = {
        key: spot["node_config"][key]
        for key in spot["node_config"]
        if spot["node_config"][key] != other["node_config"].get(key)
    }
    assert markets in (
        {"InstanceMarketOptions": {"MarketType": "spot"}},
        {
            "scheduling": {
                "provisioningModel": "SPOT",
                "instanceTerminationAction": "DELETE",
                "onHostMaintenance": "TERMINATE",
            }
        },
    )
    spot.pop("node_config"), other.pop("node_config")
    assert spot == other


@every_cloud
def test_workers_have_a_role_and_the_head_its_own(name):
    for kind, settings in manifest(name)["available_node_types"].items():
        node = settings["node_config"]
        roles = node.get("IamInstanceProfile") or node.get("serviceAccounts")
        # On EC2 the launcher makes the head's role, which may start instances.
        assert bool(roles) or (name == "aws.yaml" and kind == "head")


def test_the_slurm_job_goes_back_into_the_queue_before_its_time_is_up():
    script = text("slurm.sbatch")
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.MULTILINE))
    assert {"requeue", "exclusive"} <= options.keys()
    assert (options["open-mode"], options["ntasks-per-node"]) == ("append", "1")
    (name, seconds) = re.fullmatch(r"B:(\w+)@(\d+)", options["signal"]).groups()
    assert int(seconds) >= 120
    assert f"""trap 'scontrol requeue "$SLURM_JOB_ID"' {name}""" in script


def test_anyscale_has_only_the_fields_that_its_jobs_have():
    """Those of JobConfig and ComputeConfig in the package `anyscale`."""
    job = manifest("anyscale.yaml")
    assert set(job) == {
        "name",
        "entrypoint",
        "working_dir",
        "image_uri",
        "max_retries",
        "compute_config",
    }
    assert job["compute_config"]["head_node"]["resources"] == {"CPU": 0, "GPU": 0}
    for group in job["compute_config"]["worker_nodes"]:
        assert set(group) <= {"name", "instance_type", "min_nodes", "max_nodes", "market_type"}
        assert group["min_nodes"] == 0 < group["max_nodes"]
        assert group.get("market_type", "PREFER_SPOT") == "PREFER_SPOT"
