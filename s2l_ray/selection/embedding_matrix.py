"""Embeddings of the examples and of queries, which rankings compare.

They are too large for memory. They are copied part by part, in the order of the pool, into a
scratch file that is mapped into memory and read block by block. It takes as much disk as the parts.

Shape letters: N examples of the pool, P of one part, H components.
"""

import contextlib
import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from s2l_ray.artifacts.manifest import EMBEDDINGS, QUERIES, query_embeddings
from s2l_ray.artifacts.tables import Parts
from s2l_ray.errors import DataError
from s2l_ray.selection.columns import (
    Sources,
    align_with_pool,
    refuse_missing,
    refuse_repeated,
    scored_parts,
)
from s2l_ray.storage.failures import temporary_space

REDO = "Set `trajectories.embeddings: true` and redo them with `--from trajectories`"


@contextlib.contextmanager
def read(
    names: Collection[str], key_N: np.ndarray, sources: Sources
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the vectors with these names, float16 (rows, H); they are deleted after the block.

    Args:
        names: `embeddings`, one for every example in the order of the pool; and perhaps `queries`,
            in the order of their files.
        key_N: uint64 (N,), unique hashes of the ids, as `clusters` has them.

    Raises:
        DataError: the files are missing, or an example has no vector, or more than one.
        StorageError: the disk for temporary files is too small.
    """
    if not names:
        yield {}
        return
    parts = scored_parts(EMBEDDINGS, sources, "embeddings of all examples are compared", REDO)
    queries = {QUERIES: _queries(sources)} if QUERIES in names else {}
    with tempfile.TemporaryDirectory(prefix="s2l-") as scratch:
        yield queries | {EMBEDDINGS: _gathered(parts, key_N, sources, Path(scratch) / "vectors")}


def _queries(sources: Sources) -> np.ndarray:
    """Return the embeddings of the queries, float16 (Q, H).

    An extension is ranked by the queries of its run, so they are read from the run's folder.
    """
    assert sources.trajectories is not None, "embeddings of examples are there"
    queries = Parts(query_embeddings(sources.trajectories.folder), EMBEDDINGS)
    vectors = [_vectors_of(table) for table in queries.tables(["embedding"])]
    if not vectors:
        raise DataError(
            f"selection: examples are compared with queries, and there are none in "
            f"{queries.folder}. Name files of rows like those that are wanted in "
            "`trajectories.queries`, and redo the stage with `--from trajectories`."
        )
    return np.concatenate(vectors)


def _gathered(parts: Parts, key_N: np.ndarray, sources: Sources, file: Path) -> np.ndarray:
    """Return the embeddings in the order of the keys: `file`, float16 (N, H), mapped to memory."""
    has_row_N = np.zeros(len(key_N), bool)
    num_rows = 0
    vector_NH = np.empty((0, 0), np.float16)
    for table, row_P in align_with_pool(parts, ["embedding"], key_N):
        vector_PH = _vectors_of(table)
        if not vector_NH.shape[1]:
            vector_NH = _scratch(file, len(key_N), vector_PH.shape[1])
        if vector_PH.shape[1] != vector_NH.shape[1]:
            raise DataError(
                f"selection: embeddings in {parts.folder_names} have {vector_NH.shape[1]} and "
                f"{vector_PH.shape[1]} components, and cannot be compared. {REDO}."
            )
        in_pool_P = row_P >= 0
        vector_NH[row_P[in_pool_P]] = vector_PH[in_pool_P]
        has_row_N[row_P[in_pool_P]] = True
        num_rows += int(in_pool_P.sum())
    if not has_row_N.all():
        advice = f"{REDO}{', and extend the run again' if parts.more else ''}."
        refuse_missing(key_N[~has_row_N], len(key_N), parts, sources, advice)
    refuse_repeated(num_rows - len(key_N), parts)
    return vector_NH


def _vectors_of(table: pa.Table) -> np.ndarray:
    """Return the column `embedding` as float16 (P, H)."""
    column = table["embedding"].combine_chunks()
    flat_PH: np.ndarray = column.flatten().to_numpy()
    return flat_PH.reshape(len(column), column.type.list_size)


def _scratch(file: Path, num_rows: int, width: int) -> np.ndarray:
    with temporary_space(), file.open("wb") as stream:
        # All blocks are allocated now: if the disk were full at a write to the mapped file, the
        # process would be killed.
        os.posix_fallocate(stream.fileno(), 0, max(1, 2 * num_rows * width))
    return np.memmap(file, np.float16, "r+", shape=(num_rows, width))
