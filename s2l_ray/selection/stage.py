"""Stage 5: a ranking of all examples, of which the subset for any budget is a prefix.

Runs in one process without Ray. What it holds of an example are numbers, a few tens of bytes; ids
are read again when they are written.

Shape letters: N examples of the pool, P of one part, R in order of rank.
"""

import contextlib
import itertools
import json
import math
import tempfile
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ray import hashing
from s2l_ray.artifacts.manifest import SUBSET, Parts, StageDir, original_rows
from s2l_ray.config.sections import SelectionConfig
from s2l_ray.errors import DataError, first
from s2l_ray.selection.choice import Choice, choose
from s2l_ray.selection.columns import APART, Sources
from s2l_ray.selection.methods import Examples
from s2l_ray.storage.location import Location, temporary_space

ROWS_PER_TABLE = 1 << 18
"""Examples whose ids are in memory at once; more where there would be too many tables."""
MAX_TABLES = 256
RANKED = pa.schema([("example_id", pa.string()), ("stratum", pa.string()), ("cluster", pa.int32())])


def run(
    config: SelectionConfig,
    clusters: Parts,
    rows: Parts | None,
    out: StageDir,
    *,
    seed: int,
    trajectories: Parts | None = None,
    elsewhere: Collection[str] = (),
) -> dict[str, Any]:
    """Rank the pool, and write the subset for the budget where the original rows are known.

    Args:
        elsewhere: strata that `config` may name although the pool has none of their examples.

    Reads   clusters part-*         example_id, stratum, cluster, where wanted sqdist
            prepared rows-*         the original rows
            prepared part-*         num_tokens, num_prompt_tokens, where the method or budget is of
                                    tokens
            trajectories part-*     loss_nats, where the method looks at them
    Writes  ranking.parquet         example_id, stratum: string, cluster: int32, rank: int64
            ../subset/selected.jsonl  the chosen rows in input order, with example_id (or .parquet)
    Raises  DataError or ConfigError for a budget that the pool cannot give, for a stratum that it
            does not have, and where numbers that the method or the budget needs are missing.
    """
    pool = load_pool(clusters)
    chosen = chosen_of(pool, config, rows, trajectories, seed=seed, elsewhere=elsewhere)
    chosen_R = chosen.order_N[: chosen.num_selected]
    _write_ranking(pool, chosen.order_N, out.location / "ranking.parquet")
    if rows is not None:
        place = out.beside(SUBSET) / f"selected.{config.format}"
        write_selected(pool.key_N[chosen_R], rows, place)
    tokens = {} if chosen.num_tokens is None else {"selected_tokens": chosen.num_tokens}
    return {
        "rows": pool.num_rows,
        "selected": chosen.num_selected,
        **tokens,
        "strata": _counts(pool.stratum_N[chosen_R], pool.strata),
        "selected_of_cluster": np.bincount(pool.cluster_N[chosen_R]).tolist(),
    }


@dataclass(frozen=True)
class Pool:
    """All clustered examples, in the order of the parts; their ids stay there.

    Attributes:
        clusters: the parts.
        key_N: uint64 (N,), hashes of the ids.
        cluster_N: int32 (N,).
        stratum_N: int32 (N,), places in `strata`.
        strata: names, sorted.
    """

    clusters: Parts
    key_N: np.ndarray
    cluster_N: np.ndarray
    stratum_N: np.ndarray
    strata: list[str]

    @property
    def num_rows(self) -> int:
        return len(self.key_N)


def load_pool(clusters: Parts) -> Pool:
    """Every example of the pool with its cluster.

    Raises:
        DataError: an example appears twice.
    """
    # These grow in place, where a list of pieces would be held a second time when it is joined.
    keys, numbers, codes = array("Q"), array("i"), array("i")
    code_by_name: dict[str, int] = {}
    for table in clusters.tables(RANKED.names):
        keys.frombytes(hashing.example_keys(table["example_id"].to_pylist()).tobytes())
        numbers.frombytes(table["cluster"].to_numpy().tobytes())
        codes.frombytes(_coded(table["stratum"], code_by_name).tobytes())
    strata = sorted(code_by_name)
    place_by_code = np.argsort([code_by_name[name] for name in strata]).astype(np.int32)
    pool = Pool(
        clusters,
        np.frombuffer(keys, np.uint64),
        np.frombuffer(numbers, np.int32),
        place_by_code[np.frombuffer(codes, np.int32)],
        strata,
    )
    _check_unique(pool)
    return pool


def _coded(stratum: pa.ChunkedArray, code_by_name: dict[str, int]) -> np.ndarray:
    """Numbers of strata in the order in which they were first seen; new ones are added."""
    coded = stratum.combine_chunks().dictionary_encode()
    names = coded.dictionary.to_pylist()
    known = [code_by_name.setdefault(name, len(code_by_name)) for name in names]
    return np.array(known, np.int32)[coded.indices.to_numpy()]


def _check_unique(pool: Pool) -> None:
    sorted_N = np.sort(pool.key_N)
    twice = sorted_N[1:][sorted_N[1:] == sorted_N[:-1]]
    if len(twice):
        ids = {
            example_id
            for table in pool.clusters.tables(["example_id"])
            for example_id in _with_keys(table, twice[:3])["example_id"].to_pylist()
        }
        raise DataError(
            f"selection: {len(twice):,} examples appear more than once in the trajectories "
            f"(first: {first(sorted(ids))}). Every example_id must be unique."
        )


def _with_keys(table: pa.Table, sorted_keys: np.ndarray) -> pa.Table:
    """The rows of `table` whose examples have one of these keys, which are not none."""
    key_N = hashing.example_keys(table["example_id"].to_pylist())
    place_N = np.searchsorted(sorted_keys, key_N)
    return table.filter(pa.array(sorted_keys[place_N % len(sorted_keys)] == key_N))


def chosen_of(
    pool: Pool,
    config: SelectionConfig,
    rows: Parts | None,
    trajectories: Parts | None,
    *,
    seed: int,
    elsewhere: Collection[str] = (),
) -> Choice:
    """The ranking of the pool by `config`, and how much of it the budget takes."""
    # Tokens lie beside the rows.
    prepared = Parts(rows.folder, more=rows.more) if rows is not None else None
    sources = Sources(pool.clusters, trajectories, prepared)
    examples = Examples(pool.key_N, pool.cluster_N, pool.stratum_N)
    return choose(config, examples, pool.strata, sources, seed=seed, elsewhere=elsewhere)


def ranked(
    pool: Pool, order_R: np.ndarray, *, rows_per_table: int = ROWS_PER_TABLE
) -> Iterator[pa.Table]:
    """The examples in these rows of the pool, in this order, as tables of the schema RANKED.

    In order of rank ids are needed from all over the pool, and they are too many to hold. So the
    parts are read once more, each id goes to the scratch file of its table, and then one table
    after the other is put in order.
    """
    # As many files are open at once.
    rows_per_table = max(rows_per_table, math.ceil(len(order_R) / MAX_TABLES))
    tables = [
        order_R[start : start + rows_per_table] for start in range(0, len(order_R), rows_per_table)
    ]
    with tempfile.TemporaryDirectory(prefix="s2l-") as scratch, temporary_space():
        files = [Path(scratch) / f"{number}.arrow" for number in range(len(tables))]
        _deal_out_ids(pool, tables, files)
        for row_R, file in zip(tables, files, strict=True):
            with pa.OSFile(str(file)) as stream:
                ids = pa.ipc.open_stream(stream).read_all()["example_id"].combine_chunks()
            # The file has them in the order of the pool.
            place_R = np.empty(len(row_R), np.int64)
            place_R[np.argsort(row_R)] = np.arange(len(row_R))
            columns = [
                ids.take(pa.array(place_R)),
                pa.array(pool.strata, pa.string()).take(pa.array(pool.stratum_N[row_R])),
                pa.array(pool.cluster_N[row_R]),
            ]
            yield pa.table(columns, schema=RANKED)


def _deal_out_ids(pool: Pool, tables: Sequence[np.ndarray], files: Sequence[Path]) -> None:
    """Write to each file the ids of the rows of one table, in the order of the pool."""
    table_N = np.full(pool.num_rows, len(tables), np.min_scalar_type(len(tables)))
    for number, row_R in enumerate(tables):
        table_N[row_R] = number
    schema = pa.schema([RANKED.field("example_id")])
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(pa.OSFile(str(file), "wb")) for file in files]
        writers = [stack.enter_context(pa.ipc.new_stream(s, schema)) for s in streams]
        start = 0
        for part in pool.clusters.tables(["example_id"]):
            table_P = table_N[start : start + part.num_rows]
            start += part.num_rows
            by_table = part.take(pa.array(np.argsort(table_P, kind="stable")))
            end_of_table = np.cumsum(np.bincount(table_P, minlength=len(tables)))
            for number, (begin, end) in enumerate(itertools.pairwise([0, *end_of_table.tolist()])):
                if number < len(tables) and begin < end:
                    writers[number].write_table(by_table.slice(begin, end - begin))


def _write_ranking(pool: Pool, order_N: np.ndarray, place: Location) -> None:
    schema = RANKED.append(pa.field("rank", pa.int64()))
    start = 0
    with place.open_atomic() as stream, pq.ParquetWriter(stream, schema) as writer:
        for table in ranked(pool, order_N):
            rank_R = np.arange(start, start + table.num_rows)
            writer.write_table(table.append_column("rank", pa.array(rank_R, pa.int64())))
            start += table.num_rows


def write_ids(pool: Pool, order_R: np.ndarray, place: Location) -> None:
    """Write ids, strata and clusters of these rows of the pool, in this order."""
    with place.open_atomic() as stream:
        writer = _Jsonl(stream) if place.name.endswith(".jsonl") else _Parquet(stream, RANKED)
        for table in ranked(pool, order_R):
            for batch in table.to_batches(max_chunksize=1 << 16):
                writer.write(batch.to_pylist())
        writer.close()


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
                f"examples have no row in {rows.places}. {APART}: check data.train, and "
                "data.fields.id."
            )


def chosen_rows(chosen_keys: np.ndarray, rows: Parts) -> Iterator[list[dict[str, Any]]]:
    """The rows with these keys, part by part, their example_id added."""
    sorted_keys = np.sort(chosen_keys)
    for table in rows.tables():
        part = _with_keys(table, sorted_keys)
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


def _counts(code_R: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """How often each name occurs, in their order; those that do not are left out."""
    counts = np.bincount(code_R, minlength=len(names)).tolist()
    return {name: count for name, count in zip(names, counts, strict=True) if count}
