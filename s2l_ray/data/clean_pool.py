"""Clean pools: rows that hold a prompt of an evaluation set, and rows that nearly repeat another.

They are listed or dropped, as the configuration says. Which rows to drop must be known before the
parts are tokenised, so raw parts are compared. A list is made of finished parts: it changes nothing
in them, and can be made again at any time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from s2l_ray.artifacts.manifest import CONTAMINATED_ROWS, REPEATED_ROWS
from s2l_ray.artifacts.tables import Parts
from s2l_ray.config.data import DataConfig
from s2l_ray.data import contaminated_rows, dropped_rows, repeated_rows
from s2l_ray.data.compared_tables import ComparedTable, finished_tables, raw_tables
from s2l_ray.data.contamination import SAME_PROMPT
from s2l_ray.data.dropped_rows import DroppedRow
from s2l_ray.data.held_out import HeldOut, read_prompts
from s2l_ray.data.repeated_rows import RepeatedRows
from s2l_ray.data.row_comparer import PROMPTS_FILE, Comparison, RowComparer
from s2l_ray.data.row_errors import IN_EVALUATION_SET, NEAR_DUPLICATE, place_of
from s2l_ray.progress import Progress
from s2l_ray.storage.location import Location

RunUnits = Callable[..., Iterator[dict[str, Any]]]
"""`run_units(worker, units, **constructor)` yields the result of every unit, in any order."""


def drop(
    config: DataConfig,
    held_out: HeldOut,
    units: Sequence[dict[str, Any]],
    folder: Location,
    run_units: RunUnits,
    *,
    progress: Progress,
    pool: Parts | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Find the rows of raw parts that are to be dropped.

    Args:
        units: the units of work that will tokenise the parts.
        folder: the folder of the stage.
        pool: the original rows of the pool that the units extend, or None.

    Returns:
        the units, where `dropped` is the file with the rows to drop, if a part has any; and entries
        of the summary of the stage.
    """
    staged = folder / "staged"
    comparison = _comparison("drop", config, held_out, staged / "compared")
    if comparison is None:
        return list(units), {}
    old = _rows_of_pool(comparison, pool)
    tables = [*old, *raw_tables(units, staged)]
    compared = _compare(comparison, config, held_out, tables, run_units, progress)
    contamination = compared.list_contaminated(folder) if comparison.with_prompts else {}
    repeated = compared.repeated() if comparison.with_signatures else None
    with_drops = []
    for number, unit in enumerate(units, len(old)):
        rows = compared.rows_with_prompts(number)
        rows += _repeating_rows(repeated, number) if repeated else []
        with_drops.append(dropped_rows.stored(rows, unit, comparison.folder))
    return with_drops, contamination


def report(
    config: DataConfig,
    held_out: HeldOut,
    folder: Location,
    run_units: RunUnits,
    *,
    progress: Progress,
    pool: Parts | None = None,
) -> dict[str, Any]:
    """List rows of the finished parts in `folder`; return entries of the summary of the stage.

    Args:
        pool: the original rows of the pool that these parts extend, or None.

    Writes  contaminated.parquet     as `contaminated_rows.CONTAMINATED`
            near_duplicates.parquet  as `repeated_rows.REPEATED`
    """
    scratch = folder / "staged" / "listed"
    comparison = _comparison("report", config, held_out, scratch)
    if comparison is None:
        return {}
    # An interrupted list may be of other evaluation sets.
    scratch.remove()
    tables = [*_rows_of_pool(comparison, pool), *finished_tables(Parts(folder, "rows"))]
    compared = _compare(comparison, config, held_out, tables, run_units, progress)
    summary = compared.list_contaminated(folder) if comparison.with_prompts else {}
    if comparison.with_signatures:
        repeated = compared.repeated()
        counts = repeated_rows.write_list(folder / REPEATED_ROWS, tables, repeated)
        summary["near_duplicates"] = counts
        summary["notes"] = summary.get("notes", []) + repeated_rows.notes(counts)
    scratch.remove()
    return summary


@dataclass(frozen=True)
class _Compared:
    """Compared tables.

    Attributes:
        comparison: what for.
        tables: the tables, in order.
        results: the result of each.
        prompts: the prompts that were looked for.
        num_unusable: rows of each evaluation set that cannot be used.
    """

    comparison: Comparison
    tables: Sequence[ComparedTable]
    results: Sequence[Mapping[str, Any]]
    prompts: pa.Table
    num_unusable: Mapping[str, int]

    def list_contaminated(self, folder: Location) -> dict[str, Any]:
        """Write the list of the rows that hold a prompt; return entries of the summary."""
        matches = contaminated_rows.matched_tables(self.comparison.folder, self.results)
        file = folder / CONTAMINATED_ROWS
        counts = contaminated_rows.write_list(file, self.tables, matches, self.prompts)
        notes = contaminated_rows.notes(
            counts, self.num_unusable, are_dropped=self.comparison.drops_matches
        )
        return {"contamination": counts, "notes": notes}

    def repeated(self) -> RepeatedRows:
        """Return the rows that nearly repeat an earlier one."""
        return repeated_rows.find(self.comparison.folder, self.tables, self.results)

    def rows_with_prompts(self, number: int) -> list[DroppedRow]:
        """Return the rows of a table that hold a prompt, each with the prompt that fits best."""
        best: dict[int, dict[str, Any]] = {}
        results = [self.results[number]]
        for _, table in contaminated_rows.matched_tables(self.comparison.folder, results):
            for match in table.to_pylist():
                other = best.get(match["position"])
                if other is None or _closeness(match) > _closeness(other):
                    best[match["position"]] = match
        return [self._dropped(match) for match in best.values()]

    def _dropped(self, match: Mapping[str, Any]) -> DroppedRow:
        prompt = self.prompts.slice(match["prompt"], 1).to_pylist()[0]
        same = match["kind"] == SAME_PROMPT
        held = "the prompt" if same else f"{match['share']:.0%} of the prompt"
        detail = f"{held} of {place_of(prompt['file'], prompt['row'])}, {prompt['set']}"
        return DroppedRow(match["position"], IN_EVALUATION_SET, detail)


def _closeness(match: Mapping[str, Any]) -> tuple[bool, float]:
    return match["kind"] == SAME_PROMPT, match["share"]


def _repeating_rows(repeated: RepeatedRows, number: int) -> list[DroppedRow]:
    """Return the rows of a table that nearly repeat an earlier row."""
    rows = repeated.of_table(number)
    firsts = repeated.first_names.take(repeated.first_D[rows]).to_pylist()
    positions, similarities = repeated.position_D[rows], repeated.similarity_D[rows]
    return [
        DroppedRow(
            int(position),
            NEAR_DUPLICATE,
            f"repeats {place_of(name['file'], name['row'])}, similarity {similarity:.2f}",
        )
        for position, name, similarity in zip(positions, firsts, similarities, strict=True)
    ]


def _comparison(
    mode: Literal["report", "drop"], config: DataConfig, held_out: HeldOut, folder: Location
) -> Comparison | None:
    """Return what is to be compared for `mode`; None for nothing."""
    with_prompts = config.decontaminate == mode and bool(held_out)
    with_signatures = config.near_duplicates == mode
    if not with_prompts and not with_signatures:
        return None
    drops_matches = with_prompts and mode == "drop"
    return Comparison(folder, config.fields.of_pool, with_prompts, with_signatures, drops_matches)


def _rows_of_pool(comparison: Comparison, pool: Parts | None) -> list[ComparedTable]:
    """Return the tables of the pool that is extended, if rows may repeat its rows."""
    if pool is None or not comparison.with_signatures:
        return []
    return finished_tables(Parts(pool.folder, "rows", pool.more), is_new=False)


def _compare(
    comparison: Comparison,
    config: DataConfig,
    held_out: HeldOut,
    tables: Sequence[ComparedTable],
    run_units: RunUnits,
    progress: Progress,
) -> _Compared:
    sets = held_out if comparison.with_prompts else {}
    prompts, num_unusable = read_prompts(sets, config)
    (comparison.folder / PROMPTS_FILE).write_table(prompts)
    units = [table.unit(number) for number, table in enumerate(tables)]
    progress.start(len(units), "parts compared")
    results: list[dict[str, Any]] = [{} for _ in units]
    for result in run_units(RowComparer, units, comparison=comparison):
        results[result["number"]] = result
        progress.update(1)
    return _Compared(comparison, tables, results, prompts, num_unusable)
