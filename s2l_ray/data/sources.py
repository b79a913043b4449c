"""Input files as numbered rows: jsonl, json, parquet, arrow, csv, tsv; local, s3, gs or the hub.

These readers exist because common ones lose row numbers and stop at a bad line. Everything is
streamed: memory holds one row (1,024 rows of parquet), never a file.
"""

import codecs
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ray.artifacts.column_types import python_rows
from s2l_ray.data.json_shapes import check_lines, is_array_of_objects
from s2l_ray.data.parsers import (
    EXCERPT_CHARACTERS,
    SourceRow,
    array_rows,
    check_distinct,
    csv_rows,
    line_rows,
    shortened,
    starts_array,
)
from s2l_ray.errors import DataError
from s2l_ray.storage.input_files import (
    CHUNK_BYTES,
    InputFile,
    format_of,
    hub_name,
    naming,
    open_input,
    reaching_hub,
)
from s2l_ray.storage.location import Location

ARROW_FILE, END_OF_STREAM = b"ARROW1", b"\xff\xff\xff\xff\0\0\0\0"
"""How an Arrow file begins, and how an Arrow stream ends."""
BATCH_ROWS = 1024
"""Rows of a table that are in memory at once."""


def read_rows(file: InputFile, request_bytes: int = CHUNK_BYTES) -> Iterator[SourceRow]:
    """Yield every row of `file` in order, and a bad row with the reason.

    Args:
        file: the file, or the split of a data set on the hub.
        request_bytes: as in `open_input`.

    Raises:
        DataError: the file is missing, truncated or damaged, so that its later rows are unknown.
    """
    if file.uri.startswith("hf://"):
        yield from _hub_rows(file)
        return
    kind, compression = format_of(file.uri)
    with naming(file):
        if kind == "parquet":
            yield from parquet_rows(file)
            return
        if kind == "arrow":
            yield from _arrow_rows(file)
            return
        with open_input(file.uri, compression, request_bytes) as stream:
            skip_mark(file.uri, stream)
            if kind in ("csv", "tsv"):
                yield from csv_rows(file.uri, stream, "," if kind == "csv" else "\t")
            elif holds_lines(file.uri, kind, stream):
                yield from line_rows(file.uri, stream)
            else:
                yield from array_rows(file.uri, stream)


def skip_mark(origin: str, stream: io.BufferedReader) -> None:
    """Skip the mark of UTF-8 at the beginning of a file; raise DataError if it is UTF-16."""
    if stream.peek(3)[:3] == codecs.BOM_UTF8:
        stream.read(3)
    if stream.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise DataError(f"data: {origin} is UTF-16. Convert it: iconv -f UTF-16 -t UTF-8 FILE")


def holds_lines(origin: str, kind: str, stream: io.BufferedReader) -> bool:
    """Tell whether JSON is a row on each line; else it is an array, and blanks before it are read.

    Raises:
        DataError: it is neither.
    """
    head = stream.peek(1)[:CHUNK_BYTES]
    if (kind == "json" or is_array_of_objects(head)) and starts_array(stream):
        return False
    check_lines(origin, head, may_be_one_object=kind == "json")
    return True


def estimated_rows(file: InputFile, sample: Sequence[Mapping[str, Any]]) -> int:
    """Estimate the number of rows of `file` from its first rows, the `sample`.

    Files of tables and the hub state their numbers, which are returned. If the hub states none, the
    result is the size of the sample.
    """
    if file.uri.startswith("hf://"):
        return max(_hub_num_rows(file), len(sample))
    kind, compression = format_of(file.uri)
    if kind == "parquet":
        with (
            naming(file),
            Location.of(file.uri).open() as stream,
            pq.ParquetFile(stream) as parquet,
        ):
            return int(parquet.metadata.num_rows)
    if kind == "arrow":
        with naming(file):
            return sum(batch.num_rows for batch in _arrow_batches(file))
    if kind in ("csv", "tsv"):
        lines = [",".join(map(str, fields.values())) for fields in sample]
    else:
        lines = [json.dumps(fields, ensure_ascii=False, default=str) for fields in sample]
    text = "".join(f"{line}\n" for line in lines).encode(errors="replace")
    # Zlib stands for every compression.
    stored_bytes = len(zlib.compress(text)) if compression else len(text)
    return max(round(file.size * len(sample) / max(stored_bytes, 1)), len(sample))


def parquet_rows(file: InputFile, number: int = 0, num_slices: int = 1) -> Iterator[SourceRow]:
    """Yield the rows of the `number`-th of `num_slices` ranges of row groups, numbered from 0."""
    with Location.of(file.uri).open() as stream, pq.ParquetFile(stream) as parquet:
        check_distinct(file.uri, parquet.schema_arrow.names)
        first, end = (parquet.num_row_groups * n // num_slices for n in (number, number + 1))
        groups = list(range(first, end))
        yield from _typed_rows(parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=groups))


def _typed_rows(batches: Iterable[pa.RecordBatch]) -> Iterator[SourceRow]:
    """Yield the rows of tables; they keep the types of their columns."""
    row = 0
    for batch in batches:
        for position, fields in enumerate(python_rows(batch)):
            reason = None if fields is not None else "invalid UTF-8"
            typed = batch.slice(position, 1) if fields is not None else None
            yield SourceRow(row, fields, reason, _excerpt(fields or {}), typed)
            row += 1


def _excerpt(fields: Mapping[str, Any]) -> str:
    return shortened(f"{name}: {str(value)[:EXCERPT_CHARACTERS]}" for name, value in fields.items())


def _arrow_rows(file: InputFile) -> Iterator[SourceRow]:
    yield from _typed_rows(
        batch.slice(start, BATCH_ROWS)
        for batch in _arrow_batches(file)
        for start in range(0, batch.num_rows, BATCH_ROWS)
    )


def _arrow_batches(file: InputFile) -> Iterator[pa.RecordBatch]:
    """Yield the batches of an Arrow file or stream, as `datasets` saves them."""
    with Location.of(file.uri).open() as stream:
        is_file = stream.read(len(ARROW_FILE)) == ARROW_FILE
        stream.seek(max(stream.size() - len(END_OF_STREAM), 0))
        if not is_file and stream.read() != END_OF_STREAM:
            raise pa.ArrowInvalid("the mark of its end is missing")
        stream.seek(0)
        reader = pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)
        check_distinct(file.uri, reader.schema.names)
        if is_file:
            batches = map(reader.get_batch, range(reader.num_record_batches))
        else:
            batches = iter(reader)
        yield from map(_checked, batches)


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch whose parts lie inside it.

    pyarrow believes the file, and would read whatever memory a damaged or hostile one names.
    """
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            if "UTF8" not in str(error):  # of bad text, the row alone is rejected
                raise
    return batch


def _hub_rows(file: InputFile) -> Iterator[SourceRow]:
    name, config, split = hub_name(file.uri)
    with reaching_hub(file):
        import datasets

        rows = datasets.load_dataset(name, config, split=split, streaming=True)
        tables = rows.with_format("arrow").iter(batch_size=BATCH_ROWS)
        yield from _typed_rows(batch for table in tables for batch in table.to_batches())


def _hub_num_rows(file: InputFile) -> int:
    """Return the number of rows of a split; 0 if the data set does not state it."""
    name, config, split = hub_name(file.uri)
    with reaching_hub(file):
        import datasets

        known = datasets.load_dataset_builder(name, config).info.splits or {}
    return known[split].num_examples if split in known else 0
