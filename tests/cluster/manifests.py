"""The files of cluster/ as the tools for them read them."""

import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
OVERLAYS = sorted(path.name for path in (CLUSTER / "kuberay" / "overlays").iterdir())
RUNS = [name for name in OVERLAYS if name != "standing"]
"""Overlays with a RayJob, which brings its configuration; `standing` is a RayCluster."""
GIB = 1 << 30


def tool(name):
    """The path of a program that an extra of ours installs; the test is skipped without it."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    return found or pytest.skip(f"{name} is not installed: make install")


def text(name):
    return (CLUSTER / name).read_text(encoding="utf-8")


def manifest(name):
    return yaml.safe_load(text(name))


@cache
def built(overlay):
    """The objects of an overlay by kind, built by kubectl as `kubectl apply -k` does."""
    done = subprocess.run(
        [tool("kubectl"), "kustomize", str(CLUSTER / "kuberay" / "overlays" / overlay)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    objects = list(yaml.safe_load_all(done.stdout))
    assert len({item["kind"] for item in objects}) == len(objects)
    return {item["kind"]: item for item in objects}


def ray_cluster(overlay):
    """The spec of the RayCluster that KubeRay makes for an overlay."""
    objects = built(overlay)
    if "RayJob" in objects:
        return objects["RayJob"]["spec"]["rayClusterSpec"]
    return objects["RayCluster"]["spec"]


def groups(overlay):
    return {group["groupName"]: group for group in ray_cluster(overlay)["workerGroupSpecs"]}


def pods(overlay):
    """The pod templates of an overlay by name: head, and each group of workers."""
    head = {"head": ray_cluster(overlay)["headGroupSpec"]}
    return {name: group["template"] for name, group in (head | groups(overlay)).items()}


def gigabytes(amount):
    assert amount.endswith("Gi"), amount
    return int(amount.removesuffix("Gi"))
