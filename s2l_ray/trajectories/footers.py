"""Footers of trajectories in parquet files: what is in a file, without reading it.

Several steps ask for them before anything is done. On an object store, thousands of files one after
the other would take a minute, so threads read them, and each is read once.
"""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ray.errors import DataError, first
from s2l_ray.progress import doing
from s2l_ray.storage.failures import answered
from s2l_ray.storage.input_files import InputFile
from s2l_ray.storage.location import Location

COLUMNS = ("example_id", "stratum", "loss_nats")
AT_ONCE = 16
"""Threads, which mostly wait for a store."""
REMEMBERED = 100_000


@dataclass(frozen=True)
class Footer:
    """What the footer of one file says.

    Attributes:
        rows_of_group: rows of each row group.
        checkpoints: losses of a row; 0 without rows.
        has_stratum: whether there is a column `stratum`.
        is_as_parts: whether columns and types are those of the parts of a run, and no stratum is
            null. Tables of such files can be put together.
    """

    rows_of_group: tuple[int, ...]
    checkpoints: int
    has_stratum: bool
    is_as_parts: bool

    @property
    def rows(self) -> int:
        return sum(self.rows_of_group)


def read(files: Sequence[InputFile]) -> list[Footer]:
    """Return the footers of all files, in order.

    Raises:
        DataError: a file is no parquet, or lacks a column.
    """
    doing(f"reading the footers of {len(files):,} files")
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(_footer, files))


def loss_bytes(files: Sequence[InputFile]) -> int:
    """Return how many bytes the losses of these files take in memory.

    Raises:
        DataError: as `read`.
    """
    return bytes_of(read(files))


def bytes_of(footers: Sequence[Footer]) -> int:
    """Return the same for footers that were read."""
    return sum(4 * footer.rows * footer.checkpoints for footer in footers)


@lru_cache(REMEMBERED)
def _footer(file: InputFile) -> Footer:
    """Return the footer of a file, which is read again when its size or date has changed."""
    with readable(file.uri), open_parquet(file.uri) as opened:
        schema, metadata = opened.schema_arrow, opened.metadata
    needed_columns(schema.names, file.uri)
    groups = list(map(metadata.row_group, range(metadata.num_row_groups)))
    columns = [column for group in groups for column in map(group.column, range(group.num_columns))]
    num_losses = sum(
        column.num_values
        for column in columns
        if column.path_in_schema.split(".")[0] == "loss_nats"
    )
    strata = [column.statistics for column in columns if column.path_in_schema == "stratum"]
    no_nulls = all(known and known.has_null_count and not known.null_count for known in strata)
    return Footer(
        tuple(group.num_rows for group in groups),
        round(num_losses / max(metadata.num_rows, 1)),
        "stratum" in schema.names,
        _has_types_of_parts(schema) and no_nulls,
    )


def _has_types_of_parts(schema: pa.Schema) -> bool:
    fields = [schema.field(name) for name in COLUMNS if name in schema.names]
    kinds = [field.type for field in fields]
    if kinds[:2] != [pa.string(), pa.string()] or not pa.types.is_fixed_size_list(kinds[2]):
        return False
    # The type of a list says, too, whether its values may be null.
    has_type = kinds[2] == pa.list_(pa.float32(), kinds[2].list_size)
    return has_type and all(field.nullable for field in fields)


@contextlib.contextmanager
def open_parquet(uri: str) -> Iterator[pq.ParquetFile]:
    """Open a parquet file, which is closed after the block."""
    with Location.of(uri).open() as stream:
        yield pq.ParquetFile(stream)


@contextlib.contextmanager
def readable(uri: str) -> Iterator[None]:
    """Name the file if it cannot be read inside the block.

    Raises:
        DataError: it is no parquet, or is damaged or missing.
        StorageError: its store did not answer.
    """
    try:
        with answered(uri):
            yield
    except (pa.ArrowException, OSError) as error:
        cause = " ".join(str(error).split())
        raise DataError(
            f"trajectories.path: {uri} cannot be read as parquet: {cause}. Restore the file or "
            "leave it out."
        ) from None


def needed_columns(names: Sequence[str], uri: str) -> list[str]:
    """Return the columns of trajectories that are among `names`, those of a file.

    Raises:
        DataError: one is missing.
    """
    missing = [name for name in ("example_id", "loss_nats") if name not in names]
    if missing:
        raise DataError(
            f"trajectories.path: {uri} has no column {missing[0]!r} (it has {first(names, 8)}). "
            "Needed are example_id and loss_nats, and optionally stratum."
        )
    return [name for name in COLUMNS if name in names]
