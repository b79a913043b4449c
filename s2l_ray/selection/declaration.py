"""The stage `selection`: rank all examples; the subset is the beginning of the ranking."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from s2l_ray.artifacts import extensions
from s2l_ray.artifacts.amounts import Quantities
from s2l_ray.artifacts.extensions import Extension
from s2l_ray.artifacts.inputs import Contents
from s2l_ray.artifacts.manifest import QUERIES, SUBSET, StageDir, section_inputs
from s2l_ray.artifacts.pool_types import check_columns
from s2l_ray.artifacts.stage import Extending, ExtensionPlan, PoolSize, RunPlan, Stage, Task
from s2l_ray.artifacts.tables import Parts
from s2l_ray.clusters.declaration import CLUSTERS
from s2l_ray.config import budgets
from s2l_ray.config.sections import RunConfig, SelectionConfig
from s2l_ray.data.declaration import PREPARE
from s2l_ray.errors import ConfigError, DataError, first
from s2l_ray.progress import Progress
from s2l_ray.selection import (
    added_columns,
    checks,
    columns,
    quotas,
    ranking,
    scores,
    settings,
)
from s2l_ray.selection.methods import METHODS
from s2l_ray.storage.location import Location
from s2l_ray.trajectories.declaration import QUERIES_KEY, TRAJECTORIES

LEAST_BYTES_TOLD = 1_000_000_000
"""A plan says what the ranking holds from this on."""


def _task(plan: RunPlan, arm: str) -> Task:
    section = settings.effective(plan.arms[arm])
    inputs = {
        **section_inputs("selection", section),
        **scores.inputs(section, plan.contents, plan.run),
        "seed": plan.config.seed,
        **plan.after(SELECTION),
    }
    return Task(inputs, partial(_select, plan, arm))


def _select(plan: RunPlan, arm: str, out: StageDir, progress: Progress) -> dict[str, Any]:
    from s2l_ray.selection import ranking_worker

    rows = plan.parts(PREPARE, "rows") if plan.config.data else None
    if plan.config.data and plan.config.imports_trajectories:
        _check_complete(plan)
    sources = columns.Sources(plan.parts(CLUSTERS), plan.parts(TRAJECTORIES), rows)
    new_strata = extensions.strata(plan.run)
    return ranking_worker.run(
        plan.arms[arm],
        sources,
        out,
        seed=plan.config.seed,
        num_rows=plan.summary(CLUSTERS)["rows"],
        new_strata=new_strata,
    )


def _check_complete(plan: RunPlan) -> None:
    """Refuse brought trajectories that lack rows of a pool prepared after they were imported."""
    from s2l_ray.trajectories.pool_join import missing_losses

    if plan.summary(CLUSTERS)["rows"] < plan.summary(PREPARE)["kept"]:
        raise missing_losses(plan.parts(PREPARE), plan.parts(CLUSTERS))


def _extension_task(plan: ExtensionPlan, _: Extension) -> Task:
    section = plan.base.config.selection
    assert section is not None
    section = settings.effective(section)
    inputs = {
        **section_inputs("selection", section),
        **scores.inputs(section, Contents.load(plan.base.run), plan.base.run),
        "seed": plan.base.config.seed,
        "prepare of the run": plan.fingerprint_of_run(PREPARE),
        "clusters of the run": plan.fingerprint_of_run(CLUSTERS),
        "clusters": plan.fingerprints(CLUSTERS, plan.chain),
    }
    return Task(inputs, partial(_select_from_all, plan, section))


def _select_from_all(
    plan: ExtensionPlan, section: SelectionConfig, out: StageDir, progress: Progress
) -> dict[str, Any]:
    """Rank old and new rows together."""
    from s2l_ray.selection import ranking_worker

    base = plan.base
    pool = extensions.pool(base.run, list(plan.chain))
    sources = columns.Sources(pool.clusters, pool.trajectories, pool.rows)
    added = sum(sum(item.strata.values()) for item in plan.chain)
    num_rows = base.summary(CLUSTERS.name)["rows"] + added
    return ranking_worker.run(section, sources, out, seed=base.config.seed, num_rows=num_rows)


def _check(config: RunConfig) -> None:
    """Refuse a selection that needs what will not exist: counts, embeddings, fields, scores."""
    section = config.selection
    if section is not None:
        if config.data is not None:
            named = [name for name in config.data.fields.model_dump().values() if name]
            added_columns.check_not_among(section.columns, named)
        if ranking.counts_tokens(section):
            columns.check_will_be_counted(config)
        _check_scored(config, section)
        is_trained = config.reference is None or config.reference.perturbations is None
        if section.unlearned == "last" and not is_trained:
            raise ConfigError(
                "selection.unlearned: losses at the copies of `reference.perturbations` are no "
                "course of a training, so nothing in them is learned. Leave it out."
            )
        checks.check_first_rows(config)


def _check_scored(config: RunConfig, section: SelectionConfig) -> None:
    """Refuse a selection that needs what only scoring leaves, if it will not be asked to."""
    methods = [section.method, *section.baselines]
    comparing = [method for method in methods if METHODS[method].vectors]
    _check_switch(config, comparing, "embeddings", "compares embeddings")
    weighing = [method for method in methods if columns.ERROR_NORM in METHODS[method].numbers]
    _check_switch(config, weighing, "error_norms", "looks at error norms")
    relating = [method for method in methods if columns.IFD in METHODS[method].numbers]
    _check_switch(config, relating, "without_prompt", "compares with losses without prompts")
    asking = [method for method in comparing if QUERIES in METHODS[method].vectors]
    if asking and config.trajectories and not config.trajectories.queries:
        raise ConfigError(
            f"selection: {first(asking)} compares examples with queries. Name files of rows like "
            f"those that are wanted in `{QUERIES_KEY}`; where losses are there already, redo "
            "them with `--from trajectories`."
        )


def _check_switch(config: RunConfig, methods: Sequence[str], key: str, does: str) -> None:
    """Refuse methods that need results which scoring leaves only with the switch `key`.

    Args:
        config: the configuration.
        methods: the methods that need these results.
        key: the switch in the section `trajectories`.
        does: what the methods do with the results, for the message.
    """
    if not methods:
        return
    assert config.trajectories is not None, "a selection needs clusters, and these need them"
    if config.trajectories.path is not None:
        raise ConfigError(
            f"selection: {first(methods)} {does}, which come with scoring; the "
            "trajectories of `trajectories.path` have none. Choose another method."
        )
    if not getattr(config.trajectories, key):
        raise ConfigError(
            f"selection: {first(methods)} {does} of examples. Set "
            f"`trajectories.{key}: true`; where losses are there already, redo them with "
            "`--from trajectories`."
        )


def _check_pool(config: RunConfig, pool: PoolSize) -> None:
    """Refuse a budget, bounds, a condition, scores or a format that do not fit the pool."""
    section = config.selection
    if section is None:
        return
    if section.format == "parquet" and pool.prepared is not None:
        check_columns(pool.prepared.get("fields_of_no_type", {}))
    if pool.prepared is not None:
        added_columns.check_not_among(section.columns, pool.prepared.get("fields", {}))
    if isinstance(section.budget, int) and section.budget > pool.rows:
        raise DataError(
            f"selection.budget: {section.budget:,} examples are more than the pool has "
            f"({pool.rows:,}). Lower it, or give a fraction such as 0.5."
        )
    wanted, prepared = budgets.num_tokens(section.budget), pool.prepared
    if prepared is not None and wanted is not None and wanted > prepared["tokens"]:
        of = f"of {prepared['kept']:,} examples"
        raise budgets.too_many_tokens(wanted, prepared["tokens"], of)
    is_found = config.clusters is not None and config.clusters.strata == "auto"
    is_known = not config.imports_trajectories and not is_found
    if prepared is not None and prepared["strata"] and is_known:
        quotas.check_strata(section, prepared["strata"], pool.new_strata)
    run = Location.of(config.run_dir)
    if prepared is not None and TRAJECTORIES.directory(run).manifest() is None:
        # Hours before the selection would say the same.
        checks.check_prepared(config, Parts(run / PREPARE.folder))


def _sizes(config: RunConfig, quantities: Quantities) -> dict[str, str]:
    section, num_selected = config.selection, quantities.num_selected
    assert section is not None
    budget = section.budget
    is_exact = isinstance(budget, int) or (quantities.counted and isinstance(budget, float))
    text = f"{'' if is_exact else 'about '}{num_selected:,} examples"
    if isinstance(budget, str):
        text += f" of average length, {budget}"
    if isinstance(budget, float):
        text += f", {budget:g} of the pool rounded down"
    if num_selected > quantities.num_rows:
        text += ", more than there seem to be"
    if section.where is not None:
        text += f", where {section.where}"
    if section.baselines:
        text += f", by each of {1 + len(section.baselines)} methods"
    memory = ranking.BYTES_PER_ROW * quantities.num_rows
    if memory < LEAST_BYTES_TOLD:
        return {"selection": text}
    where = "in one worker, or without a cluster in the program itself"
    return {"selection": text, "ranking": f"about {memory / 1e9:,.1f} GB {where}"}


SELECTION = Stage(
    name="selection",
    task=_task,
    folder="selection",
    section="selection",
    needs=(PREPARE.name, CLUSTERS.name),
    further_folders=(SUBSET,),
    results={
        "selected": (
            f"{SUBSET}/selected.jsonl",
            f"{SUBSET}/selected.parquet",
            "selection/selected.jsonl",
            "selection/selected.parquet",
        )
    },
    per_arm=True,
    uses_ray=False,
    advice_on_memory="Use a machine with more memory: a ranking needs some 65 bytes of an example.",
    check=_check,
    check_also_before=(TRAJECTORIES.name,),
    check_pool=_check_pool,
    sizes=_sizes,
    extending=Extending(_extension_task, ranks_pool=True),
)
