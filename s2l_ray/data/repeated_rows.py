"""The list of the rows that nearly repeat an earlier one.

Shape letters: N signed rows of all tables, D rows that repeat another one, F the rows that they
repeat, T tables.
"""

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ray.data import near_duplicates
from s2l_ray.data.compared_tables import NAMES, ComparedTable
from s2l_ray.data.near_duplicates import NUM_BANDS, NUM_SLOTS
from s2l_ray.data.row_comparer import signatures_name
from s2l_ray.storage.failures import temporary_space
from s2l_ray.storage.location import Location

REPEATED = pa.schema(
    [
        *NAMES,
        *(pa.field(f"first_{field.name}", field.type) for field in NAMES),
        ("similarity", pa.float64()),
    ]
)
"""Columns of the list: the row, the first row that it repeats, and how similar they are."""


@dataclass(frozen=True)
class RepeatedRows:
    """Rows of compared tables that repeat an earlier row, in order.

    Attributes:
        table_D, position_D: the table of each and its position there, int64.
        first_D: the number among F of the row that it repeats, int64.
        similarity_D: float64.
        first_names: file, row and example_id of the F rows.
    """

    table_D: np.ndarray
    position_D: np.ndarray
    first_D: np.ndarray
    similarity_D: np.ndarray
    first_names: pa.Table

    def of_table(self, number: int) -> slice:
        """Return the rows of a table among the D rows."""
        return slice(*np.searchsorted(self.table_D, [number, number + 1]))


def find(
    folder: Location, tables: Sequence[ComparedTable], results: Sequence[Mapping[str, Any]]
) -> RepeatedRows:
    """Return the rows that repeat an earlier one of these tables.

    This process holds some 45 bytes for each row, and a temporary file 256.

    Raises:
        StorageError: the disk for temporary files is too small.
    """
    start_T = np.concatenate([[0], np.cumsum([result["signed"] for result in results])])
    position_N = np.empty(start_T[-1], np.int32)
    with _scratch(len(position_N)) as (band_BN, sketch_NS):
        for number, (start, end) in enumerate(itertools.pairwise(start_T)):
            signature_R = (folder / signatures_name(number)).read_npy()
            position_N[start:end] = signature_R["position"]
            band_BN[:, start:end] = signature_R["bands"].T
            sketch_NS[start:end] = signature_R["sketch"]
        repeats = near_duplicates.repeats(band_BN, sketch_NS)
    table_D = np.searchsorted(start_T, repeats.row_D, side="right") - 1
    row_F, first_D = np.unique(repeats.first_D, return_inverse=True)
    table_F = np.searchsorted(start_T, row_F, side="right") - 1
    names = [
        tables[number].names(position_N[row_F[table_F == number]]) for number in np.unique(table_F)
    ]
    first_names = pa.concat_tables(names) if names else NAMES.empty_table()
    position_D = position_N[repeats.row_D].astype(np.int64)
    return RepeatedRows(table_D, position_D, first_D, repeats.similarity_D, first_names)


def write_list(
    file: Location, tables: Sequence[ComparedTable], found: RepeatedRows
) -> dict[str, int]:
    """Write the list of the rows that are new to `file`; return `rows` and the rows they repeat."""
    num_rows, firsts_seen = 0, np.zeros(len(found.first_names), bool)
    with file.open_atomic() as stream, pq.ParquetWriter(stream, REPEATED) as writer:
        for number in np.unique(found.table_D):
            if tables[number].is_new:
                rows = found.of_table(number)
                own = tables[number].names(found.position_D[rows])
                firsts = found.first_names.take(found.first_D[rows])
                columns = [*own.columns, *firsts.columns, pa.array(found.similarity_D[rows])]
                writer.write_table(pa.table(columns, schema=REPEATED))
                num_rows += len(own)
                firsts_seen[found.first_D[rows]] = True
    return {"rows": num_rows, "repeated": int(firsts_seen.sum())}


def notes(counts: Mapping[str, int]) -> list[str]:
    """Return the sentence about it for the line of `prepare`; none if nothing was found."""
    if not counts["rows"]:
        return []
    return [
        f"{counts['rows']:,} row(s) nearly repeat {counts['repeated']:,} earlier one(s): "
        "prepared/near_duplicates.parquet lists them; data.near_duplicates: drop would leave them "
        "out"
    ]


@contextlib.contextmanager
def _scratch(num_rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield arrays for the bands, int64 (B, N), and the sketches, uint8 (N, S), in one file."""
    with tempfile.TemporaryDirectory(prefix="s2l-") as folder:
        file, num_band_bytes = Path(folder) / "signatures", 8 * NUM_BANDS * num_rows
        with temporary_space(), file.open("wb") as stream:
            # All blocks are allocated now: if the disk were full at a write to the mapped file, the
            # process would be killed.
            os.posix_fallocate(stream.fileno(), 0, max(1, num_band_bytes + NUM_SLOTS * num_rows))
        mapped = np.memmap(file, np.uint8, "r+")
        bands = mapped[:num_band_bytes].view(np.int64).reshape(NUM_BANDS, num_rows)
        sketches = mapped[num_band_bytes : num_band_bytes + NUM_SLOTS * num_rows]
        yield bands, sketches.reshape(num_rows, NUM_SLOTS)
