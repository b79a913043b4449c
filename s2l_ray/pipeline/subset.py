"""Other subsets of a run that exists, and its report built again."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from s2l_ray.artifacts import extensions
from s2l_ray.artifacts.finished import finished_stages
from s2l_ray.artifacts.manifest import fingerprint, read_manifest
from s2l_ray.artifacts.tables import Parts
from s2l_ray.clusters.declaration import CLUSTERS
from s2l_ray.config import sections
from s2l_ray.config.budgets import Budget
from s2l_ray.config.load import from_tree
from s2l_ray.data import kept_templates
from s2l_ray.data.declaration import PREPARE
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.pipeline import destination
from s2l_ray.pipeline.run import CONFIG
from s2l_ray.pipeline.steps import arm_name
from s2l_ray.report.declaration import REPORT
from s2l_ray.selection import added_columns, settings
from s2l_ray.selection import columns as numbers
from s2l_ray.selection import stage as selection_stage
from s2l_ray.selection.added_columns import AddedColumns
from s2l_ray.selection.methods import WITHIN, method_named
from s2l_ray.selection.where import Remaining
from s2l_ray.stages import STAGES
from s2l_ray.storage import small_files
from s2l_ray.storage.location import Location

if TYPE_CHECKING:
    import datasets


SHOWN = 5
"""Strata that a summary names."""


def config_of(run: Location) -> sections.RunConfig:
    """Return the configuration that `run` was last run with, as it is to be read where it is now.

    Raises:
        DataError: this is no run.
    """
    file = run / CONFIG
    if (tree := small_files.read(file)) is None:
        raise DataError(f"{run} is no run of s2l_ray: it has no {CONFIG}. Start one with s2l run.")
    config = from_tree(tree, str(file))
    if config.selection is not None:
        settings.check(config.selection)
    update: dict[str, Any] = {"run_dir": run.uri}
    if config.data is not None and (prepared := read_manifest(run / PREPARE.folder)) is not None:
        update["data"] = kept_templates.kept(config.data, run, prepared.inputs)
    return config.model_copy(update=update)


@dataclass(frozen=True, eq=False)
class Selection:
    """A subset of a run's pool: its ids and rows are read when they are asked for.

    Attributes:
        run: the run that it was chosen from.
        pool: the examples of that run.
        order_R: int64 (R,), rows of the pool in order of rank.
        original: the parts with the original rows; None if the run has no `data`.
        extensions: names of the extensions whose rows the pool holds.
        name: says how the subset was made: method, budget, seed, last extension.
        format: of the file in a folder, `jsonl` or `parquet`.
        sources: the files that the pool was read from.
        columns: names of the columns that are added to the rows.
        remaining: what the condition of the selection leaves of the pool; None without one.
        notes: remarks on the scores that it was chosen by.
    """

    run: Location
    pool: selection_stage.ClusteredPool
    order_R: np.ndarray
    original: Parts | None
    extensions: tuple[str, ...]
    name: str
    format: str
    sources: selection_stage.Sources
    columns: tuple[str, ...] = ()
    remaining: Remaining | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.order_R)

    def __repr__(self) -> str:
        return f"Selection({self.name!r}, {len(self):,} examples)"

    @cached_property
    def ids(self) -> list[str]:
        """The example ids in order of rank: a smaller budget's are the first of these."""
        return [
            example_id
            for table in selection_stage.tables_by_rank(self.pool, self.order_R)
            for example_id in table["example_id"].to_pylist()
        ]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the original rows in input order, with example_id and the added columns.

        One part of the pool is in memory at a time. If the run has no `data`, the rows are
        example_id, stratum and cluster, in order of rank.
        """
        if self.original is None:
            for table in selection_stage.id_tables(self.pool, self.order_R, self._added):
                yield from table.to_pylist()
            return
        keys = self.pool.key_N[self.order_R]
        for rows in selection_stage.selected_rows(keys, self.original, self._added):
            yield from rows

    @cached_property
    def _added(self) -> AddedColumns | None:
        """The values of the columns that are added."""
        return selection_stage.ranking_columns(self.columns, self.pool, self.order_R, self.sources)

    @cached_property
    def tokens(self) -> tuple[int, int] | None:
        """Tokens of the subset, and those of them that carry loss; None if none were counted."""
        names = [numbers.TOKENS, numbers.RESPONSE_TOKENS]
        try:
            counts = numbers.read(names, self.pool.key_N, self.sources)
        except DataError:
            return None
        tokens, responses = (int(counts[n][self.order_R].sum(dtype=np.int64)) for n in names)
        return tokens, responses

    @cached_property
    def strata(self) -> dict[str, int]:
        """The number of examples of each stratum that has any, the largest first."""
        count_S = np.bincount(self.pool.stratum_N[self.order_R], minlength=len(self.pool.strata))
        counts = zip(self.pool.strata, count_S.tolist(), strict=True)
        return {name: count for name, count in sorted(counts, key=lambda c: -c[1]) if count}

    def summary(self) -> dict[str, str]:
        """Return what was taken, as the lines of the terminal."""
        of_all = f"{len(self):,} of {self.pool.num_rows:,} ({len(self) / self.pool.num_rows:.1%})"
        lines = {"rows": of_all}
        if self.remaining is not None:
            lines["where"] = self.remaining.text.removeprefix("selection.where ")
        if self.notes:
            lines["note"] = "; ".join(self.notes)
        if self.tokens is not None:
            lines["tokens"] = f"{self.tokens[0]:,}, {self.tokens[1]:,} of them in responses"
        if self.pool.strata != [""]:
            named = [f"{name or '(none)'} {count:,}" for name, count in self.strata.items()]
            missing = len(self.pool.strata) - len(named)
            more = [f"{len(named) - SHOWN:,} more"] if len(named) > SHOWN else []
            none = [f"none of {missing:,} others"] if missing else []
            lines["strata"] = ", ".join([*named[:SHOWN], *more, *none])
        if self.extensions:
            number, last = len(self.extensions), self.extensions[-1]
            lines["from"] = f"the run with {number:,} extension(s), the last of them {last}"
        return lines

    def to_datasets(self) -> "datasets.Dataset":
        """Read the rows into memory as a Hugging Face dataset, as it reads the file of `write`.

        A field whose values have several types becomes one of its type Json. A field that a row
        does not have is None there.
        """
        import datasets

        with tempfile.TemporaryDirectory(prefix="s2l-") as folder:
            file = self.write(f"{folder}/rows.jsonl")
            return datasets.Dataset.from_json(file, keep_in_memory=True, cache_dir=folder)

    def write(self, out: str | Path | Location | None = None, *, replace: bool = False) -> str:
        """Write the rows in input order and return the path of the file.

        Args:
            out: a path or URI that ends in .jsonl or .parquet; or a folder, which gets
                `selected.jsonl` (.parquet with `selection.format: parquet`) and then opens as one
                data set. Default: the folder `subsets/METHOD-BUDGET-SEED/` of the run, whose
                file is replaced.
            replace: replace a file that is there, whatever it holds.

        Raises:
            UserError: the file belongs to the run, has another ending, is there with another
                content or cannot be written, or an example has no row.
        """
        if out is not None:
            file = destination.file_of(self.run, out, self.format)
        else:
            replace, file = True, destination.own_file(self.run, self.name, self.format)
            for name in file.parent.names():
                if name != file.name:
                    (file.parent / name).remove()
        if self.original is not None:
            keys, added = self.pool.key_N[self.order_R], self._added
            selection_stage.write_selected(keys, self.original, file, replace=replace, added=added)
        else:
            order_R, added = self.order_R, self._added
            selection_stage.write_ids(self.pool, order_R, file, replace=replace, added=added)
        return str(file)


def choose_subset(
    run: Location,
    budget: Budget,
    method: str | None = None,
    seed: int | None = None,
    *,
    within: str | None = None,
    changes: Mapping[str, Any] = MappingProxyType({}),
    extended: bool = True,
    columns: Sequence[str] | None = None,
) -> Selection:
    """Choose the subset of a clustered run for another budget, method or seed; write nothing.

    The budget is spread over strata as the run's own: `stratify`, weights and bounds.

    Args:
        method: default: the run's own, or s2l.
        seed: default: the run's own.
        within: default: the run's own, for s2l.
        changes: other values of further keys of the run's section: those of CHANGED.
        extended: choose from the pool with its extensions, if there are any.
        columns: names of columns that are added to the rows. Default: the run's own.

    Raises:
        DataError, ConfigError: clusters are not finished or extensions do not fit them, the pool
            cannot give the budget, or numbers that the method or the budget needs are missing.
    """
    known = config_of(run)
    # Not checked as a whole: for a bad budget, `rank` also names the size of the pool.
    own = known.selection or sections.SelectionConfig.model_construct(budget=budget)
    method = method or own.method
    check_clustered(run)
    seed = known.seed if seed is None else seed
    changed = {key: value for key, value in changes.items() if value is not None}
    section = _section(own, budget, method, within, changed)
    parts = extensions.extended_pool(run) if extended else extensions.pool(run, [])
    rows = parts.rows if known.data is not None else None
    names = added_columns.checked(own.columns if columns is None else columns)
    if rows is not None:
        added_columns.check_free(names, rows)
    pool = selection_stage.load_pool(parts.clusters)
    sources = selection_stage.Sources(parts.clusters, parts.trajectories, rows)
    new_strata = extensions.strata(run)
    ranked = selection_stage.rank(pool, section, sources, seed=seed, new_strata=new_strata)
    order = f"{method}-{section.within}" if WITHIN[section.within] is not None else method
    unlike = {key: value for key, value in changed.items() if value != getattr(own, key)}
    return Selection(
        run,
        pool,
        ranked.subset_R,
        rows,
        tuple(item.name for item in parts.extensions),
        f"{arm_name(order, budget, seed)}{_suffix(unlike)}{parts.suffix}",
        own.format,
        sources,
        tuple(names),
        ranked.remaining,
        ranked.notes,
    )


CHANGED = ("score", "score_order", "quantile", "unlearned", "where")
"""Keys of the section that may have another value than in the run."""


def _suffix(changes: Mapping[str, Any]) -> str:
    """Return what tells subsets apart that differ in these values alone; "" without any."""
    return f"-{fingerprint(dict(changes))[:8]}" if changes else ""


def check_clustered(run: Location) -> None:
    """Raise DataError if `run` has no finished clusters that fit its data."""
    if CLUSTERS.name not in finished_stages(run, STAGES):
        raise DataError(f"{run} has no finished clusters that fit its data. Run it: s2l run.")


def check_out(run: Location, config: sections.RunConfig, out: str) -> None:
    """Raise DataError if a subset of `run` cannot be written to `out`."""
    suffix = config.selection.format if config.selection else "jsonl"
    destination.file_of(run, out, suffix)


def _section(
    own: sections.SelectionConfig,
    budget: Budget,
    method: str,
    within: str | None,
    changes: Mapping[str, Any],
) -> sections.SelectionConfig:
    """Return the run's own section, or the defaults, with these keys changed.

    Raises:
        ConfigError: a value is none of its key, or the method would not read it.
    """
    orders_within = method_named(method).orders_within
    if within is not None and WITHIN[within] is not None and not orders_within:
        raise ConfigError(f"--within {within}: it {settings.clusters_missing(method)}")
    _check_values(changes)
    update = {**changes, "budget": budget, "within": within or own.within}
    section = settings.with_method(own.model_copy(update=update), method)
    unread = [key for key in changes if getattr(section, key) != changes[key]]
    if unread:
        raise ConfigError(f"--{unread[0].replace('_', '-')}: {method} would not read it.")
    problem = settings.problem_with_settings(section) or settings.problem_with_strata(section)
    if problem is not None:
        raise ConfigError(f"--method {method}, with the run's own selection: {problem}")
    return section


def _check_values(changes: Mapping[str, Any]) -> None:
    """Refuse values that their keys cannot have in a run file either."""
    try:
        sections.SelectionConfig(budget=1, **changes)
    except ValidationError as error:
        problem = error.errors()[0]
        key = str((problem["loc"] or ("score",))[0]).replace("_", "-")
        raise ConfigError(f"--{key}: {problem['msg'].removeprefix('Value error, ')}") from None


def rebuild_report(run: Location) -> Location:
    """Write the report of `run` again and return its page."""
    from s2l_ray.report import stage as report

    known = config_of(run)
    before = read_manifest(run / REPORT.folder)
    out = REPORT.directory(run, before.inputs if before else {})
    started = time.monotonic()
    summary = report.run(run, known, finished_stages(run, STAGES), out)
    out.finish(summary, time.monotonic() - started)
    return out.location / "index.html"
