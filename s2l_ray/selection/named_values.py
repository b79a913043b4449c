"""Values of examples by name: fields of the original rows, and what a run knows of its examples.

A name is that of a field, or one of RUN_NAMES. If it is both, `row.NAME` and `run.NAME` tell them
apart. Further names after a dot lead into objects: `meta.score`.

Shape letters: N examples of the pool, P of one part.
"""

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from s2l_ray.artifacts import tables
from s2l_ray.artifacts.pool_types import pool_types
from s2l_ray.artifacts.tables import Parts
from s2l_ray.errors import ConfigError, first
from s2l_ray.selection import columns
from s2l_ray.selection.columns import Sources
from s2l_ray.selection.conditions import Path, shown
from s2l_ray.selection.examples import Examples

STRATUM, CLUSTER = "stratum", "cluster"
RUN_NAMES = (
    STRATUM,
    CLUSTER,
    columns.TOKENS,
    columns.RESPONSE_TOKENS,
    "last_loss",
    "loss_drop",
    "loss_slope",
)
"""What a run knows of an example; docs/methods.md describes each."""
KNOWN_WHEN_PREPARED = frozenset({STRATUM, columns.TOKENS, columns.RESPONSE_TOKENS})
"""Those of RUN_NAMES that are known before anything is trained."""
ROW, RUN = "row", "run"
"""Prefixes that tell a field from a name of the run."""
EXAMPLES_PER_BLOCK = 1 << 16


@dataclass(frozen=True)
class FieldTypes:
    """The fields of the original rows, and the types of their values.

    Attributes:
        schema: the types.
        faults: field -> why its values have no common type.
    """

    schema: pa.Schema
    faults: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        """The names of all fields."""
        return [*self.schema.names, *self.faults]


def field_types(rows: Parts | None) -> FieldTypes:
    """Return the fields of all rows of a pool; none without rows."""
    return FieldTypes(*pool_types(rows)) if rows is not None else FieldTypes(pa.schema([]), {})


@dataclass(frozen=True)
class Origin:
    """Where the values of a name come from.

    Attributes:
        path: one of RUN_NAMES alone; or a field, and the names inside its objects.
        of_run: whether it is one of RUN_NAMES.
    """

    path: Path
    of_run: bool


def origin(path: Path, fields: Collection[str], key: str, of: str = "the rows") -> Origin:
    """Return where the values of a name come from.

    Args:
        path: the name.
        fields: names of all fields of the rows.
        key: the key of the configuration that has the name, for messages.
        of: what has these fields, for messages.

    Raises:
        ConfigError: it is unknown, with the nearest name; or both a field and a name of the run.
    """
    name = path[0]
    if name not in fields and len(path) > 1:
        if name == ROW and path[1] in fields:
            return Origin(path[1:], of_run=False)
        if name == RUN and path[1:] in [(known,) for known in RUN_NAMES]:
            return Origin(path[1:], of_run=True)
    is_of_run = len(path) == 1 and name in RUN_NAMES
    if is_of_run and name in fields:
        raise ConfigError(
            f"{key}: {name} is a field of {of}, and the run knows a number of that name. Write "
            f"{ROW}.{name} or {RUN}.{name}."
        )
    if is_of_run or name in fields:
        return Origin(path, is_of_run)
    raise ConfigError(f"{key}: {_unknown(path, fields, of)}")


def _unknown(path: Path, fields: Collection[str], of: str) -> str:
    wanted = path[1] if path[0] in (ROW, RUN) and len(path) > 1 else path[0]
    known = [*fields, *RUN_NAMES]
    near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.6)
    hint = f"did you mean {shown((near[0],))}?" if near else "fields"
    listed = first(sorted(fields), 8) if fields else "none"
    return (
        f"{shown(path)} is no field of {of} and no name of the run; {hint}"
        f"{' Fields' if near else ''}: {listed}; names of the run: {', '.join(RUN_NAMES)}. "
        "Texts stand in 'quotes'."
    )


def check_typed(place: Origin, types: FieldTypes, key: str) -> None:
    """Refuse a field whose values have no common type, and a name that its objects have not.

    Raises:
        ConfigError: naming the field and the cause.
    """
    if place.of_run:
        return
    name, *inner = place.path
    if name in types.faults:
        raise ConfigError(
            f"{key}: the values of the field {name!r} have no common type "
            f"({types.faults[name].rstrip('.')}). Mend the data, or name what the run has of every "
            "row, such as stratum."
        )
    kind, reached = types.schema.field(name).type, [name]
    for step in inner:
        if pa.types.is_null(kind):
            return
        known = kind.names if pa.types.is_struct(kind) else []
        if step not in known:
            near = difflib.get_close_matches(step, known, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}? It has" if near else "it has"
            what = f"{hint}: {first(known, 8)}" if known else "its values are no objects"
            raise ConfigError(f"{key}: there is no {step!r} in {shown(tuple(reached))}; {what}")
        kind = kind.field(step).type
        reached.append(step)


def field_arrays(table: pa.Table, paths: Collection[Path], types: FieldTypes) -> dict[Path, Any]:
    """Return the values of fields of the rows of a `rows-*` table, in their common types."""
    names = list(dict.fromkeys(path[0] for path in paths))
    found = tables.original_table(table, pa.schema([types.schema.field(name) for name in names]))
    return {path: _inside(found[path[0]], path[1:]) for path in paths}


def _inside(column: pa.ChunkedArray, path: Path) -> pa.ChunkedArray:
    """Return what objects have under a name; null in a column without values."""
    for step in path:
        if pa.types.is_null(column.type):
            return column
        column = pc.struct_field(column, step)
    return column


def blocks(
    places: Mapping[Path, Origin],
    types: FieldTypes,
    examples: Examples,
    strata: Sequence[str],
    sources: Sources,
) -> Iterator[tuple[np.ndarray, dict[Path, Any]]]:
    """Yield the values of these names for some examples after the others.

    Returns:
        row_P, integer (P,), rows of the pool; and for each name an array of P values.

    Raises:
        DataError: an example has no row or no number.
    """
    of_run = {place.path[0] for place in places.values() if place.of_run}
    number_by_name = columns.read(of_run - {STRATUM, CLUSTER}, examples.key_N, sources)
    of_rows = {place.path for place in places.values() if not place.of_run}
    for row_P, table in _rows(of_rows, examples, sources):
        known = _run_arrays(of_run, row_P, examples, strata, number_by_name)
        fields = field_arrays(table, of_rows, types) if table is not None else {}
        yield row_P, by_name(places, known, fields)


def by_name(
    places: Mapping[Path, Origin], of_run: Mapping[Path, Any], of_rows: Mapping[Path, Any]
) -> dict[Path, Any]:
    """Return for each name its values: a field of the rows may be called as one of the run."""
    return {
        name: (of_run if place.of_run else of_rows)[place.path] for name, place in places.items()
    }


def _rows(
    paths: Collection[Path], examples: Examples, sources: Sources
) -> Iterator[tuple[np.ndarray, pa.Table | None]]:
    """Yield rows of the pool with the fields of `paths`, or without a table if there are none."""
    num_examples = len(examples.key_N)
    if not paths:
        for start in range(0, num_examples, EXAMPLES_PER_BLOCK):
            yield np.arange(start, min(start + EXAMPLES_PER_BLOCK, num_examples)), None
        return
    assert sources.rows is not None, "only rows have fields"
    names = tuple(dict.fromkeys(tables.column_name(path[0]) for path in paths))
    has_row_N = np.zeros(num_examples, bool)
    for table, row_P in columns.align_with_pool(sources.rows, [], examples.key_N, optional=names):
        in_pool_P = row_P >= 0
        row_P = row_P[in_pool_P]
        has_row_N[row_P] = True
        yield row_P, table.filter(pa.array(in_pool_P))
    if not has_row_N.all():
        missing, advice = examples.key_N[~has_row_N], f"{columns.MISMATCH}: check data.train."
        columns.refuse_missing(missing, num_examples, sources.rows, sources, advice)


def _run_arrays(
    names: Collection[str],
    row_P: np.ndarray,
    examples: Examples,
    strata: Sequence[str],
    number_by_name: Mapping[str, np.ndarray],
) -> dict[Path, Any]:
    """Return what the run knows of these examples."""
    found: dict[Path, Any] = {
        (name,): pa.array(number_N[row_P]) for name, number_N in number_by_name.items()
    }
    if STRATUM in names:
        found[STRATUM,] = pa.array(strata, pa.string()).take(pa.array(examples.stratum_N[row_P]))
    if CLUSTER in names:
        found[CLUSTER,] = pa.array(examples.cluster_N[row_P])
    return found


def empty_run_arrays(paths: Collection[Path], num_rows: int) -> dict[Path, Any]:
    """Return missing values of the type that names of the run have, to try a condition with."""
    kinds = {name: pa.string() if name == STRATUM else pa.float64() for name in RUN_NAMES}
    return {path: pa.nulls(num_rows, kinds[path[0]]) for path in paths}
