"""Stage 3 without a model: existing trajectories become parts of this run.

Columns, lengths and finite values are checked here, once. A file of any size is cut into parts of
ROWS_PER_PART rows. The parts are numbered in the order of the files and their rows, so the content
of a part depends on the files alone. A pool of more than BYTES_COPIED whose files are as parts are
is not copied: its parts are runs of row groups of these files.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import PART, PLACES, Parts, part_name, trajectory_table
from s2l_ray.distributed import resources
from s2l_ray.distributed.map_units import map_units
from s2l_ray.errors import DataError, as_message, first, from_message
from s2l_ray.progress import Progress
from s2l_ray.storage import row_groups
from s2l_ray.storage.input_files import InputFile
from s2l_ray.storage.location import Location
from s2l_ray.storage.row_groups import RowGroups
from s2l_ray.trajectories import footers, pool_join
from s2l_ray.trajectories.footers import Footer, needed_columns, open_parquet, readable

ROWS_PER_PART = 65_536
BYTES_COPIED = 2 << 30
"""Losses of at most so many bytes are always copied: the folder of the run is then complete."""
ROWS_PER_GROUP = 1 << 21
"""The largest row group of a file that is read where it lies, as workers read it at once."""
ROWS_PER_UNIT = 1 << 20
"""Rows of one file that a worker checks before it takes others, if its row groups allow it."""


def run(
    files: Sequence[InputFile], out: StageDir, *, progress: Progress, pool: Parts | None = None
) -> dict[str, Any]:
    """Check the trajectories of parquet files, and copy them into parts unless they can stay.

    Args:
        pool: the prepared parts of the pool. Its rows alone are kept, and those of files without a
            stratum get that of the pool. None if the run has no `data`.

    Reads   any parquet files   example_id: string, loss_nats: list or fixed_size_list of float32
                                or float64, optionally stratum: string; other columns are ignored
    Writes  part-*.parquet      example_id, stratum: string, loss_nats: fixed_size_list<float32>[T]
            _places.json        instead of parts, if the trajectories are read where they lie
    Raises  DataError for a missing column, unequal lengths, a null, NaN or infinite loss, or a row
            of the pool without a loss.
    """
    found, uris = footers.read(files), [file.uri for file in files]
    rows_of_file = [footer.rows for footer in found]
    if not sum(rows_of_file):
        raise DataError(f"trajectories.path: no rows in {len(uris)} file(s) ({first(uris)}).")
    in_place = stays(found, has_pool=pool is not None)
    parts_of_file = [num_parts(footer, stays=False) for footer in found]
    starts = np.concatenate([[0], np.cumsum(parts_of_file)])
    units = [
        {"uri": uri, "first_part": int(start) + begin // ROWS_PER_PART, "rows": [begin, end]}
        for uri, footer, start in zip(uris, found, starts, strict=False)
        for begin, end in row_ranges(footer.rows_of_group, stays=in_place)
    ]
    num_bytes = footers.bytes_of(found)
    places = _places(files, found) if in_place else None
    _remove_parts(out.location)
    progress.start(sum(rows_of_file))
    worker, attempts = Importer if places is None else Checker, out.location / "attempts"
    with closing(
        map_units(worker, units, _workers(num_bytes), attempts, folder=out.location)
    ) as results:
        length = checked_length(units, results, progress)
    summary = {"steps": list(range(1, length + 1)), "rows": sum(rows_of_file)}
    if places is not None:
        (out.location / PLACES).write_json(row_groups.as_json(places))
        where = f"{len(uris):,} file(s) (first: {first(uris)})"
        return {**summary, "notes": [f"losses are not copied but read where they lie, in {where}"]}
    if pool is None:
        return summary
    without_stratum = {
        part_name(part)
        for footer, begin, num_parts in zip(found, starts, parts_of_file, strict=False)
        if not footer.has_stratum
        for part in range(begin, begin + num_parts)
    }
    rows, notes = pool_join.join(Parts(out.location), pool, without_stratum)
    return {**summary, "rows": rows, "notes": notes}


def stays(found: Sequence[Footer], *, has_pool: bool) -> bool:
    """Tell whether trajectories in files with these footers are read where they lie."""
    is_large = footers.bytes_of(found) > BYTES_COPIED
    return not has_pool and is_large and all(map(_can_stay, found))


def num_parts(footer: Footer, *, stays: bool) -> int:
    """Return the number of parts that a file becomes, or is read as where it lies."""
    if stays:
        return sum(1 for _ in row_groups.runs(footer.rows_of_group, ROWS_PER_PART))
    return -(-footer.rows // ROWS_PER_PART)


def row_ranges(rows_of_group: Sequence[int], *, stays: bool) -> Iterator[tuple[int, int]]:
    """Cut a file into ranges of rows that workers check on their own.

    A range is a run of row groups of about ROWS_PER_UNIT rows, as a Parquet file's columns are read
    a row group at a time. Where rows are copied, it begins with the first part that begins in this
    run, and holds whole parts: unless the run ends with a part, its worker reads the next row group
    as well.

    Yields:
        the first row of each range, and the row after its last.
    """
    row_before_group = np.concatenate([[0], np.cumsum(rows_of_group, dtype=np.int64)])
    num_rows, multiple = int(row_before_group[-1]), 1 if stays else ROWS_PER_PART
    for start, stop in row_groups.runs(rows_of_group, ROWS_PER_UNIT):
        begin, end = (
            min(-(-int(row_before_group[group]) // multiple) * multiple, num_rows)
            for group in (start, stop)
        )
        if begin < end:
            yield begin, end


def _workers(num_bytes: int) -> resources.Workers:
    advice = "Use machines with more memory for each CPU."
    if resources.fits_here(lambda: num_bytes):
        return resources.threads("data", advice=advice)
    return resources.workers("data", resources.one_per_cpu(), cpus=1, gpus=0, advice=advice)


def _can_stay(footer: Footer) -> bool:
    """Tell whether a file can be read as parts are: in columns and types, and in row groups."""
    return footer.is_as_parts and max(footer.rows_of_group, default=0) <= ROWS_PER_GROUP


def _places(files: Sequence[InputFile], found: Sequence[Footer]) -> list[RowGroups]:
    """Return the parts of trajectories that stay where they lie.

    Raises:
        DataError: a file is not the one whose footer was read.
    """
    places: list[RowGroups] = []
    for file, footer in zip(files, found, strict=True):
        size, modified = row_groups.version(Location.of(file.uri))
        if size != file.size:
            raise DataError(
                f"trajectories.path: {file.uri} has changed since this run was planned: it has "
                f"{max(size, 0):,} bytes, and had {file.size:,}. Run again once it is complete."
            )
        places += [
            RowGroups(file.uri, start, stop, size, modified)
            for start, stop in row_groups.runs(footer.rows_of_group, ROWS_PER_PART)
        ]
    return places


def _remove_parts(folder: Location) -> None:
    """Remove what an interrupted import left; it may have copied where this one does not."""
    for name in folder.names():
        if name == PLACES or name.startswith(f"{PART}-"):
            (folder / name).remove()


def common_length(uri_of_length: Mapping[int, str]) -> int:
    """Return the number of checkpoints that all files have.

    Args:
        uri_of_length: one of the files for each number of checkpoints.

    Raises:
        DataError: files have different numbers of checkpoints.
    """
    if len(uri_of_length) > 1:
        (length, uri), (other, other_uri) = list(uri_of_length.items())[:2]
        raise DataError(
            f"trajectories.path: loss_nats has {length} values per row in {uri} and {other} in "
            f"{other_uri}. All trajectories must have the same checkpoints."
        )
    [length] = uri_of_length
    return length


def checked_length(
    units: Sequence[Mapping[str, Any]], results: Iterable[dict[str, Any]], progress: Progress
) -> int:
    """Return the number of checkpoints that all rows have, once all units are done.

    Units finish in any order and are looked at in theirs. So of several errors the first one is
    raised, in the order of files and rows, whatever the number of workers.

    Raises:
        DataError: a unit found an error, or rows have different numbers of checkpoints.
    """
    waiting, number = dict[tuple[str, int], dict[str, Any]](), 0
    uri_of_length, length_of_file = dict[int, str](), dict[str, int]()
    for result in results:
        waiting[result["uri"], result["first_row"]] = result
        progress.update(result["rows"])
        while number < len(units):
            uri, row = units[number]["uri"], units[number]["rows"][0]
            if (done := waiting.pop((uri, row), None)) is None:
                break
            if done["refused"] is not None:
                raise from_message(done["refused"])
            length = done["checkpoints"]
            if (of_file := length_of_file.setdefault(uri, length)) != length:
                raise _unequal(uri, 0, of_file, length, f"row {row:,} (from 0)")
            uri_of_length.setdefault(length, uri)
            number += 1
    return common_length(uri_of_length)


class Checker:
    """Worker that checks ranges of rows, which stay where they lie; `folder` gets nothing."""

    def __init__(self, folder: Location) -> None:
        self.folder = folder

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Return how many rows were checked, and their losses each, or the error in `refused`."""
        (begin, end), rows, length = unit["rows"], 0, 0
        refused: dict[str, str] | None = None
        try:
            for number, (batch, loss_NT) in enumerate(_checked(unit["uri"], begin, end)):
                length, rows = loss_NT.shape[1], rows + len(loss_NT)
                self._keep(unit["first_part"] + number, batch, loss_NT)
        except DataError as error:
            refused = as_message(error)
        found = {"rows": rows, "checkpoints": length, "refused": refused}
        return {"uri": unit["uri"], "first_row": begin, **found}

    def _keep(self, part: int, batch: pa.Table, loss_NT: np.ndarray) -> None:
        pass


class Importer(Checker):
    """Worker that checks ranges of rows, and writes their parts to `folder`."""

    def _keep(self, part: int, batch: pa.Table, loss_NT: np.ndarray) -> None:
        table = trajectory_table(batch["example_id"], batch["stratum"], loss_NT)
        (self.folder / part_name(part)).write_table(table)


def _checked(uri: str, begin: int, end: int) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Yield the tables of `_batches`, each with its losses, float32 (N, T), all of one length."""
    row, length = begin, None
    for batch in _batches(uri, begin, end):
        loss_NT = _losses(batch, row, uri, begin, length)
        length, row = loss_NT.shape[1], row + len(loss_NT)
        yield batch, loss_NT
    if row != end:
        raise DataError(
            f"trajectories.path: {uri} has changed since this run was planned: it has {row:,} "
            f"rows, and had {end:,} or more. Run again once it is complete."
        )


def _batches(uri: str, begin: int, end: int) -> Iterator[pa.Table]:
    """Yield the rows `begin` to `end` as tables of ROWS_PER_PART rows (the last one shorter).

    They have a stratum column.
    """
    pending, num_rows = list[pa.RecordBatch](), end - begin
    with readable(uri), open_parquet(uri) as file:
        columns = needed_columns(file.schema_arrow.names, uri)
        groups, skipped = _groups_of(file, begin, end)
        for batch in file.iter_batches(ROWS_PER_PART, row_groups=groups, columns=columns):
            kept = batch.slice(skipped)
            skipped -= batch.num_rows - kept.num_rows
            pending.append(kept)
            table = pa.Table.from_batches(pending)
            size = min(ROWS_PER_PART, num_rows)
            if table.num_rows >= size:
                yield _with_stratum(table.slice(0, size), uri)
                pending, num_rows = table.slice(size).to_batches(), num_rows - size
            if not num_rows:
                return
    if pending and (rest := pa.Table.from_batches(pending)).num_rows:
        yield _with_stratum(rest, uri)


def _groups_of(file: pq.ParquetFile, begin: int, end: int) -> tuple[list[int], int]:
    """Return the row groups that hold the rows `begin` to `end`, and how many rows come before."""
    sizes = [file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)]
    rows_until = np.cumsum(sizes)
    start, stop = np.searchsorted(rows_until, [begin, end - 1], side="right")
    groups = list(range(int(start), min(int(stop) + 1, len(sizes))))
    return groups, begin - int(rows_until[start - 1]) if start else begin


def _with_stratum(table: pa.Table, uri: str) -> pa.Table:
    if "stratum" in table.column_names:
        stratum = _text(table, "stratum", uri).fill_null("")
    else:
        stratum = pa.array([""] * table.num_rows, pa.string())
    example_ids = _text(table, "example_id", uri)
    return pa.table(
        {"example_id": example_ids, "stratum": stratum, "loss_nats": table["loss_nats"]}
    )


def _text(table: pa.Table, name: str, uri: str) -> pa.ChunkedArray:
    try:
        text = table[name].cast(pa.string())
        text.validate(full=True)
    except pa.ArrowException:
        kind = table[name].type
        raise DataError(
            f"trajectories.path: {name} in {uri} is {kind}, not text in UTF-8."
        ) from None
    return text


def _losses(
    table: pa.Table, row_before: int, uri: str, first_row: int, length: int | None
) -> np.ndarray:
    """Return float32 (N, T), every value finite, in nats per token.

    Args:
        row_before: the number of the table's first row in the file.
        first_row: the first row that was read of the file.
        length: its number of losses; None if it is in this table.

    Raises:
        DataError: an id or a row is null, lengths differ, or a value is not a finite float.
    """
    if table["example_id"].null_count:
        row = row_before + table["example_id"].to_pylist().index(None)
        raise DataError(f"trajectories.path: row {row:,} (from 0) of {uri} has no example_id.")
    column = table["loss_nats"].combine_chunks()
    ids = table["example_id"]
    if not _is_list(column.type) or not pa.types.is_floating(column.type.value_type):
        raise DataError(
            f"trajectories.path: loss_nats in {uri} is {column.type}, not a list of float."
        )
    if column.null_count:
        bad = [ids[i].as_py() for i in np.flatnonzero(column.is_null())[:4]]
        raise DataError(
            f"trajectories.path: {column.null_count:,} examples in {uri} have no loss_nats "
            f"(first: {first(bad)})."
        )
    lengths_N = pa.compute.list_value_length(column).to_numpy(zero_copy_only=False)
    length = int(lengths_N[0]) if length is None else length
    if len(odd := np.flatnonzero(lengths_N != length)):
        row = int(odd[0])
        where = f"row {row_before + row:,} (from 0, example {ids[row]})"
        raise _unequal(uri, first_row, length, int(lengths_N[row]), where)
    values = column.flatten()
    with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, and is refused
        flat = values.to_numpy(zero_copy_only=False).astype(np.float32)
    loss_NT = flat.reshape(len(column), length)
    _check_finite(loss_NT, ids, uri)
    return loss_NT


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _check_finite(loss_NT: np.ndarray, ids: pa.ChunkedArray, uri: str) -> None:
    bad = np.flatnonzero(~np.isfinite(loss_NT).all(axis=1))
    if len(bad):
        names = [ids[int(row)].as_py() for row in bad[:4]]
        raise DataError(
            f"trajectories.path: {len(bad):,} examples in {uri} have a NaN or infinite loss "
            f"(first: {first(names)}). Remove or recompute them."
        )
    if not loss_NT.shape[1]:
        raise DataError(f"trajectories.path: loss_nats in {uri} is empty: no checkpoint at all.")


def _unequal(uri: str, first_row: int, length: int, other: int, where: str) -> DataError:
    begin = f"row {first_row:,} (from 0)" if first_row else "the first row"
    return DataError(
        f"trajectories.path: loss_nats has {length} values in {begin} of {uri} and {other} "
        f"in {where}. All trajectories must have the same checkpoints."
    )
