"""The comparison of two GPUs with one: its configurations load, and it finds a difference."""

import importlib.util
import sys

import pytest

from s2l_ray.config.load import from_tree
from tests.cluster.manifests import ROOT


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("two_gpus", ROOT / "benchmarks" / "two_gpus.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("on_cpu", "gpus"), [(True, 0), (False, 1)])
def test_its_run_has_one_worker_everywhere(script, tmp_path, on_cpu, gpus):
    run = from_tree(script.configuration(tmp_path, on_cpu=on_cpu), "two_gpus")
    assert {run.reference.workers, run.target.workers} == {1}
    assert {run.trajectories.workers.max, run.evaluation.workers.max} == {1}
    sections = (run.reference, run.trajectories, run.target, run.evaluation)
    assert {section.gpus_per_worker for section in sections} == {gpus}
    assert {section.precision for section in sections} <= script.NATS.keys()


def test_what_must_be_equal_is_fine_only_if_it_is(script):
    assert script.Difference("losses", 0.0, 0).is_fine
    assert not script.Difference("losses", 1e-9, 0).is_fine
    assert not script.Difference("losses", float("nan"), 0.1).is_fine
