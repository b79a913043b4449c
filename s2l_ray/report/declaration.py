"""The stage `report`: show all finished stages on one page."""

import hashlib
from functools import partial
from typing import Any

from s2l_ray.artifacts.finished import finished_stages
from s2l_ray.artifacts.manifest import StageDir, fingerprint
from s2l_ray.artifacts.stage import RunPlan, Stage, Task
from s2l_ray.progress import Progress
from s2l_ray.report.comparison import COMPARISON, TABLE
from s2l_ray.version import __version__


def _task(plan: RunPlan, _: str) -> Task:
    inputs = {step.label: step.out.fingerprint for step in plan.steps}
    inputs |= {
        f"{step.label}: lists": fingerprint(step.supplement.inputs)
        for step in plan.steps
        if step.supplement is not None and step.supplement.inputs
    }
    compared = plan.run / COMPARISON / TABLE
    if compared.is_file():
        inputs["comparison"] = hashlib.sha256(compared.read_bytes()).hexdigest()[:16]
    return Task({"version": __version__, **inputs}, partial(_report, plan))


def _report(plan: RunPlan, out: StageDir, progress: Progress) -> dict[str, Any]:
    from s2l_ray.report import stage

    finished = finished_stages(plan.run, plan.stages)
    return stage.run(plan.run, plan.config, finished, out)


REPORT = Stage(
    name="report",
    task=_task,
    folder="report",
    results={"report": ("report/index.html",)},
    uses_ray=False,
)
