"""Stage 5: a ranking of all examples, of which the subset for any budget is a prefix.

Runs in one process without Ray, on a few tens of bytes per example.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ray.artifacts import Parts, StageDir, original_rows
from s2l_ray.config import SelectionConfig
from s2l_ray.errors import DataError, first
from s2l_ray.maths import hashing
from s2l_ray.maths.selection import METHODS, Examples, budget_rows
from s2l_ray.storage import Location

ROWS_PER_WRITE = 1 << 20


def run(
    config: SelectionConfig, clusters: Parts, rows: Parts | None, out: StageDir, *, seed: int
) -> dict[str, Any]:
    """Rank the pool, and write the subset for the budget where the original rows are known.

    Reads   clusters part-*         example_id, stratum, cluster
            prepared rows-*         the original rows
    Writes  ranking.parquet         example_id, stratum: string, cluster: int32, rank: int64
            selected.jsonl          the chosen rows in input order, with example_id (or .parquet)
    Raises  DataError or ConfigError for a budget that the pool cannot give.
    """
    pool = load_pool(clusters)
    num_selected = budget_rows(config.budget, pool.num_rows)
    order_N = rank(pool, config.method, seed, stratify=config.stratify)
    _write_ranking(pool, order_N, out.location / "ranking.parquet")
    if rows is not None:
        place = out.location / f"selected.{config.format}"
        write_selected(pool.key_N[order_N[:num_selected]], rows, place)
    chosen = pool.table.take(pa.array(order_N[:num_selected]))
    return {
        "rows": pool.num_rows,
        "selected": num_selected,
        "strata": _counts(chosen["stratum"]),
        "selected_of_cluster": np.bincount(chosen["cluster"].to_numpy()).tolist(),
    }


@dataclass(frozen=True)
class Pool:
    """All clustered examples: ids and strata as arrow columns, keys as integers."""

    table: pa.Table
    key_N: np.ndarray

    @property
    def num_rows(self) -> int:
        return int(self.table.num_rows)


def load_pool(clusters: Parts) -> Pool:
    """Every example of the pool with its cluster.

    Raises:
        DataError: an example appears twice.
    """
    tables = list(clusters.tables(["example_id", "stratum", "cluster"]))
    keys = [hashing.example_keys(table["example_id"].to_pylist()) for table in tables]
    table = pa.concat_tables(tables)
    key_N = np.concatenate(keys) if keys else np.empty(0, np.uint64)
    sorted_N = np.sort(key_N)
    twice = sorted_N[1:][sorted_N[1:] == sorted_N[:-1]]
    if len(twice):
        positions = np.flatnonzero(np.isin(key_N, twice[:3]))
        ids = sorted(set(table["example_id"].take(pa.array(positions)).to_pylist()))
        raise DataError(
            f"selection: {len(twice):,} examples appear more than once in the trajectories "
            f"(first: {first(ids)}). Every example_id must be unique."
        )
    return Pool(table, key_N)


def rank(pool: Pool, method: str, seed: int, *, stratify: bool) -> np.ndarray:
    """order_N, int64 (N,): order_N[r] is the row of the pool that holds rank r."""
    strata = pool.table["stratum"].to_numpy()
    _, stratum_N = np.unique(strata.astype(str), return_inverse=True)
    examples = Examples(pool.key_N, pool.table["cluster"].to_numpy(), stratum_N)
    return METHODS[method].ranking(examples, seed, stratify=stratify)


def _write_ranking(pool: Pool, order_N: np.ndarray, place: Location) -> None:
    schema = pool.table.schema.append(pa.field("rank", pa.int64()))
    with place.open_atomic() as stream, pq.ParquetWriter(stream, schema) as writer:
        for start in range(0, len(order_N), ROWS_PER_WRITE):
            order_B = order_N[start : start + ROWS_PER_WRITE]
            rank_B = np.arange(start, start + len(order_B))
            ranked = pool.table.take(pa.array(order_B))
            writer.write_table(ranked.append_column("rank", pa.array(rank_B, pa.int64())))


def write_selected(chosen_keys: np.ndarray, rows: Parts, place: Location) -> None:
    """Write the rows with these keys, in input order, their own fields untouched.

    Raises:
        DataError: an example has no row.
    """
    num_found = 0
    with place.open_atomic() as stream:
        writer = (
            _Jsonl(stream)
            if place.name.endswith(".jsonl")
            else _Parquet(stream, _schema(chosen_rows(chosen_keys, rows)))
        )
        for found in chosen_rows(chosen_keys, rows):
            num_found += len(found)
            writer.write(found)
        writer.close()
        if num_found != len(chosen_keys):
            raise DataError(
                f"selection: {len(chosen_keys) - num_found:,} of {len(chosen_keys):,} selected "
                f"examples have no row in {rows.folder}. Trajectories and data do not belong "
                "together: check data.train, and data.fields.id."
            )


def chosen_rows(chosen_keys: np.ndarray, rows: Parts) -> Iterator[list[dict[str, Any]]]:
    """The rows with these keys, part by part, their example_id added."""
    for table in rows.tables():
        key_N = hashing.example_keys(table["example_id"].to_pylist())
        part = table.filter(pa.array(np.isin(key_N, chosen_keys)))
        ids = part["example_id"].to_pylist()
        yield [
            {**row, "example_id": example_id}
            for example_id, row in zip(ids, original_rows(part), strict=True)
        ]


class _Jsonl:
    """One JSON object per line."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, found: Sequence[Mapping[str, Any]]) -> None:
        for row in found:
            self._stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        pass


class _Parquet:
    """One file of a schema that all rows fit."""

    def __init__(self, stream: Any, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(stream, schema)

    def write(self, found: Sequence[Mapping[str, Any]]) -> None:
        self._writer.write_table(pa.Table.from_pylist(found, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


def _schema(parts: Iterable[Sequence[Mapping[str, Any]]]) -> pa.Schema:
    """Every field of any row, with a type that all its values fit.

    Raises:
        DataError: a field has none.
    """
    schema = pa.schema([])
    for found in parts:
        for name in dict.fromkeys(name for row in found for name in row):
            try:
                values = pa.array([row.get(name) for row in found])
                field = pa.schema([pa.field(name, values.type)])
                schema = pa.unify_schemas([schema, field], promote_options="permissive")
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                cause = " ".join(str(error).split())
                raise DataError(
                    f"selection: the values of field {name!r} are of types that one parquet "
                    f"column cannot hold ({cause}). Choose `selection.format: jsonl`."
                ) from None
    return schema


def _counts(strata: pa.ChunkedArray) -> dict[str, int]:
    counted = strata.value_counts().to_pylist()
    return dict(sorted((item["values"], item["counts"]) for item in counted))
