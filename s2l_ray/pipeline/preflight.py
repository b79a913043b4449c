"""Checks before a run, or the next step of it, begins.

Every stage declares its own checks. This module calls them.
"""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from s2l_ray.artifacts import extensions
from s2l_ray.artifacts.identity import identity
from s2l_ray.artifacts.stage import PoolSize, RunPlan, Stage, Step
from s2l_ray.config.sections import RunConfig
from s2l_ray.data.declaration import PREPARE
from s2l_ray.errors import DataError, first
from s2l_ray.monitoring import trackers
from s2l_ray.pipeline.staleness import refuse_discarding
from s2l_ray.stages import STAGES
from s2l_ray.storage.location import Location
from s2l_ray.trajectories.declaration import TRAJECTORIES


def check(planned: RunPlan, todo: Sequence[Step], from_stage: str | None) -> None:
    """Refuse what can be seen to fail, or to discard finished work, before `todo` is done.

    Both `s2l run` and `s2l plan` call it.

    Args:
        planned: all steps of the configuration.
        todo: the steps to do.
        from_stage: redo this stage and all after it.

    Raises:
        UserError: finished training would be lost, or one of the other checks fails.
    """
    refuse_discarding(planned.steps, todo, from_stage)
    trackers.check(planned.config.tracking, planned.run)
    check_files(planned.config, todo)
    check_pool(planned.config, {step.stage for step in todo})


def check_unchanged(planned: RunPlan, step: Step) -> None:
    """Refuse to go on if an input of `step` is no longer what it was when the run began.

    Raises:
        DataError: naming the key, and the file if there is one.
    """
    before = identity(step.out.inputs)
    planned.contents.changed.clear()
    now = identity(planned.inputs_now(step))
    keys = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if keys:
        files = sorted(planned.contents.changed)
        named = f" ({first(files)})" if files else ""
        raise DataError(
            f"{step.label}: {first(keys)} changed while the run was under way{named}, so the stage "
            "does not count as finished. Run the same command again: with what is there now this "
            "stage begins anew, and with the old content restored it goes on."
        )


def check_files(config: RunConfig, todo: Sequence[Step]) -> None:
    """Check models, template and selection of the steps `todo` before any of them is done.

    Raises:
        UserError: something is missing, damaged or unknown, as far as it can be seen without a
            network.
    """
    names = {step.stage for step in todo}
    for stage in STAGES:
        # The selection is checked before hours of scoring, even if this run ends before it.
        if stage.is_wanted(config) and names & {stage.name, *stage.check_also_before}:
            stage.check(config)


def check_pool(
    config: RunConfig,
    outdated: Collection[str] = (),
    summaries: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> None:
    """Refuse a configuration that the pool is too small for, as soon as its size is known.

    Args:
        config: the configuration.
        outdated: names of stages that are to be redone, so that their manifests do not count.
        summaries: stage -> summary of a result that is finished, but not yet in place.
    """
    size = _pool_size(config, outdated, summaries)
    if size is not None:
        for stage in STAGES:
            if stage.is_wanted(config):
                stage.check_pool(config, size)


def _pool_size(
    config: RunConfig, outdated: Collection[str], new: Mapping[str, Mapping[str, Any]]
) -> PoolSize | None:
    """Return the size of the pool; None until the stage that counts it is finished."""
    run = Location.of(config.run_dir)
    counting = [PREPARE, TRAJECTORIES] if config.imports_trajectories else [PREPARE]
    summaries: dict[str, Mapping[str, Any]] = {
        stage.name: manifest.summary
        for stage in counting
        if stage.name not in outdated and (manifest := stage.directory(run).manifest()) is not None
    }
    summaries |= new
    if counting[-1].name not in summaries:
        return None
    rows = summaries[counting[-1].name]["rows" if config.imports_trajectories else "kept"]
    new_strata = extensions.strata(run) if config.selection is not None else set()
    return PoolSize(rows, summaries.get(PREPARE.name), frozenset(new_strata))


def check_resources(config: RunConfig, stages: Collection[Stage]) -> None:
    """Refuse a run if the cluster can never hold the workers of one of its stages."""
    from s2l_ray.distributed import resources

    for stage in stages:
        section = stage.section_of(config)
        if hasattr(section, "workers") and getattr(section, "path", None) is None:
            resources.workers(
                stage.name,
                section.workers,
                cpus=getattr(section, "cpus_per_worker", 1),
                gpus=getattr(section, "gpus_per_worker", 0),
            )
