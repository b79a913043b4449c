"""Cluster manifests: valid for KubeRay and Ray's launcher, pinned, authenticated, secret-free."""

import re
import shlex
from functools import cache
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from s2l_ray.config.load import load

ROOT = Path(__file__).parents[1]
CRDS = ROOT.parent / "shared" / "crds"
MANIFESTS = ("rayjob.yaml", "aws.yaml")


def manifest(name):
    return yaml.safe_load((ROOT / "cluster" / name).read_text(encoding="utf-8"))


def closed(schema):
    """The schema with unknown fields refused, as the Kubernetes API server prunes them."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: closed(value) for key, value in schema.items()}
    if (
        isinstance(schema.get("properties"), dict)
        and "x-kubernetes-preserve-unknown-fields" not in schema
    ):
        kept.setdefault("additionalProperties", False)
    return kept


@cache
def definition(kind):
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = (CRDS / f"ray.io_{kind}.yaml").read_text(encoding="utf-8")
    versions = yaml.load(text, Loader=loader)["spec"]["versions"]  # noqa: S506 - a safe loader
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
    schema["properties"]["metadata"] = {"type": "object"}
    return closed(schema)


def validator(kind):
    jsonschema = pytest.importorskip("jsonschema")
    if not CRDS.is_dir():
        pytest.skip(f"KubeRay's definitions are not at {CRDS}")
    return jsonschema.Draft202012Validator(definition(kind))


def test_the_rayjob_is_valid_for_kuberay():
    errors = [
        f"{'.'.join(map(str, error.path))}: {error.message}"
        for error in validator("rayjobs").iter_errors(manifest("rayjob.yaml"))
    ]
    assert errors == []


def test_the_rayjobs_cluster_is_valid_for_kuberay():
    job = manifest("rayjob.yaml")
    cluster = {**job, "kind": "RayCluster", "spec": job["spec"]["rayClusterSpec"]}
    assert list(validator("rayclusters").iter_errors(cluster)) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("entrypoints", "python"),
        ("backoffLimit", "2"),
        ("rayClusterSpec", {"authOptions": {"mode": 1}}),
    ],
)
def test_a_mistake_in_the_rayjob_would_be_found(place, value):
    job = manifest("rayjob.yaml")
    job["spec"][place] = value
    assert list(validator("rayjobs").iter_errors(job))


def test_the_aws_cluster_is_valid_for_the_launcher():
    pytest.importorskip("jsonschema")
    util = pytest.importorskip("ray.autoscaler._private.util")
    util.validate_config(util.prepare_config(manifest("aws.yaml")))


def test_ray_has_the_pinned_version_everywhere():
    ray = metadata.version("ray")
    job = manifest("rayjob.yaml")["spec"]["rayClusterSpec"]
    dockerfile = (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8")
    images = [manifest("aws.yaml")["docker"]["image"], *re.findall(r"FROM (\S+)", dockerfile)]
    assert images == [f"rayproject/ray:{ray}-py311-gpu"] * 2
    assert job["rayVersion"] == ray
    assert f"ray=={ray}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_gpu_workers_start_at_zero_and_the_head_takes_no_work():
    job = manifest("rayjob.yaml")["spec"]["rayClusterSpec"]
    assert job["enableInTreeAutoscaling"] is True
    assert job["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in job["workerGroupSpecs"]:
        assert (group["minReplicas"], group["replicas"]) == (0, 0) < (group["maxReplicas"], 1)
    types = manifest("aws.yaml")["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert {types[name]["min_workers"] for name in types if name != "head"} == {0}


def test_token_authentication_stays_on_and_no_secret_is_in_a_file():
    aws = manifest("aws.yaml")
    assert manifest("rayjob.yaml")["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert "--env RAY_AUTH_MODE=token" in aws["docker"]["run_options"]
    assert aws["file_mounts"].get("/home/ray/.ray/auth_token", "").startswith("~/")
    for name in (*MANIFESTS, "Dockerfile"):
        text = (ROOT / "cluster" / name).read_text(encoding="utf-8")
        assert not re.search(r"AUTH_TOKEN=|AKIA|SECRET_ACCESS|PASSWORD|hf_[A-Za-z0-9]{8}", text)


def test_the_entrypoint_runs_a_configuration_that_loads_with_what_it_sets():
    words = shlex.split(manifest("rayjob.yaml")["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "s2l_ray", "run"]
    overrides = [word for flag, word in pairwise(words) if flag == "--set"]
    run = load(ROOT / Path(words[4]).relative_to("/home/ray/s2l_ray"), overrides)
    assert run.run_dir.startswith("s3://")
    held_out = [uri for name in run.data.eval for uri in run.data.files_of(name)]
    assert all(uri.startswith(("s3://", "hf://")) for uri in [*run.data.train, *held_out])


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("mathinstruct-pythia-phi2", "microsoft/phi-2"),
        ("mathinstruct-pythia-phi3", "microsoft/Phi-3-mini-4k-instruct"),
        ("mimic-pythia-1b", "EleutherAI/pythia-1b-deduped"),
    ],
)
def test_a_configuration_of_the_paper_has_the_papers_settings(name, target):
    run = load(ROOT / "configs" / f"{name}.yaml")
    for training in (run.reference, run.target):
        assert (training.learning_rate, training.batch_size, training.epochs) == (2e-5, 128, 3)
        assert (training.warmup, training.weight_decay) == (0.03, 0)
        assert training.gpus_per_worker == 1
    assert run.run_dir == f"runs/{name}"
    assert (run.reference.model, run.target.model) == ("EleutherAI/pythia-70m-deduped", target)
    assert (run.data.max_tokens, run.clusters.num_clusters) == (512, 100)


def test_no_group_of_workers_is_smaller_than_a_training_needs():
    run = load(ROOT / "configs" / "mathinstruct-pythia-phi2.yaml")
    gpu = manifest("rayjob.yaml")["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]
    needed = max(run.reference.workers, run.target.workers)
    assert (
        min(gpu["maxReplicas"], manifest("aws.yaml")["available_node_types"]["gpu"]["max_workers"])
        >= needed
    )
