"""Plan the steps that a configuration asks for.

A step is a stage in a folder. The baselines of a comparison are further steps of the same stages,
in folders under `arms/`. The inputs of every step (keys of the configuration, contents of files,
fingerprints of earlier steps) are known before anything runs. Planning imports neither torch nor
Ray.
"""

from s2l_ray.artifacts.inputs import Contents
from s2l_ray.artifacts.stage import RunPlan
from s2l_ray.config import budgets
from s2l_ray.config.sections import RunConfig, SelectionConfig
from s2l_ray.selection import settings
from s2l_ray.stages import STAGES
from s2l_ray.storage.location import Location


def plan(config: RunConfig, run: Location) -> RunPlan:
    """Return every step that `config` asks for. Input files are read; nothing is written.

    Raises:
        DataError: an input is missing, or a pattern matches nothing.
    """
    planned = RunPlan(config, run, Contents.load(run), STAGES, arms_of(config))
    for stage in STAGES:
        if stage.is_wanted(config):
            for arm in planned.arms if stage.per_arm else [""]:
                planned.add(stage, arm)
    return planned


def arm_name(method: str, budget: budgets.Budget, seed: int) -> str:
    """Return the name of an arm's folder."""
    return f"{method}-{budgets.slug(budget)}-{seed}"


def arms_of(config: RunConfig) -> dict[str, SelectionConfig]:
    """Return folder name -> selection of every arm; the name of the run's own arm is ""."""
    section = config.selection
    if section is None:
        return {}
    settings.check(section)
    settings.check_stratify(section)
    arms = {"": section}
    for method in section.baselines:
        arms[arm_name(method, section.budget, config.seed)] = settings.with_method(section, method)
    return arms
