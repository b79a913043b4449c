"""Brought trajectories against the rows of the pool: none is missing, and strata by example.

Holds 13 bytes for each row of the pool. Shape letters: K rows of the pool, P rows of one part.
"""

from array import array
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from s2l_ray.artifacts.keys import column_keys
from s2l_ray.artifacts.tables import Parts
from s2l_ray.errors import DataError, first


@dataclass(frozen=True)
class _Pool:
    """The rows of a pool, in the order of their keys.

    Attributes:
        key_K: uint64 (K,), hashes of ids, sorted.
        stratum_K: int32 (K,), indices into `strata`.
        strata: names of strata.
    """

    key_K: np.ndarray
    stratum_K: np.ndarray
    strata: list[str]

    def places(self, key_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the place of every key, int64 (P,), and whether it is there, bool (P,)."""
        place_P = np.searchsorted(self.key_K, key_P).clip(max=max(len(self.key_K) - 1, 0))
        return place_P, self.key_K[place_P] == key_P


def join(
    trajectories: Parts, prepared: Parts, without_stratum: Collection[str]
) -> tuple[int, list[str]]:
    """Keep the trajectories of the rows of a pool, and give them its strata where they have none.

    Parts are written again one by one, each to the same content however often it is done.

    Args:
        trajectories: the parts that were brought.
        prepared: the parts of the pool, which has at least one row.
        without_stratum: names of the parts from files without a column `stratum`.

    Returns:
        The number of trajectories that are kept, and a note if others are left out.

    Raises:
        DataError: a row of the pool has no trajectory, or several.
    """
    pool = _load(prepared)
    seen_K = np.zeros(len(pool.key_K), bool)
    num_kept, others, num_others = 0, list[str](), 0
    for file in trajectories.files():
        table = file.read_table()
        ids = table["example_id"].to_pylist()
        place_P, known_P = pool.places(column_keys(table["example_id"]))
        seen_K[place_P[known_P]] = True
        joined = table.filter(pa.array(known_P))
        if file.name in without_stratum:
            names = pa.array(pool.strata, pa.string())
            strata = names.take(pa.array(pool.stratum_K[place_P[known_P]]))
            joined = joined.set_column(1, "stratum", strata)
        if not joined.equals(table):
            file.write_table(joined)
        num_kept += joined.num_rows
        num_others += int((~known_P).sum())
        others += [ids[row] for row in np.flatnonzero(~known_P)[: 4 - len(others)]]
    if not seen_K.all():
        raise missing_losses(prepared, trajectories)
    if num_kept > len(seen_K):
        raise _repeated_losses(pool, trajectories)
    if not num_others:
        return num_kept, []
    return num_kept, [
        f"{num_others:,} trajectories are left out, as the pool has no such row "
        f"(first: {first(others)})"
    ]


def missing_losses(prepared: Parts, trajectories: Parts) -> DataError:
    """Return the error that names rows of the pool without a trajectory.

    Args:
        prepared: the parts of the pool.
        trajectories: parts with the ids of those that have one.
    """
    pool = _load(prepared)
    seen_K = np.zeros(len(pool.key_K), bool)
    for table in trajectories.tables(["example_id"]):
        place_P, known_P = pool.places(column_keys(table["example_id"]))
        seen_K[place_P[known_P]] = True
    names: list[str] = []
    for table in prepared.tables(["example_id"]):
        ids = table["example_id"].to_pylist()
        place_P, _ = pool.places(column_keys(table["example_id"]))
        names += [ids[row] for row in np.flatnonzero(~seen_K[place_P])[: 4 - len(names)]]
    return DataError(
        f"trajectories.path: {int((~seen_K).sum()):,} of {len(seen_K):,} rows of the pool have no "
        f"loss there (first: {first(names)}). Bring the losses of all rows, or take the rows "
        "without one out of data.train; the ids must be those of data.fields.id."
    )


def _repeated_losses(pool: _Pool, trajectories: Parts) -> DataError:
    """Return the error that names rows of the pool with several trajectories."""
    seen_K = np.zeros(len(pool.key_K), bool)
    num_repeated, names = 0, list[str]()
    for table in trajectories.tables(["example_id"]):
        ids = table["example_id"].to_pylist()
        place_P, known_P = pool.places(column_keys(table["example_id"]))
        row_P = np.flatnonzero(known_P)
        _, first_F = np.unique(place_P[row_P], return_index=True)
        again_P = seen_K[place_P[row_P]]
        again_P[np.setdiff1d(np.arange(len(row_P)), first_F)] = True
        seen_K[place_P[row_P]] = True
        num_repeated += int(again_P.sum())
        names += [ids[row] for row in row_P[again_P][: 4 - len(names)]]
    return DataError(
        f"trajectories.path: {num_repeated:,} trajectories repeat the example_id of another one "
        f"(first: {first(names)}). Bring one for each row; if they come from several trainings, "
        "name the files of one."
    )


def _load(prepared: Parts) -> _Pool:
    keys, codes = array("Q"), array("i")
    code_by_name: dict[str, int] = {}
    for table in prepared.tables(["example_id", "stratum"]):
        keys.frombytes(column_keys(table["example_id"]).tobytes())
        names: list[Any] = table["stratum"].to_pylist()
        codes.extend(code_by_name.setdefault(name, len(code_by_name)) for name in names)
    key_K, stratum_K = np.frombuffer(keys, np.uint64), np.frombuffer(codes, np.int32)
    order_K = np.argsort(key_K, kind="stable")
    return _Pool(key_K[order_K], stratum_K[order_K], list(code_by_name))
