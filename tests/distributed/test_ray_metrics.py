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

    # Other tests of this process count for stages with other names.
    exporter, step = ray_metrics._Exporter(), Progress("watched")
    step.start(80, "steps")
    step.update(20)
    step.workers = (1, 2)
    exporter.look(step.state())
    with events.heard_by(exporter.hear):
        for loss in (3.5, 2.5):
            events.tell("metrics", stage="watched", loss_nats=loss, num_tokens=100)
        events.tell("retried", stage="watched")
        events.tell("restarted", stage="watched")
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found: dict[str, float] = {}
    while "s2l_failures_total" not in found:  # Ray passes metrics on every ten seconds
        threading.Event().wait(0.5)
        with urllib.request.urlopen(url) as page:
            found = values(page.read().decode(), "watched")

    assert found == {
        "s2l_units_done": 20,
        "s2l_units_total": 80,
        "s2l_workers_started": 1,
        "s2l_workers_wanted": 2,
        "s2l_loss_nats": 2.5,
        "s2l_steps_total": 2,
        "s2l_trained_tokens_total": 200,
        "s2l_retried_units_total": 1,
        "s2l_failures_total": 1,
    } | {name: value for name, value in found.items() if name == "s2l_seconds_left"}


def values(text: str, stage: str) -> dict[str, float]:
    """Name -> value, of the metrics of a stage in what Prometheus reads."""
    found = re.findall(r"^ray_(s2l_\w+)\{([^}]*)\} (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, tags, value in found if f'stage="{stage}"' in tags}
