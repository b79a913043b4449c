"""A run among Ray's own metrics, which every node of a cluster offers to Prometheus.

Ray puts `ray_` before the names. `cluster/grafana.json` is a dashboard of them.
"""

import contextlib
import threading
from collections.abc import Iterator

from s2l_ray import events, progress
from s2l_ray.background import running_thread

SECONDS_PER_LOOK = 2.0
GAUGES = {
    "s2l_units_done": "Units (rows, steps, parts) of the step in progress that are done",
    "s2l_units_total": "Units of the step in progress",
    "s2l_tokens_per_second": "Tokens that the step in progress reads in a second",
    "s2l_seconds_left": "Seconds that the step in progress is expected to take",
    "s2l_workers_started": "Workers of the step in progress that have started",
    "s2l_workers_wanted": "Workers of the step in progress that have started or are to start",
    "s2l_loss_nats": "Training loss of the last step, nats per response token",
}
COUNTERS = {
    "s2l_steps_total": "Optimizer steps",
    "s2l_trained_tokens_total": "Tokens of the optimizer steps",
    "s2l_retried_units_total": "Units of work that were tried again and then succeeded",
    "s2l_failures_total": "Failed steps, restarted trainings and lost nodes",
}
FAILURES = {"failed", "restarted", "node lost"}
TAGS = ("stage",)


@contextlib.contextmanager
def exported() -> Iterator[None]:
    """Keep the metrics of the step in progress up to date inside the block."""
    exporter = _Exporter()
    with events.heard_by(exporter.hear), running_thread(exporter.keep):
        yield


class _Exporter:
    """Holds Ray's metrics; names are those of GAUGES and COUNTERS."""

    def __init__(self) -> None:
        from ray.util import metrics

        self._gauges = {n: metrics.Gauge(n, text, TAGS) for n, text in GAUGES.items()}
        self._counters = {n: metrics.Counter(n, text, TAGS) for n, text in COUNTERS.items()}

    def hear(self, event: events.Event) -> None:
        """Count what happened."""
        stage = {"stage": str(event.get("stage", ""))}
        if event["event"] == "metrics" and "loss_nats" in event:
            self._gauges["s2l_loss_nats"].set(event["loss_nats"], stage)
            self._counters["s2l_steps_total"].inc(1, stage)
            self._counters["s2l_trained_tokens_total"].inc(event["num_tokens"], stage)
        elif event["event"] == "retried":
            self._counters["s2l_retried_units_total"].inc(1, stage)
        elif event["event"] in FAILURES:
            self._counters["s2l_failures_total"].inc(1, stage)

    def keep(self, stop: threading.Event) -> None:
        """Set the gauges to the step in progress until `stop` is set."""
        while not stop.wait(SECONDS_PER_LOOK):
            step = progress.current()
            if step is not None:
                self.look(step.state())

    def look(self, state: progress.State) -> None:
        """Set the gauges to `state`, as far as it is known."""
        started, wanted = state.workers or (None, None)
        values = {
            "s2l_units_done": state.done,
            "s2l_units_total": state.total or None,
            "s2l_tokens_per_second": state.tokens_per_second,
            "s2l_seconds_left": state.seconds_left,
            "s2l_workers_started": started,
            "s2l_workers_wanted": wanted,
        }
        for name, value in values.items():
            if value is not None:
                self._gauges[name].set(value, {"stage": state.stage})
