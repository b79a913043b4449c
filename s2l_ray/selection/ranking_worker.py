"""Where a pool is ranked: in this process, or by a worker of the cluster where the pool is large.

The driver of a cluster often runs on a small head node, and a ranking sorts numbers of all
examples in one process.
"""

from collections.abc import Collection, Mapping
from typing import Any

from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.config.sections import SelectionConfig
from s2l_ray.distributed import cluster_watch, resources
from s2l_ray.selection import stage
from s2l_ray.selection.columns import Sources
from s2l_ray.selection.ranking import BYTES_PER_ROW
from s2l_ray.storage.location import Location

MOST_BYTES_IN_DRIVER = 650_000_000
"""Rankings that hold more are done by a worker, if there is one."""


class RankingWorker:
    """Ranks one pool. The arguments are those of `stage.run`.

    Args:
        files: the parts of the clusters, by number; `sources` has them as well.
    """

    def __init__(
        self,
        files: Mapping[int, Location],
        config: SelectionConfig,
        sources: Sources,
        out: StageDir,
        seed: int,
        new_strata: Collection[str],
    ) -> None:
        self._config, self._sources, self._out = config, sources, out
        self._seed, self._new_strata = seed, new_strata

    def ranked(self) -> dict[str, Any]:
        """Rank the pool, write the files of the stage, and return its summary."""
        return stage.run(
            self._config, self._sources, self._out, seed=self._seed, new_strata=self._new_strata
        )


def run(
    config: SelectionConfig,
    sources: Sources,
    out: StageDir,
    *,
    seed: int,
    num_rows: int,
    new_strata: Collection[str] = (),
) -> dict[str, Any]:
    """Rank the pool as `stage.run` does; a large one by a worker, if Ray is connected.

    Args:
        num_rows: the number of examples of the pool.

    Raises:
        UserError: as `stage.run`; or the worker died or had too little memory in all attempts.
    """
    is_small = num_rows * BYTES_PER_ROW <= MOST_BYTES_IN_DRIVER
    if is_small or not cluster_watch.is_connected():
        return stage.run(config, sources, out, seed=seed, new_strata=new_strata)
    from s2l_ray.distributed.fleet import RayFleet  # imports Ray

    wanted = resources.workers(out.stage, 1, cpus=1, gpus=0, advice=out.advice_on_memory)
    fleet = RayFleet(
        RankingWorker, sources.clusters.files(), wanted, config, sources, out, seed, new_strata
    )
    (summary,) = fleet.call_all("ranked")
    return dict(summary)
