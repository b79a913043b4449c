"""Stage 5: a ranking of all examples; the subset for any budget is a prefix of it.

Runs in one process, which `ranking_worker` chooses. It holds numbers of each example, a few tens
of bytes; ids are read again when they are written.

Shape letters: N examples of the pool, P of one part, R in order of rank.
"""

import contextlib
import itertools
import json
import math
import tempfile
from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ray.artifacts.keys import column_keys
from s2l_ray.artifacts.manifest import RANKING, SUBSET, StageDir
from s2l_ray.artifacts.tables import Parts
from s2l_ray.config.sections import SelectionConfig
from s2l_ray.errors import DataError, first
from s2l_ray.selection import columns, subset_file
from s2l_ray.selection.added_columns import AddedColumns, added_columns, check_free
from s2l_ray.selection.columns import MISMATCH, Sources
from s2l_ray.selection.examples import Examples
from s2l_ray.selection.ranking import RankedPool, rank_pool
from s2l_ray.storage.failures import temporary_space
from s2l_ray.storage.location import Location

ROWS_PER_TABLE = 1 << 18
"""Examples whose ids are in memory at once; more if there would be more than MAX_TABLES tables."""
MAX_TABLES = 256
"""The most scratch files that are open at once."""
RANKED = pa.schema([("example_id", pa.string()), ("stratum", pa.string()), ("cluster", pa.int32())])


def run(
    config: SelectionConfig,
    sources: Sources,
    out: StageDir,
    *,
    seed: int,
    new_strata: Collection[str] = (),
) -> dict[str, Any]:
    """Rank the pool, and write the subset for the budget if the original rows are known.

    Args:
        new_strata: strata that only extensions of the run have; `config` may name them.

    Reads   clusters part-*         example_id, stratum, cluster; sqdist if the method reads it
            prepared rows-*         the original rows, and the fields of a condition or a score
            prepared part-*         num_tokens and the ranges, if the method or budget counts
                                    tokens
            trajectories part-*     loss_nats, if the method reads them
            files of `score`        example_id and numbers
    Writes  ranking.parquet         example_id, stratum: string, cluster: int32, rank: int64, of the
                                    examples that can be selected
            ../subset/selected.jsonl  the chosen rows in input order, with example_id (or .parquet)
    Raises  DataError or ConfigError if the pool cannot give the budget or does not have a stratum,
            or if numbers that the method or the budget needs are missing, or if rows have a field
            with the name of an added column.
    """
    if sources.rows is not None:
        check_free(config.columns, sources.rows)
    pool = load_pool(sources.clusters)
    ranked = rank(pool, config, sources, seed=seed, new_strata=new_strata)
    subset_R = ranked.subset_R
    _write_ranking(pool, ranked.order_K, out.location / RANKING)
    if sources.rows is not None:
        file = out.further_folder(SUBSET) / f"selected.{config.format}"
        added = ranking_columns(config.columns, pool, subset_R, sources)
        write_selected(pool.key_N[subset_R], sources.rows, file, added=added)
    left = {} if ranked.remaining is None else {"remaining": len(ranked.remaining.row_K)}
    notes = [*([ranked.remaining.text] if ranked.remaining else []), *ranked.notes]
    tokens = {} if ranked.num_tokens is None else {"selected_tokens": ranked.num_tokens}
    return {
        "rows": pool.num_rows,
        "selected": ranked.num_selected,
        **tokens,
        **left,
        "strata": _counts(pool.stratum_N[subset_R], pool.strata),
        "selected_of_cluster": np.bincount(pool.cluster_N[subset_R]).tolist(),
        **({"notes": notes} if notes else {}),
    }


@dataclass(frozen=True)
class ClusteredPool:
    """All clustered examples, in the order of the parts; their ids are not in memory.

    Attributes:
        clusters: the parts.
        key_N: uint64 (N,), hashes of the ids.
        cluster_N: int32 (N,), cluster numbers.
        stratum_N: int32 (N,), indices into `strata`.
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


def load_pool(clusters: Parts) -> ClusteredPool:
    """Read every example of the pool with its cluster.

    Raises:
        DataError: an example appears twice.
    """
    # Arrays grow in place. A list of pieces would need twice the memory while it is joined.
    keys, numbers, codes = array("Q"), array("i"), array("i")
    code_by_name: dict[str, int] = {}
    for table in clusters.tables(RANKED.names):
        keys.frombytes(column_keys(table["example_id"]).tobytes())
        numbers.frombytes(table["cluster"].to_numpy().tobytes())
        codes.frombytes(_coded(table["stratum"], code_by_name).tobytes())
    strata = sorted(code_by_name)
    index_by_code = np.empty(len(strata), np.int32)
    index_by_code[[code_by_name[name] for name in strata]] = np.arange(len(strata))
    stratum_N = np.frombuffer(codes, np.int32)
    for start in range(0, len(codes), ROWS_PER_TABLE):
        block = stratum_N[start : start + ROWS_PER_TABLE]
        block[:] = index_by_code[block]
    pool = ClusteredPool(
        clusters,
        np.frombuffer(keys, np.uint64),
        np.frombuffer(numbers, np.int32),
        stratum_N,
        strata,
    )
    _check_unique(pool)
    return pool


def _coded(stratum: pa.ChunkedArray, code_by_name: dict[str, int]) -> np.ndarray:
    """Return codes of strata, numbered as first seen; new ones are added to `code_by_name`."""
    coded = stratum.combine_chunks().dictionary_encode()
    names = coded.dictionary.to_pylist()
    known = [code_by_name.setdefault(name, len(code_by_name)) for name in names]
    return np.array(known, np.int32)[coded.indices.to_numpy()]


def _check_unique(pool: ClusteredPool) -> None:
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
    """Return the rows of `table` whose examples have one of these keys; there must be a key."""
    key_N = column_keys(table["example_id"])
    index_N = np.searchsorted(sorted_keys, key_N)
    return table.filter(pa.array(sorted_keys[index_N % len(sorted_keys)] == key_N))


def rank(
    pool: ClusteredPool,
    config: SelectionConfig,
    sources: Sources,
    *,
    seed: int,
    new_strata: Collection[str] = (),
) -> RankedPool:
    """Rank the pool by `config`, and take as much of the ranking as the budget allows.

    Args and errors are those of `run`.
    """
    examples = Examples(pool.key_N, pool.cluster_N, pool.stratum_N)
    return rank_pool(config, examples, pool.strata, sources, seed=seed, new_strata=new_strata)


def tables_by_rank(
    pool: ClusteredPool, order_R: np.ndarray, *, rows_per_table: int = ROWS_PER_TABLE
) -> Iterator[pa.Table]:
    """Yield the examples in these rows of the pool, in this order, as tables of the schema RANKED.

    Consecutive ranks need ids from all parts of the pool, and these are too many for memory. So the
    parts are read once more, each id goes to the scratch file of its table, and then one table
    after the other is put in order.
    """
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
            # The file has the ids in the order of the pool.
            index_R = np.empty(len(row_R), np.int64)
            index_R[np.argsort(row_R)] = np.arange(len(row_R))
            columns = [
                ids.take(pa.array(index_R)),
                pa.array(pool.strata, pa.string()).take(pa.array(pool.stratum_N[row_R])),
                pa.array(pool.cluster_N[row_R]),
            ]
            yield pa.table(columns, schema=RANKED)


def _deal_out_ids(pool: ClusteredPool, tables: Sequence[np.ndarray], files: Sequence[Path]) -> None:
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


def _write_ranking(pool: ClusteredPool, order_N: np.ndarray, file: Location) -> None:
    schema = RANKED.append(pa.field("rank", pa.int64()))
    start = 0
    with file.open_atomic() as stream, pq.ParquetWriter(stream, schema) as writer:
        for table in tables_by_rank(pool, order_N):
            rank_R = np.arange(start, start + table.num_rows)
            writer.write_table(table.append_column("rank", pa.array(rank_R, pa.int64())))
            start += table.num_rows


def ranking_columns(
    names: Sequence[str], pool: ClusteredPool, order_R: np.ndarray, sources: Sources
) -> AddedColumns | None:
    """Return columns of the subset with these rows of the pool; None if there are no names.

    Raises:
        DataError: tokens are wanted, and were not counted.
    """
    if not names:
        return None
    values: dict[str, pa.Array] = {
        "rank": pa.array(np.arange(len(order_R)), pa.int64()),
        "cluster": pa.array(pool.cluster_N[order_R], pa.int32()),
        "stratum": pa.array(pool.strata, pa.string()).take(pa.array(pool.stratum_N[order_R])),
    }
    if columns.TOKENS in names:
        num_tokens_N = columns.read([columns.TOKENS], pool.key_N, sources)[columns.TOKENS]
        values[columns.TOKENS] = pa.array(num_tokens_N[order_R], pa.int32())
    return added_columns(pool.key_N[order_R], {name: values[name] for name in names})


def write_ids(
    pool: ClusteredPool,
    order_R: np.ndarray,
    file: Location,
    *,
    replace: bool = True,
    added: AddedColumns | None = None,
) -> None:
    """Write ids, strata and clusters of these rows of the pool, in this order.

    Args:
        replace: as for `Location.open_atomic`.
        added: further columns.
    """
    tables = id_tables(pool, order_R, added)
    with file.open_atomic(replace=replace) as stream:
        if file.name.endswith(".parquet"):
            schema = pa.unify_schemas([RANKED, added.schema]) if added else RANKED
            with pq.ParquetWriter(stream, schema) as writer:
                for table in tables:
                    writer.write_table(table.cast(schema))
            return
        for table in tables:
            for batch in table.to_batches(max_chunksize=1 << 16):
                for row in batch.to_pylist():
                    stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def id_tables(
    pool: ClusteredPool, order_R: np.ndarray, added: AddedColumns | None
) -> Iterator[pa.Table]:
    """Yield ids, strata and clusters of these rows of the pool, and what is added to them."""
    for table in tables_by_rank(pool, order_R):
        extra = added.of(table) if added else pa.table({})
        for name in extra.column_names:
            if name not in RANKED.names:
                table = table.append_column(name, extra[name])
        yield table


def write_selected(
    selected_keys: np.ndarray,
    rows: Parts,
    file: Location,
    *,
    replace: bool = True,
    added: AddedColumns | None = None,
) -> None:
    """Write the rows with these keys, in input order, with their own fields unchanged.

    Args:
        replace: as for `Location.open_atomic`.
        added: columns that are added to the rows.

    Raises:
        DataError: an example has no row.
    """
    num_rows = 0
    with file.open_atomic(replace=replace) as stream:
        writer = subset_file.writer(stream, file.name, rows, added)
        for part in _selected_parts(selected_keys, rows):
            num_rows += part.num_rows
            writer.write(part)
        writer.close()
        if num_rows != len(selected_keys):
            raise DataError(
                f"selection: {len(selected_keys) - num_rows:,} of {len(selected_keys):,} selected "
                f"examples have no row in {rows.folder_names}. {MISMATCH}: check data.train, and "
                "data.fields.id."
            )


def selected_rows(
    selected_keys: np.ndarray, rows: Parts, added: AddedColumns | None = None
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows with these keys, part by part, with example_id and the added columns."""
    for part in _selected_parts(selected_keys, rows):
        yield list(subset_file.subset_rows(part, added))


def _selected_parts(selected_keys: np.ndarray, rows: Parts) -> Iterator[pa.Table]:
    """Yield the rows with these keys of each part, as `rows-*` tables."""
    sorted_keys = np.sort(selected_keys)
    for table in rows.tables():
        yield _with_keys(table, sorted_keys)


def _counts(code_R: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """Return how often each name occurs, in their order; names that do not occur are left out."""
    counts = np.bincount(code_R, minlength=len(names)).tolist()
    return {name: count for name, count in zip(names, counts, strict=True) if count}
