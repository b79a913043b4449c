"""The trajectories that a worker holds, stratum after stratum, and how they are read.

Shape letters: N trajectories of a worker or of one stratum, P of one part, T checkpoints, S strata.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from s2l_ray import hashing
from s2l_ray.artifacts.keys import column_keys
from s2l_ray.clusters import kmeans, scaling
from s2l_ray.clusters.found_strata import FoundStrata
from s2l_ray.clusters.scaling import Scale
from s2l_ray.config.clusters import ClustersConfig
from s2l_ray.errors import DataError, first
from s2l_ray.storage.location import Location

SAMPLE = 1
"""Salt: each use of the seed gets other random numbers."""
ROWS_PER_BLOCK = 1 << 16


@dataclass(frozen=True)
class PartFiles:
    """The parts of a worker.

    Attributes:
        files: by part number.
        per_stratum: whether each stratum is clustered by itself.
        found: the strata that take the place of those of the rows, if any.
    """

    files: Mapping[int, Location]
    per_stratum: bool
    found: FoundStrata | None

    def ids(self) -> Iterator[tuple[int, pa.Table, dict[str, np.ndarray]]]:
        """Yield each part: its number, example_id and stratum, and its rows by stratum."""
        for part, file in self.files.items():
            table = file.read_table(["example_id", "stratum"])
            if self.found is not None:
                table = self.found.replace(table, part)
            yield part, table, _rows_by_stratum(table, self.per_stratum)


@dataclass(frozen=True)
class StratumRows:
    """The rows of one stratum that a worker holds, in the order of their hashes.

    So the first rows are a mini-batch.

    Attributes:
        first: how many rows of other strata the worker has before these.
        key_N: uint64 (N,), hashed keys, ascending.
        tracked: the trajectories, scaled.
    """

    first: int
    key_N: np.ndarray
    tracked: kmeans.TrackedRows


@dataclass(frozen=True)
class HeldRows:
    """All rows of a worker.

    Attributes:
        strata: by name, ascending.
        place_N: int32 (N,), the place among the rows of all strata of each row of the parts, put
            one after the other.
    """

    strata: dict[str, StratumRows]
    place_N: np.ndarray


def read(
    parts: PartFiles, config: ClustersConfig, scales: Mapping[str, Scale], seed: int
) -> HeldRows:
    """Read ids, which tell the place of every row, and then the losses into these places.

    So losses are in memory once.

    Raises:
        DataError: as `losses`.
    """
    names, key_N, number_N = _keys_and_strata(parts, seed)
    order_N = np.argsort(key_N, kind="stable")
    if len(names) > 1:
        order_N = order_N[np.argsort(number_N[order_N], kind="stable")]
    place_N = np.empty(len(order_N), np.int32)
    place_N[order_N] = np.arange(len(order_N), dtype=np.int32)
    key_N, ends = key_N[order_N], np.cumsum(np.bincount(number_N, minlength=len(names)))
    del order_N, number_N
    loss_NT = _losses_in(place_N, parts.files.values())
    starts = [0, *ends.tolist()]
    strata = {}
    for name, start, end in zip(names, starts, ends, strict=False):
        scaled_NT = _scale(loss_NT[start:end], config.scaling, scales.get(name))
        strata[name] = StratumRows(start, key_N[start:end], kmeans.TrackedRows(scaled_NT))
    return HeldRows(strata, place_N)


def losses(file: Location) -> np.ndarray:
    """Return the losses of a part, float32 (P, T), nats per token.

    Raises:
        DataError: a loss is not finite, or above `kmeans.MAX_LOSS_NATS`.
    """
    column = file.read_table(["loss_nats"])["loss_nats"].combine_chunks()
    loss_PT: np.ndarray = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    # NaN fails the comparison.
    bad = np.flatnonzero(~(np.abs(loss_PT) <= kmeans.MAX_LOSS_NATS).all(axis=1))
    if len(bad):
        ids = file.read_table(["example_id"])["example_id"]
        raise DataError(
            f"clusters: {len(bad):,} trajectories in {file.name} hold a loss that is NaN, infinite "
            f"or above {kmeans.MAX_LOSS_NATS:,.0f} nats (first: "
            f"{first([ids[int(row)].as_py() for row in bad[:4]])}). Redo them with "
            "`--from trajectories`."
        )
    return loss_PT


def _keys_and_strata(parts: PartFiles, seed: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return the names of the strata, ascending, and the hash and stratum number of every row."""
    keys, codes, code_by_name = [np.empty(0, np.uint64)], [np.empty(0, np.int32)], dict[str, int]()
    for _, table, rows in parts.ids():
        code_P = np.empty(table.num_rows, np.int32)
        for name, row_P in rows.items():
            code_P[row_P] = code_by_name.setdefault(name, len(code_by_name))
        keys.append(hashing.mixed(column_keys(table["example_id"]), seed, SAMPLE))
        codes.append(code_P)
    names = sorted(code_by_name)
    # The narrowest type: numpy sorts up to 16 bits by radix.
    number_S = np.empty(len(names), np.min_scalar_type(len(names)))
    number_S[[code_by_name[name] for name in names]] = np.arange(len(names))
    return names, np.concatenate(keys), number_S[np.concatenate(codes)]


def _losses_in(place_N: np.ndarray, files: Iterable[Location]) -> np.ndarray:
    """Return the losses of all parts, float32 (N, T), each row in its place."""
    loss_NT, start = np.empty((0, 0), np.float32), 0
    for file in files:
        loss_PT = losses(file)
        if not start:
            loss_NT = np.empty((len(place_N), loss_PT.shape[1]), np.float32)
        loss_NT[place_N[start : start + len(loss_PT)]] = loss_PT
        start += len(loss_PT)
    return loss_NT


def _scale(loss_NT: np.ndarray, name: str, scale: Scale | None) -> np.ndarray:
    """Scale trajectories in their place, which takes no memory for a second copy."""
    for start in range(0, len(loss_NT) if name != "raw" else 0, ROWS_PER_BLOCK):
        block = loss_NT[start : start + ROWS_PER_BLOCK]
        block[:] = scaling.scaled(block, name, scale)
    return loss_NT


def _rows_by_stratum(table: pa.Table, per_stratum: bool) -> dict[str, np.ndarray]:
    if not table.num_rows:
        return {}
    if not per_stratum:
        return {"": np.arange(table.num_rows)}
    coded = table["stratum"].combine_chunks().dictionary_encode()
    code_N = coded.indices.to_numpy()
    order_N = np.argsort(code_N, kind="stable")
    ends = np.cumsum(np.bincount(code_N, minlength=len(coded.dictionary)))
    rows = np.split(order_N, ends[:-1])
    return dict(zip(coded.dictionary.to_pylist(), rows, strict=True))
