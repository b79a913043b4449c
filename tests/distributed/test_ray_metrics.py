"""A run among Ray's metrics: what Prometheus finds, and what the dashboard asks it for."""

import json
import re
import threading
import urllib.request
from pathlib import Path

import pytest

from s2l_ray import events
from s2l_ray.distributed import ray_metrics
from s2l_ray.progress import Progress

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana.json"


def test_the_dashboard_shows_every_metric_and_no_other():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = {
        name
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"\bray_(s2l_\w+)", target["expr"])
    }

    assert asked == ray_metrics.GAUGES.keys() | ray_metrics.COUNTERS.keys()


@pytest.mark.ray
def test_prometheus_finds_a_run_among_rays_metrics(ray_cluster):
    import ray

    exporter, step = ray_metrics._Exporter(), Progress("reference")
    step.start(80, "steps")
    step.update(20)
    step.workers = (1, 2)
    exporter.look(step.state())
    with events.heard_by(exporter.hear):
        for loss in (3.5, 2.5):
            events.tell("metrics", stage="reference", loss_nats=loss, num_tokens=100)
        events.tell("retried", stage="prepare")
        events.tell("node lost", node="17")
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text = ""
    while "ray_s2l_failures_total" not in text:  # Ray passes metrics on every ten seconds
        threading.Event().wait(0.5)
        with urllib.request.urlopen(url) as page:
            text = page.read().decode()

    assert values(text) == {
        ("s2l_units_done", "reference"): 20,
        ("s2l_units_total", "reference"): 80,
        ("s2l_workers_started", "reference"): 1,
        ("s2l_workers_wanted", "reference"): 2,
        ("s2l_loss_nats", "reference"): 2.5,
        ("s2l_steps_total", "reference"): 2,
        ("s2l_trained_tokens_total", "reference"): 200,
        ("s2l_retried_units_total", "prepare"): 1,
        ("s2l_failures_total", ""): 1,
    } | {key: value for key, value in values(text).items() if key[0] == "s2l_seconds_left"}


def values(text: str) -> dict[tuple[str, str], float]:
    """Name and stage -> value, of the metrics of runs in what Prometheus reads."""
    found = re.findall(r"^ray_(s2l_\w+)\{([^}]*)\} (\S+)$", text, re.MULTILINE)
    stages = [(name, re.search(r'stage="([^"]*)"', tags), value) for name, tags, value in found]
    return {(name, stage[1] if stage else ""): float(value) for name, stage, value in stages}
