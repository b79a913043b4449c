"""Vectors of each example that rankings compare, and those of queries.

They are too large to hold: they go part by part into a scratch file, in the order of the pool, that
is mapped into memory and read block by block. It takes as much of the disk as the parts do.

Shape letters: N examples of the pool, P of one part, H components.
"""

import contextlib
import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from s2l_ray.artifacts.manifest import EMBEDDINGS, QUERIES, Parts
from s2l_ray.errors import DataError
from s2l_ray.selection.columns import (
    Sources,
    beside_losses,
    located,
    refuse_missing,
    refuse_repeated,
)
from s2l_ray.storage.location import temporary_space

REDO = "Set `trajectories.embeddings: true` and redo them with `--from trajectories`"


@contextlib.contextmanager
def read(
    names: Collection[str], key_N: np.ndarray, sources: Sources
) -> Iterator[dict[str, np.ndarray]]:
    """The vectors of these names, float16 (rows, H), while the block lasts.

    Args:
        names: `embeddings`, of every example of the pool in its order, and perhaps `queries`, in
            the order of their files.
        key_N: uint64 (N,), unique hashes of the ids, as `clusters` has them.

    Raises:
        DataError: there are none, or an example has none, or more than one.
        StorageError: the disk for temporary files is too small.
    """
    if not names:
        yield {}
        return
    parts = beside_losses(EMBEDDINGS, sources, "embeddings of all examples are compared", REDO)
    found = {QUERIES: _queries(parts)} if QUERIES in names else {}
    with tempfile.TemporaryDirectory(prefix="s2l-") as scratch:
        yield found | {EMBEDDINGS: _gathered(parts, key_N, sources, Path(scratch) / "vectors")}


def _queries(parts: Parts) -> np.ndarray:
    """float16 (Q, H); those of the run, whose queries are an extension's, too."""
    queries = Parts(parts.folder / QUERIES, EMBEDDINGS)
    found = [_vectors_of(table) for table in queries.tables(["embedding"])]
    if not found:
        raise DataError(
            f"selection: examples are compared with queries, and there are none in "
            f"{queries.folder}. Name files of rows like those that are wanted in "
            "`trajectories.queries`, and redo the stage with `--from trajectories`."
        )
    return np.concatenate(found)


def _gathered(parts: Parts, key_N: np.ndarray, sources: Sources, place: Path) -> np.ndarray:
    """float16 (N, H), a file mapped into memory: the embeddings in the order of the keys."""
    met_N = np.zeros(len(key_N), bool)
    num_met = 0
    vector_NH = np.empty((0, 0), np.float16)
    for table, row_P in located(parts, ["embedding"], key_N):
        vector_PH = _vectors_of(table)
        if not vector_NH.shape[1]:
            vector_NH = _scratch(place, len(key_N), vector_PH.shape[1])
        if vector_PH.shape[1] != vector_NH.shape[1]:
            raise DataError(
                f"selection: embeddings in {parts.places} have {vector_NH.shape[1]} and "
                f"{vector_PH.shape[1]} components, and cannot be compared. {REDO}."
            )
        is_ours_P = row_P >= 0
        vector_NH[row_P[is_ours_P]] = vector_PH[is_ours_P]
        met_N[row_P[is_ours_P]] = True
        num_met += int(is_ours_P.sum())
    if not met_N.all():
        advice = f"{REDO}{', and extend the run again' if parts.more else ''}."
        refuse_missing(key_N[~met_N], len(key_N), parts, sources, advice)
    refuse_repeated(num_met - len(key_N), parts)
    return vector_NH


def _vectors_of(table: pa.Table) -> np.ndarray:
    """The column `embedding` as float16 (P, H)."""
    column = table["embedding"].combine_chunks()
    flat_PH: np.ndarray = column.flatten().to_numpy()
    return flat_PH.reshape(len(column), column.type.list_size)


def _scratch(place: Path, num_rows: int, width: int) -> np.ndarray:
    with temporary_space(), place.open("wb") as stream:
        # Of a file with holes, the first write to a full disk would end the process.
        os.posix_fallocate(stream.fileno(), 0, max(1, 2 * num_rows * width))
    return np.memmap(place, np.float16, "r+", shape=(num_rows, width))
