"""Scores of examples that somebody else computed: a field of the rows, or files of example ids and
numbers.

Shape letters: N examples of the pool, P of one part or batch.
"""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from s2l_ray import hashing
from s2l_ray.artifacts import tables
from s2l_ray.artifacts.inputs import Contents
from s2l_ray.artifacts.tables import EXAMPLE_ID
from s2l_ray.config.sections import SelectionConfig
from s2l_ray.errors import ConfigError, DataError, first
from s2l_ray.selection import columns, conditions, named_values
from s2l_ray.selection.columns import Sources
from s2l_ray.selection.examples import Examples
from s2l_ray.selection.named_values import Origin
from s2l_ray.storage.failures import explained
from s2l_ray.storage.input_files import InputFile, list_files
from s2l_ray.storage.location import Location, absolute

KEY = "selection.score"
MISSING, NUMBER, OTHER, NAN = range(4)
"""What the score of an example is: not there, a number, something else, not-a-number."""
_ROWS_PER_READ = 1 << 16
_WORDS = {
    MISSING: "have no score",
    OTHER: "have a score that is no number",
    NAN: "have the score NaN",
}


@dataclass(frozen=True)
class Scores:
    """The scores of a pool, in the order in which they are selected.

    Attributes:
        value_N: float64 (N,); the lowest come first. NaN for examples that may lack a score.
        notes: remarks on the files.
    """

    value_N: np.ndarray
    notes: tuple[str, ...] = ()


def read(
    section: SelectionConfig,
    examples: Examples,
    strata: Sequence[str],
    sources: Sources,
    needed_N: np.ndarray | None = None,
) -> Scores:
    """Return the scores of all examples of a pool, negated if the highest come first.

    Args:
        section: names the score, and says which come first.
        examples: all examples of the pool.
        strata: the names of the strata, by number.
        sources: the files with fields of rows and with what the run knows.
        needed_N: bool (N,), the examples that must have a score. Default: all.

    Raises:
        ConfigError: there is no such field, file or column.
        DataError: scores are missing, repeated, not numbers, or NaN; says how many, and which.
    """
    assert section.score is not None, "settings.check asks for it"
    value_N = np.full(len(examples.key_N), np.nan)
    state_N = np.full(len(examples.key_N), MISSING, np.int8)
    notes: tuple[str, ...] = ()
    if section.score_file is not None:
        notes = _read_files(section, examples.key_N, value_N, state_N)
    else:
        known = place(section.score, named_values.field_types(sources.rows).names)
        if known.of_run:
            _read_run_number(known, examples, strata, sources, value_N, state_N)
        else:
            _read_field(known.path, examples.key_N, sources, value_N, state_N)
    _check(section.score, examples.key_N, state_N, needed_N, sources)
    return Scores(-value_N if section.score_order == "highest" else value_N, notes)


def inputs(section: SelectionConfig, contents: Contents, run: Location) -> dict[str, Any]:
    """Return what shapes scores from files: their contents and the column, not their names."""
    if section.score_file is None:
        return {}
    hashes = contents.file_hashes(files(section, run))
    return {KEY: {"column": section.score_file[1], "contents": hashes}}


def files(section: SelectionConfig, run: Location | None = None) -> list[InputFile]:
    """Return the files of scores.

    Raises:
        DataError: there are none, or they are no parquet files.
    """
    assert section.score_file is not None, "a field has no files"
    found = list_files([absolute(section.score_file[0])], KEY, run=run).files
    others = [file.uri for file in found if not file.uri.endswith(".parquet")]
    if others:
        raise DataError(
            f"{KEY}: {len(others):,} of {len(found):,} files are no .parquet (first: "
            f"{first(others)}). Scores are read from parquet files with {EXAMPLE_ID} and numbers."
        )
    return found


def check_columns(section: SelectionConfig, found: Sequence[InputFile]) -> None:
    """Refuse files without ids or without the column, or with one that holds no numbers.

    Raises:
        DataError: naming the file, and the nearest column.
    """
    assert section.score_file is not None, "a field has no files"
    column = section.score_file[1]
    for file in found:
        schema = Location.of(file.uri).read_schema()
        for name in (EXAMPLE_ID, column):
            if name not in schema.names:
                near = difflib.get_close_matches(name, schema.names, n=1, cutoff=0.6)
                hint = f"did you mean {near[0]!r}? It has" if near else "it has"
                raise DataError(
                    f"{KEY}: {file.uri} has no column {name!r}; {hint} {first(schema.names, 8)}. "
                    f"Needed are {EXAMPLE_ID} and the column after #."
                )
        kind = schema.field(column).type
        if not _is_numeric(kind):
            raise DataError(
                f"{KEY}: the column {column!r} of {file.uri} has values of type {kind}, not "
                "numbers. Store it as numbers."
            )


def check_rows(section: SelectionConfig, rows: pa.Table, fields: Sequence[str], of: str) -> None:
    """Refuse a field that none of the first rows has, or that holds no numbers there.

    Args:
        section: names the score.
        rows: a `rows-*` table, with the field if a row has it.
        fields: the names of all fields of these rows.
        of: what they are, for messages.

    Raises:
        ConfigError: there is no such field.
        DataError: scores are missing or no numbers. With a condition, rows without one may be left
            out.
    """
    assert section.score is not None, "settings.check asks for it"
    known = place(section.score, fields, of)
    if known.of_run:
        return
    name, *inner = known.path
    field = rows.schema.field(tables.column_name(name))
    _, state_P = _numbers(rows[field.name], tuple(inner), is_json=tables.is_json(field))
    if section.where is None and not np.all(state_P == NUMBER):
        ids = rows[EXAMPLE_ID].to_pylist()
        raise _refused(
            section.score, state_P, lambda rows: [ids[row] for row in rows], "first rows"
        )


def place(score: str, fields: Sequence[str], of: str = "the rows") -> Origin:
    """Return where a score comes from that is no file; a name with dots may be that of a field."""
    path = (score,) if score in fields else tuple(score.split("."))
    return named_values.origin(path, fields, KEY, of)


def _read_run_number(
    origin: Origin,
    examples: Examples,
    strata: Sequence[str],
    sources: Sources,
    value_N: np.ndarray,
    state_N: np.ndarray,
) -> None:
    """Fill in a number that the run knows."""
    if origin.path == (named_values.STRATUM,):
        raise ConfigError(f"{KEY}: strata are names, not numbers. Name a number.")
    no_types = named_values.FieldTypes(pa.schema([]), {})
    for row_P, known in named_values.blocks(
        {origin.path: origin}, no_types, examples, strata, sources
    ):
        value_N[row_P] = known[origin.path].to_numpy(zero_copy_only=False)
    state_N[:] = NUMBER


def _read_field(
    path: conditions.Path,
    key_N: np.ndarray,
    sources: Sources,
    value_N: np.ndarray,
    state_N: np.ndarray,
) -> None:
    """Fill in the values of a field of the rows, part by part."""
    assert sources.rows is not None, "only rows have fields"
    name = tables.column_name(path[0])
    for table, row_P in columns.align_with_pool(sources.rows, [], key_N, optional=(name,)):
        if name in table.column_names:
            is_json = tables.is_json(table.schema.field(name))
            value_P, state_P = _numbers(table[name], path[1:], is_json=is_json)
            in_pool_P = row_P >= 0
            value_N[row_P[in_pool_P]] = value_P[in_pool_P]
            state_N[row_P[in_pool_P]] = state_P[in_pool_P]


def _read_files(
    section: SelectionConfig, key_N: np.ndarray, value_N: np.ndarray, state_N: np.ndarray
) -> tuple[str, ...]:
    """Fill in the scores of files; return a note if most of their ids are not in the pool."""
    assert section.score_file is not None, "a field has no files"
    found, column = files(section), section.score_file[1]
    check_columns(section, found)
    sorter_N = np.argsort(key_N)
    seen_N = np.zeros(len(key_N), bool)
    num_rows = num_known = 0
    for id_P, score_P in _batches(found, column):
        key_P = hashing.example_keys(id_P)
        row_P = columns.rows_of_keys(key_P, key_N, sorter_N)
        value_P, kind_P = _numbers(score_P, (), is_json=False)
        in_pool_P = row_P >= 0
        row_P = row_P[in_pool_P]
        again = seen_N[row_P] | ~_is_first(row_P)
        if again.any():
            known = [id_ for id_, is_in in zip(id_P, in_pool_P.tolist(), strict=True) if is_in]
            raise DataError(
                f"{KEY}: {section.score} has several scores of an example (first: "
                f"{first([known[index] for index in np.flatnonzero(again)[:4]])}). "
                f"Every {EXAMPLE_ID} must be unique."
            )
        seen_N[row_P] = True
        value_N[row_P], state_N[row_P] = value_P[in_pool_P], kind_P[in_pool_P]
        num_rows, num_known = num_rows + len(id_P), num_known + len(row_P)
    if 2 * num_known >= num_rows:
        return ()
    return (
        f"{section.score}: {num_rows - num_known:,} of {num_rows:,} scores are of no example of "
        "the pool, and not used",
    )


def _is_first(row_P: np.ndarray) -> np.ndarray:
    """Tell for each number whether it is the first one of its value."""
    is_first_P = np.zeros(len(row_P), bool)
    is_first_P[np.unique(row_P, return_index=True)[1]] = True
    return is_first_P


def _batches(
    found: Sequence[InputFile], column: str
) -> Iterator[tuple[list[str], pa.ChunkedArray]]:
    """Yield ids and scores, some rows at a time; rows without an id are left out."""
    for file in found:
        location = Location.of(file.uri)
        with explained(location, "read"), location.open() as stream:
            parquet, names = pq.ParquetFile(stream), [EXAMPLE_ID, column]
            for batch in parquet.iter_batches(_ROWS_PER_READ, columns=names):
                table = pa.Table.from_batches([batch])
                table = table.filter(pc.is_valid(table[EXAMPLE_ID]))
                yield table[EXAMPLE_ID].cast(pa.string()).to_pylist(), table[column]


def _numbers(
    column: pa.ChunkedArray, inner: conditions.Path, *, is_json: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers in a column, and for each value whether it is one.

    Args:
        column: of any type.
        inner: names inside objects that lead to the number.
        is_json: whether the column is JSON text of the values.

    Returns:
        value_P, float64 (P,), NaN where there is no number; and state_P, int8 (P,).
    """
    if is_json:
        pairs = [_number_in(text, inner) for text in column.to_pylist()]
        return (
            np.array([value for value, _ in pairs], np.float64),
            np.array([state for _, state in pairs], np.int8),
        )
    for step in inner:
        if not pa.types.is_struct(column.type) or step not in column.type.names:
            column = pa.chunked_array([pa.nulls(len(column))])
            break
        column = pc.struct_field(column, step)
    return _typed_numbers(column)


def _typed_numbers(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    types = pa.types
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    is_missing_P = pc.is_null(column).to_numpy(zero_copy_only=False)
    if types.is_string(column.type) or types.is_large_string(column.type):
        is_missing_P |= pc.equal(pc.utf8_trim_whitespace(column), "").fill_null(True).to_numpy()
        found = conditions.number_of_text(column)
    elif _is_numeric(column.type):
        found = column.cast(pa.float64())
    else:
        found = pa.chunked_array([pa.nulls(len(column), pa.float64())])
    is_number_P = pc.is_valid(found).to_numpy(zero_copy_only=False)
    value_P = pc.fill_null(found, float("nan")).to_numpy()
    state_P = np.where(np.isnan(value_P), NAN, NUMBER).astype(np.int8)
    state_P[~is_number_P] = OTHER
    state_P[is_missing_P] = MISSING
    return value_P, state_P


def _number_in(text: str | None, inner: conditions.Path) -> tuple[float, int]:
    """Return the number in a JSON text, or NaN, and what it is."""
    value = None if text is None else json.loads(text)
    for step in inner:
        value = value.get(step) if isinstance(value, dict) else None
    if isinstance(value, str):
        trimmed = value.strip()
        if re.fullmatch(conditions.NUMERIC, trimmed):
            value = float(trimmed)
        elif not trimmed:
            value = None
    if value is None:
        return np.nan, MISSING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return np.nan, OTHER
    return float(value), NAN if value != value else NUMBER


def _is_numeric(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


def _check(
    score: str,
    key_N: np.ndarray,
    state_N: np.ndarray,
    needed_N: np.ndarray | None,
    sources: Sources,
) -> None:
    """Refuse scores that are not there or no numbers, of examples that need one."""
    needed = np.arange(len(key_N)) if needed_N is None else np.flatnonzero(needed_N)
    if np.all(state_N[needed] == NUMBER):
        return

    def ids(rows: Sequence[int]) -> list[str]:
        return columns.ids_of(key_N[needed[list(rows)]], sources)

    raise _refused(score, state_N[needed], ids, "examples")


def _refused(score: str, state_P: np.ndarray, ids: Any, of: str) -> DataError:
    """Return the error for scores that are not all numbers.

    Args:
        score: the score's name.
        state_P: what they are.
        ids: returns the ids of some of them by their places.
        of: what they are the scores of.
    """
    problems = []
    for state, words in _WORDS.items():
        places = np.flatnonzero(state_P == state)
        if len(places):
            named = first(ids(places[:4].tolist()))
            problems.append(f"{len(places):,} {words} (first: {named})")
    return DataError(
        f"{KEY}: {score}: of {len(state_P):,} {of} {', '.join(problems)}. "
        "Give every example a score, or leave those without one out by `selection.where`."
    )
