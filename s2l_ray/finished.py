"""What can be done with a run that is already there: another subset, its report again."""

import time

from s2l_ray import config, extensions
from s2l_ray.artifacts import StageDir
from s2l_ray.errors import DataError
from s2l_ray.pipeline import CONFIG
from s2l_ray.steps import arm_name
from s2l_ray.storage import Location


def config_of(run: Location) -> config.RunConfig:
    """The configuration that `run` was last run with.

    Raises:
        DataError: this is no run.
    """
    place = run / CONFIG
    if not place.exists():
        raise DataError(f"{run} is no run of s2l_ray: it has no {CONFIG}. Start one with s2l run.")
    return config.from_tree(place.read_json(), str(place))


def write_subset(
    run: Location,
    budget: int | float,
    method: str,
    seed: int | None,
    out: Location | None,
    *,
    extended: bool = True,
) -> tuple[Location, int]:
    """Write the subset of a clustered run for another budget, method or seed.

    Args:
        extended: from the pool with its extensions, where there are any.

    Returns:
        where it is, and how many examples it has.

    Raises:
        DataError, ConfigError: clusters are not finished or extensions do not fit them, or the
            pool cannot give the budget.
    """
    from s2l_ray.maths.selection import budget_rows
    from s2l_ray.stages import report, selection

    known = config_of(run)
    if out is not None and _is_of(run, out) and out.exists():
        raise DataError(f"--out {out}: that file belongs to the run. Name another one.")
    if "clusters" not in report.finished_stages(run):
        raise DataError(f"{run} has no finished clusters that fit its data. Run it: s2l run.")
    seed = known.seed if seed is None else seed
    stratify = known.selection.stratify if known.selection else True
    parts = extensions.extended_pool(run) if extended else extensions.pool(run, [])
    pool = selection.load_pool(parts.clusters)
    num_selected = budget_rows(budget, pool.num_rows)
    order_N = selection.rank(pool, method, seed, stratify=stratify)[:num_selected]
    name = f"{arm_name(method, budget, seed)}{parts.suffix}.jsonl"
    place = out or run / "subsets" / name
    if not place.name.endswith((".jsonl", ".parquet")):
        raise DataError(f"--out {place}: the name must end in .jsonl or .parquet.")
    if known.data is not None:
        selection.write_selected(pool.key_N[order_N], parts.rows, place)
    else:
        selection.write_ids(pool, order_N, place)
    return place, num_selected


def _is_of(run: Location, place: Location) -> bool:
    """Whether `place` is in `run`, and not among the subsets that can be written again."""
    inside = place.uri.startswith(f"{run.uri}/")
    return inside and not place.uri.startswith(f"{run.uri}/subsets/")


def rebuild_report(run: Location) -> Location:
    """Write the report of `run` again; where it is."""
    from s2l_ray.stages import report

    known = config_of(run)
    before = StageDir(run / "report", "report", {}).manifest()
    out = StageDir(run / "report", "report", before.inputs if before else {})
    started = time.monotonic()
    summary = report.run(run, known, out)
    out.finish(summary, time.monotonic() - started)
    return out.location / "index.html"
