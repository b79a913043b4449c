"""What can be done with a run that is already there: another subset, its report again."""

import time

from s2l_ray.artifacts import extensions
from s2l_ray.artifacts.finished import finished_stages
from s2l_ray.artifacts.manifest import read_manifest
from s2l_ray.clusters.declaration import CLUSTERS
from s2l_ray.config import sections
from s2l_ray.config.budgets import Budget
from s2l_ray.config.load import from_tree
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.pipeline.run import CONFIG
from s2l_ray.pipeline.steps import arm_name
from s2l_ray.report.declaration import REPORT
from s2l_ray.selection import settings
from s2l_ray.selection.methods import WITHIN, method_named
from s2l_ray.stages import STAGES
from s2l_ray.storage.location import Location


def config_of(run: Location) -> sections.RunConfig:
    """The configuration that `run` was last run with.

    Raises:
        DataError: this is no run.
    """
    place = run / CONFIG
    if not place.exists():
        raise DataError(f"{run} is no run of s2l_ray: it has no {CONFIG}. Start one with s2l run.")
    return from_tree(place.read_json(), str(place))


def write_subset(
    run: Location,
    budget: Budget,
    method: str | None,
    seed: int | None,
    out: Location | None,
    *,
    within: str | None = None,
    extended: bool = True,
) -> tuple[Location, int]:
    """Write the subset of a clustered run for another budget, method or seed.

    How the budget is spread over strata is the run's own: `stratify`, weights and bounds.

    Args:
        method: default: the run's own, or s2l.
        within: default: the run's own, for s2l.
        extended: from the pool with its extensions, where there are any.

    Returns:
        where it is, and how many examples it has.

    Raises:
        DataError, ConfigError: clusters are not finished or extensions do not fit them, the pool
            cannot give the budget, or numbers that the method or the budget needs are missing.
    """
    from s2l_ray.selection import stage as selection

    known = config_of(run)
    # Not checked as a whole: for a bad budget, `rank` also names the size of the pool.
    own = known.selection or sections.SelectionConfig.model_construct(budget=budget)
    method = method or own.method
    if out is not None and _is_of(run, out) and out.exists():
        raise DataError(f"--out {out}: that file belongs to the run. Name another one.")
    if CLUSTERS.name not in finished_stages(run, STAGES):
        raise DataError(f"{run} has no finished clusters that fit its data. Run it: s2l run.")
    seed = known.seed if seed is None else seed
    section = _section(own, budget, method, within)
    parts = extensions.extended_pool(run) if extended else extensions.pool(run, [])
    rows = parts.rows if known.data is not None else None
    pool = selection.load_pool(parts.clusters)
    sources = selection.Sources(parts.clusters, parts.trajectories, rows)
    new_strata = extensions.strata(run)
    ranked = selection.rank(pool, section, sources, seed=seed, new_strata=new_strata)
    order = f"{method}-{section.within}" if WITHIN[section.within] is not None else method
    name = f"{arm_name(order, budget, seed)}{parts.suffix}.jsonl"
    place = out or run / "subsets" / name
    if not place.name.endswith((".jsonl", ".parquet")):
        raise DataError(f"--out {place}: the name must end in .jsonl or .parquet.")
    if rows is not None:
        selection.write_selected(pool.key_N[ranked.subset_R], rows, place)
    else:
        selection.write_ids(pool, ranked.subset_R, place)
    return place, ranked.num_selected


def _section(
    own: sections.SelectionConfig, budget: Budget, method: str, within: str | None
) -> sections.SelectionConfig:
    """The run's own section, or the defaults, with these keys changed."""
    orders_within = method_named(method).orders_within
    if within is not None and WITHIN[within] is not None and not orders_within:
        raise ConfigError(f"--within {within}: it {settings.clusters_missing(method)}")
    changes = {"budget": budget, "within": within or own.within}
    section = settings.with_method(own.model_copy(update=changes), method)
    problem = settings.problem_with_strata(section)
    if problem is not None:
        raise ConfigError(f"--method {method}, with the run's own selection: {problem}")
    return section


def _is_of(run: Location, place: Location) -> bool:
    """Whether `place` is in `run`, and not among the subsets that can be written again."""
    inside = place.uri.startswith(f"{run.uri}/")
    return inside and not place.uri.startswith(f"{run.uri}/subsets/")


def rebuild_report(run: Location) -> Location:
    """Write the report of `run` again; where it is."""
    from s2l_ray.report import stage as report

    known = config_of(run)
    before = read_manifest(run / REPORT.folder)
    out = REPORT.directory(run, before.inputs if before else {})
    started = time.monotonic()
    summary = report.run(run, known, finished_stages(run, STAGES), out)
    out.finish(summary, time.monotonic() - started)
    return out.location / "index.html"
