"""Checks of conditions and scores before training: on first rows, and on prepared rows."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from s2l_ray.artifacts import column_types, tables
from s2l_ray.artifacts.keys import column_keys
from s2l_ray.artifacts.tables import Parts
from s2l_ray.config import budgets
from s2l_ray.config.sections import RunConfig
from s2l_ray.data.declaration import pool_files
from s2l_ray.errors import DataError
from s2l_ray.selection import columns, conditions, named_values, scores, where
from s2l_ray.selection.columns import Sources
from s2l_ray.selection.conditions import Path
from s2l_ray.selection.examples import Examples
from s2l_ray.selection.named_values import FieldTypes, Origin
from s2l_ray.storage.location import Location

COUNTED = {columns.TOKENS, columns.RESPONSE_TOKENS}


def check_first_rows(config: RunConfig) -> None:
    """Refuse names that the first rows do not have, and values there that do not fit.

    Data sets on the hub are left to the check of prepared rows.

    Raises:
        ConfigError, DataError: naming the field, file, column or value.
    """
    section = config.selection
    if section is None or (section.where is None and section.score is None):
        return
    if section.score_file is not None:
        run = Location.of(config.run_dir)
        scores.check_columns(section, scores.files(section, run))
    condition = conditions.parsed(section.where) if section.where is not None else None
    rows = _first_rows(config) if config.data is not None else _no_rows()
    if rows is None:
        return
    if section.score is not None and section.score_file is None:
        scores.check_rows(section, rows.table, rows.fields, rows.of)
        _check_counted(config, scores.place(section.score, rows.fields, rows.of))
    if condition is not None:
        _try(config, condition, rows)


def check_prepared(config: RunConfig, prepared: Parts) -> None:
    """Refuse a condition that leaves too few prepared rows, and scores that are not there.

    What only training tells (clusters and losses) is not asked for here.

    Args:
        config: the configuration.
        prepared: the prepared rows of the whole pool.

    Raises:
        ConfigError, DataError: as the selection would.
    """
    section = config.selection
    if section is None or (section.where is None and section.score is None):
        return
    rows = Parts(prepared.folder, "rows", prepared.more)
    sources, types = Sources(prepared, None, rows), named_values.field_types(rows)
    examples, strata = _examples(prepared)
    needed_N: np.ndarray | None = None
    if section.where is not None:
        condition = conditions.parsed(section.where)
        places = [named_values.origin(name, types.names, where.KEY) for name in condition.names]
        for place in places:
            named_values.check_typed(place, types, where.KEY)
        if not all(_is_known(place, config) for place in places):
            return
        left = where.remaining(section.where, examples, strata, sources)
        if not isinstance(section.budget, str):
            left.check(budgets.budget_rows(section.budget, left.num_examples))
        needed_N = np.zeros(left.num_examples, bool)
        needed_N[left.row_K] = True
    if section.score is not None:
        is_file = section.score_file is not None
        if is_file or _is_known(scores.place(section.score, types.names), config):
            scores.read(section, examples, strata, sources, needed_N)


def _is_known(place: Origin, config: RunConfig) -> bool:
    """Tell whether a name has values before anything is trained."""
    is_found = config.clusters is not None and config.clusters.strata == "auto"
    if not place.of_run:
        return True
    return place.path[0] in named_values.KNOWN_WHEN_PREPARED - (
        {named_values.STRATUM} if is_found else set()
    )


@dataclass(frozen=True)
class _FirstRows:
    """The first rows of the pool.

    Attributes:
        table: a `rows-*` table of them.
        fields: the names of all their fields.
        of: what they are, for messages.
    """

    table: pa.Table
    fields: list[str]
    of: str


def _no_rows() -> _FirstRows:
    """Return the rows of a run that has only trajectories."""
    return _FirstRows(tables.rows_table([], [], "", []), [], "the rows, as there is no `data`")


def _first_rows(config: RunConfig) -> _FirstRows | None:
    """Return the first usable rows of the pool; None if there are none outside the hub."""
    from s2l_ray.data.first_rows import Survey
    from s2l_ray.data.row_errors import place_of

    data = config.data
    assert data is not None
    files = [
        file
        for file in pool_files(data, Location.of(config.run_dir)).files
        if not file.uri.startswith("hf://")
    ]
    survey = Survey("data.train", data.model_copy(update={"fields": data.fields.of_pool}))
    found, ids = [], []
    for some in survey.read(files):
        usable = set(some.numbers)
        for row in some.rows:
            if row.fields is not None and row.row in usable:
                found.append(row.fields)
                ids.append(place_of(some.file.uri, row.row))
    if not found:
        return None
    fields = list(dict.fromkeys(name for row in found for name in row))
    table = tables.rows_table(found, ids, "", range(len(found)))
    return _FirstRows(table, fields, f"the first {len(found):,} rows")


def _try(config: RunConfig, condition: conditions.Condition, rows: _FirstRows) -> None:
    """Evaluate a condition on the first rows, with missing values for what the run will know."""
    types = FieldTypes(*column_types.unified([tables.field_types(rows.table)]))
    places: dict[Path, Origin] = {}
    for name in condition.names:
        places[name] = named_values.origin(name, rows.fields, where.KEY, rows.of)
        named_values.check_typed(places[name], types, where.KEY)
        _check_counted(config, places[name])
    num_rows = rows.table.num_rows
    of_run = {place.path for place in places.values() if place.of_run}
    of_rows = {place.path for place in places.values() if not place.of_run}
    known = named_values.empty_run_arrays(of_run, num_rows)
    fields = named_values.field_arrays(rows.table, of_rows, types)
    condition.holds(named_values.by_name(places, known, fields), num_rows)


def _check_counted(config: RunConfig, place: Origin) -> None:
    """Refuse a number of tokens if no stage will count tokens."""
    if place.of_run and place.path[0] in COUNTED:
        columns.check_will_be_counted(config)


def _examples(prepared: Parts) -> tuple[Examples, list[str]]:
    """Return prepared rows as examples without clusters, and the names of their strata.

    Raises:
        DataError: there are none.
    """
    keys, names = [], []
    for table in prepared.tables(["example_id"], optional=["stratum"]):
        keys.append(column_keys(table["example_id"]))
        has_strata = "stratum" in table.column_names
        names.append(
            table["stratum"].combine_chunks().cast(pa.string())
            if has_strata
            else pa.array([""] * table.num_rows, pa.string())
        )
    if not keys:
        raise DataError(f"selection: there are no prepared rows in {prepared.folder_names}.")
    coded = pa.chunked_array(names).combine_chunks().dictionary_encode()
    key_N = np.concatenate(keys)
    stratum_N = coded.indices.to_numpy().astype(np.int32)
    examples = Examples(key_N, np.zeros(len(key_N), np.int32), stratum_N)
    return examples, coded.dictionary.to_pylist()
