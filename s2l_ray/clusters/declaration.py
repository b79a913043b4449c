"""The stage `clusters`: group trajectories by k-means."""

from functools import partial
from typing import Any

from s2l_ray.artifacts import extensions
from s2l_ray.artifacts.amounts import Quantities
from s2l_ray.artifacts.extensions import CLUSTERED, SCORED, UPDATED, Extension
from s2l_ray.artifacts.manifest import StageDir, section_inputs
from s2l_ray.artifacts.stage import Extending, ExtensionPlan, RunPlan, Stage, Task
from s2l_ray.artifacts.tables import Parts
from s2l_ray.config.clusters import FINDS_KINDS, MOST_CLUSTERS, ClustersConfig
from s2l_ray.config.sections import RunConfig
from s2l_ray.progress import Progress
from s2l_ray.trajectories.declaration import TRAJECTORIES, trajectory_files

BYTES_BESIDE_LOSSES = 20
"""What a worker holds of a row beside its losses: hash, place, label and bound."""
BYTES_OF_WORKER = 500_000_000
"""A worker without rows: libraries, and the part that it reads."""


def _task(plan: RunPlan, _: str) -> Task:
    section = plan.config.clusters
    assert section is not None
    inputs = {
        **section_inputs("clusters", section),
        "seed": plan.config.seed,
        **plan.after(CLUSTERS),
    }
    if not section.may_make_fewer:
        inputs.pop("clusters.rows_per_cluster", None)
    return Task(inputs, partial(_cluster, plan), fits_here=partial(_fits_here, plan))


def _fits_here(plan: RunPlan) -> bool:
    """Tell whether the trajectories, those that the run is to import or has, fit this process."""
    from s2l_ray.distributed import resources
    from s2l_ray.trajectories.footers import loss_bytes

    return resources.fits_here(lambda: loss_bytes(trajectory_files(plan)))


def _cluster(plan: RunPlan, out: StageDir, progress: Progress) -> dict[str, Any]:
    from s2l_ray.clusters import stage

    section, seed = plan.config.clusters, plan.config.seed
    assert section is not None
    return stage.run(section, plan.parts(TRAJECTORIES), out, seed=seed, progress=progress)


def _extension_task(plan: ExtensionPlan, extension: Extension) -> Task:
    earlier = plan.before(extension)
    (scored,) = plan.fingerprints(TRAJECTORIES, [extension])
    inputs: dict[str, Any] = {
        "clusters of the run": plan.fingerprint_of_run(CLUSTERS),
        TRAJECTORIES.name: scored,
        "earlier": plan.fingerprints(CLUSTERS, earlier),
    }
    moves = extension == plan.moving or extension.moves_centroids
    if moves:
        inputs[UPDATED] = True
    here = partial(_is_assigned_here, plan, extension, moves)
    return Task(inputs, partial(_assign, plan, extension, moves), fits_here=here)


def _is_assigned_here(plan: ExtensionPlan, extension: Extension, moves: bool) -> bool:
    """Tell whether the trajectories that are read fit this process; those that are there count."""
    from s2l_ray.distributed import resources
    from s2l_ray.trajectories.footers import loss_bytes

    read = Parts(extension.folder(SCORED))
    if moves:
        read = extensions.pool(plan.base.run, [*plan.before(extension), extension]).trajectories
    return resources.fits_here(lambda: loss_bytes(read.stored()))


def _assign(
    plan: ExtensionPlan, extension: Extension, moves: bool, out: StageDir, progress: Progress
) -> dict[str, Any]:
    """Assign new rows to the clusters of the run and of earlier extensions."""
    from s2l_ray.clusters import placement

    chain = [*plan.before(extension), extension]
    return placement.place(plan.base, chain, out, progress, moves=moves)


def _sizes(config: RunConfig, quantities: Quantities) -> dict[str, str]:
    section, pool = config.clusters, quantities.pool
    assert section is not None
    number = MOST_CLUSTERS if section.num_clusters == "auto" else section.num_clusters
    text = f"up to {number:,}" if section.num_clusters == "auto" else f"{number:,}"
    if not section.per_stratum:
        capped = section.clusters_of(quantities.num_rows)
        text = f"{text if capped == 'auto' else f'{capped:,}'} over all"
    elif pool is None or quantities.imported is not None:
        text += " in each stratum"
    else:
        is_found, strata = section.strata == "auto", pool.strata
        if is_found:
            strata = section.strata_of(quantities.num_rows)
        most, rule = min(number * strata, quantities.num_rows), ""
        # Every stratum has one, however few its rows are.
        capped = quantities.num_rows // section.rows_per_cluster + strata
        if section.clusters_of(1) != section.num_clusters and capped < most:
            most, rule = capped, f", one for every {section.rows_per_cluster} rows"
        kind = "found strata" if is_found else "strata"
        text += f" in each of {strata:,} {kind}, at most {most:,} clusters{rule}"
        text += f"; {FINDS_KINDS}" if strata == 1 and not is_found else ""
    memory = _memory(section, quantities)
    return {"clusters": text, **({"memory": memory} if memory else {})}


def _memory(section: ClustersConfig, quantities: Quantities) -> str:
    """Return what the workers hold, where losses do not fit the program itself; else ""."""
    from s2l_ray.distributed.resources import MAX_BYTES_HERE

    rows, workers = quantities.num_rows, section.workers
    bytes_per_row = 4 * quantities.num_checkpoints
    if rows * bytes_per_row <= MAX_BYTES_HERE:
        return ""
    held = rows * (bytes_per_row + BYTES_BESIDE_LOSSES)
    each = held / workers + BYTES_OF_WORKER
    return (
        f"about {held / 1e9:,.1f} GB of trajectories in the workers of `clusters`: "
        f"{each / 1e9:,.1f} GB in each of {workers:,} (clusters.workers)"
    )


CLUSTERS = Stage(
    name="clusters",
    task=_task,
    folder=CLUSTERED,
    section="clusters",
    needs=(TRAJECTORIES.name,),
    needed_to_extend=True,
    advice_on_memory=(
        "Raise clusters.workers, on a cluster with more machines, or use larger ones."
    ),
    sizes=_sizes,
    extending=Extending(_extension_task),
)
