"""Supplements: parts of the results of finished steps that are made again by themselves."""

import time
from collections.abc import Callable, Sequence

from s2l_ray.artifacts.manifest import SUPPLEMENT, fingerprint
from s2l_ray.artifacts.stage import Step
from s2l_ray.progress import Progress, duration, label_column


def incomplete(steps: Sequence[Step]) -> list[Step]:
    """Return the steps that are current but for their supplement."""
    return [step for step in steps if step.out.is_current() and lacks_supplement(step)]


def lacks_supplement(step: Step) -> bool:
    """Tell whether the supplement of a finished step is missing, or came from other inputs."""
    manifest, supplement = step.out.manifest(), step.supplement
    if manifest is None or supplement is None or not supplement.inputs:
        return False
    if SUPPLEMENT not in manifest.summary:
        return supplement.is_asked_for
    return bool(manifest.summary[SUPPLEMENT]["fingerprint"] != fingerprint(supplement.inputs))


def complete(step: Step, say: Callable[[str], None]) -> None:
    """Make the supplement of a finished step again; the rest of its results stays."""
    started, manifest = time.monotonic(), step.out.manifest()
    assert manifest is not None and step.supplement is not None, "the step is incomplete"
    with Progress(step.label) as progress:
        summary = step.supplement.added_to(manifest.summary, step.out, progress)
    step.out.replace_summary(summary)
    label = f"{step.label}: lists"
    say(f"  {label_column(label)}{duration(time.monotonic() - started):>8}")
    for note in summary[SUPPLEMENT]["notes"]:
        say(f"    {note}")
