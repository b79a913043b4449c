"""Checks before a run, or the next step of it, begins.

Every stage declares its own checks. This module calls them.
"""

from collections.abc import Collection, Sequence

from s2l_ray.artifacts import extensions
from s2l_ray.artifacts.inputs import Contents
from s2l_ray.artifacts.stage import PoolSize, Stage, Step
from s2l_ray.config.sections import RunConfig
from s2l_ray.data.declaration import PREPARE
from s2l_ray.errors import ModelError, first
from s2l_ray.stages import STAGES
from s2l_ray.storage.location import Location
from s2l_ray.trajectories.declaration import TRAJECTORIES


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


def check_revisions(contents: Contents) -> None:
    """Refuse a model whose commit is unknown: the run could be neither repeated nor resumed."""
    if contents.unknown:
        names = sorted(contents.unknown)
        raise ModelError(
            f"{len(names)} model(s) can only be on the hub, which does not answer, and are not in "
            f"this machine's cache (first: {first(names)}). Try again, name a commit "
            f"({names[0].partition('@')[0]}@<40 hexadecimal digits>), or give a directory."
        )


def check_pool(config: RunConfig, outdated: Collection[str] = ()) -> None:
    """Refuse a configuration that the pool is too small for, as soon as its size is known.

    Args:
        config: the configuration.
        outdated: names of stages that are to be redone, so that their manifests do not count.
    """
    size = _pool_size(config, outdated)
    if size is not None:
        for stage in STAGES:
            if stage.is_wanted(config):
                stage.check_pool(config, size)


def _pool_size(config: RunConfig, outdated: Collection[str]) -> PoolSize | None:
    """Return the size of the pool; None until the stage that counts it is finished."""
    run = Location.of(config.run_dir)
    counting = [PREPARE, TRAJECTORIES] if config.imports_trajectories else [PREPARE]
    summaries = {
        stage.name: manifest.summary
        for stage in counting
        if stage.name not in outdated and (manifest := stage.directory(run).manifest()) is not None
    }
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
