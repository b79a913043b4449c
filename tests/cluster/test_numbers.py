"""Numbers that stand in more than one file of cluster/ and must agree."""

import re
import tomllib
from importlib import metadata

import pytest

from s2l_ray.config.load import load
from tests.cluster.manifests import (
    CLUSTER,
    GIB,
    OVERLAYS,
    ROOT,
    RUNS,
    gigabytes,
    groups,
    manifest,
    pods,
    ray_cluster,
    text,
)


def gpus_at_most(overlay):
    """GPUs that a run can count on: those of the group that is not taken away."""
    group = groups(overlay)["gpu"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return group["maxReplicas"] * int(limits["nvidia.com/gpu"])


@pytest.mark.parametrize("overlay", RUNS)
def test_no_stage_asks_for_more_gpus_than_its_cluster_can_have(overlay):
    run = load(CLUSTER / "kuberay" / "overlays" / overlay / "run.yaml")
    for training in (run.reference, run.target):
        assert training.gpus_per_worker == 1, "a cluster that has not grown yet has no GPU"
        assert training.workers * training.gpus_per_worker <= gpus_at_most(overlay)
    for scoring in (run.trajectories, run.evaluation):
        at_most = sum(
            group["maxReplicas"]
            * int(
                group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
            )
            for name, group in groups(overlay).items()
            if name.startswith("gpu")
        )
        assert scoring.gpus_per_worker == 1
        assert scoring.workers.max <= at_most


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_object_store_fits_into_shared_memory_and_that_into_the_pod(overlay):
    cluster = ray_cluster(overlay)
    for name, group in ({"head": cluster["headGroupSpec"]} | groups(overlay)).items():
        spec = group["template"]["spec"]
        (shared,) = (v["emptyDir"] for v in spec["volumes"] if v["name"] == "shared-memory")
        (container,) = spec["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts["shared-memory"] == "/dev/shm"  # noqa: S108 - of the pod
        assert shared["medium"] == "Memory"
        store = int(group["rayStartParams"]["object-store-memory"])
        size, memory = gigabytes(shared["sizeLimit"]), container["resources"]["limits"]["memory"]
        assert store % GIB == 0
        # A gigabyte for what NCCL and DeepSpeed share; half of the pod for processes.
        assert store // GIB + 1 <= size <= gigabytes(memory) / 2, name


def test_ray_has_the_pinned_version_everywhere():
    ray = metadata.version("ray")
    images = [
        manifest("aws.yaml")["docker"]["image"],
        manifest("gcp.yaml")["docker"]["image"],
        *re.findall(r"^ARG BASE=(\S+)\nFROM \$BASE$", text("Dockerfile"), re.MULTILINE),
    ]
    assert images == [f"rayproject/ray:{ray}-py311-gpu"] * 3
    assert re.findall(r"anyscale/ray:([\d.]+)-py311", text("anyscale.yaml")) == [ray]
    assert {ray_cluster(overlay)["rayVersion"] for overlay in OVERLAYS} == {ray}
    assert f"ray=={ray}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_the_image_of_the_pods_has_our_version_and_is_the_one_that_is_built():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    image = f"YOUR-REGISTRY/s2l-ray:{project['version']}"
    used = {
        pod["spec"]["containers"][0]["image"]
        for overlay in OVERLAYS
        for pod in pods(overlay).values()
    }
    assert used | {manifest("anyscale.yaml")["image_uri"]} == {image}
    assert image in text("Dockerfile")


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


@pytest.mark.parametrize("name", ["mathinstruct-pythia-phi2", "mathinstruct-pythia-phi3"])
def test_no_cluster_is_smaller_than_a_training_of_the_paper_needs(name):
    run = load(ROOT / "configs" / f"{name}.yaml")
    needed = max(run.reference.workers, run.target.workers)
    launched = [
        manifest(cloud)["available_node_types"]["gpu"]["max_workers"]
        for cloud in ("aws.yaml", "gcp.yaml")
    ]
    assert min([*launched, *map(gpus_at_most, OVERLAYS)]) >= needed
