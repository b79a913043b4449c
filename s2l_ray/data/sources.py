"""Input files as numbered rows: jsonl, json, parquet, csv and tsv; local, s3://, gs:// or hf://.

Our own readers, because stock ones lose row numbers and die on a bad line. Everything is streamed:
memory holds one row (of parquet 1,024), never a file.
"""

import codecs
import hashlib
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from s2l_ray.data.records import (
    CHUNK_BYTES,
    EXCERPT_CHARACTERS,
    SourceRow,
    array_rows,
    check_distinct,
    csv_rows,
    line_rows,
    shortened,
    starts_array,
)
from s2l_ray.errors import DataError, first

__all__ = ["InputFile", "SourceRow", "content_sha", "estimated_rows", "expand", "read_rows"]

FORMATS = ("jsonl", "ndjson", "json", "csv", "tsv", "parquet")
COMPRESSIONS = {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}
ALLOWED = (
    f"Allowed: .{', .'.join(FORMATS)}; all but parquet also with .{', .'.join(COMPRESSIONS)} added."
)
_HUB = re.compile(r"hf://(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<split>.+))?")


@dataclass(frozen=True)
class InputFile:
    """One file, or one split of a hub data set (whose size is 0 and modification time empty).

    Attributes:
        uri: an absolute local path, or the URI.
        size: bytes as stored.
        modified: nanoseconds since 1970 as text.
    """

    uri: str
    size: int
    modified: str


def expand(patterns: Sequence[str], key: str = "data") -> list[InputFile]:
    """The files that `patterns` name: in pattern order, by path inside a pattern.

    A pattern is a file, a glob (`**` crosses directories), a directory (all files below it whose
    suffix we read; hidden ones are left out), any of them under s3:// or gs://, or
    hf://org/name[:split]. `key` is the configuration's, for errors.

    Raises:
        DataError: a pattern matches nothing, a suffix is unknown, or a file is named twice.
    """
    files = list(chain.from_iterable(_expand_one(pattern, key) for pattern in patterns))
    repeated = [uri for uri, count in Counter(file.uri for file in files).items() if count > 1]
    if repeated:
        raise DataError(
            f"{key}: {len(repeated)} of {len(files)} files are named more than once "
            f"(first: {first(repeated)}). Name each file once; globs must not overlap."
        )
    return files


def read_rows(file: InputFile) -> Iterator[SourceRow]:
    """Every row of `file` in order, the bad ones with a reason.

    Raises:
        DataError: the file is gone, truncated or damaged, so that later rows cannot be known.
    """
    if file.uri.startswith("hf://"):
        yield from _hub_rows(file)
        return
    kind, compression = _kind(file.uri)
    with _naming(file):
        if kind == "parquet":
            yield from _parquet_rows(file)
            return
        with _open(file.uri, compression) as stream:
            if stream.peek(3)[:3] == codecs.BOM_UTF8:
                stream.read(3)
            if kind in ("csv", "tsv"):
                yield from csv_rows(file.uri, stream, "," if kind == "csv" else "\t")
            elif kind == "json" and starts_array(stream):
                yield from array_rows(file.uri, stream)
            else:
                yield from line_rows(stream)


def content_sha(file: InputFile) -> str:
    """The sha256 of the stored bytes in hex; for a hub data set its revision and split."""
    if file.uri.startswith("hf://"):
        return _hub_revision(file)
    digest = hashlib.sha256()
    with _naming(file), _open(file.uri, None) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def estimated_rows(file: InputFile, sample: Sequence[Mapping[str, Any]]) -> int:
    """How many rows `file` holds, about, if its other rows are like the first ones in `sample`.

    What a parquet file or the hub says is taken for granted; of a hub data set that it says nothing
    about, only the sample is known.
    """
    if file.uri.startswith("hf://"):
        return max(_hub_num_rows(file), len(sample))
    kind, compression = _kind(file.uri)
    if kind == "parquet":
        filesystem, path, _ = _locate(file.uri)
        with _naming(file), pq.ParquetFile(filesystem.open_input_file(path)) as parquet:
            return int(parquet.metadata.num_rows)
    if kind in ("csv", "tsv"):
        lines = [",".join(map(str, fields.values())) for fields in sample]
    else:
        lines = [json.dumps(fields, ensure_ascii=False, default=str) for fields in sample]
    text = "".join(f"{line}\n" for line in lines).encode(errors="replace")
    # Zlib stands for all of them.
    stored_bytes = len(zlib.compress(text)) if compression else len(text)
    return max(round(file.size * len(sample) / max(stored_bytes, 1)), len(sample))


def _expand_one(pattern: str, key: str) -> list[InputFile]:
    if pattern.startswith("hf://"):
        _hub_name(pattern)
        return [InputFile(pattern, 0, "")]
    try:
        filesystem, path, prefix = _locate(pattern)
        found = _matches(filesystem, path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{key}: {pattern} cannot be read: {_one_line(error)}") from None
    if not found:
        place = "" if prefix + path == pattern else f" ({prefix}{path})"
        raise DataError(f"{key}: {pattern} matches no file{place}. {ALLOWED}")
    files = [InputFile(prefix + info.path, info.size, str(info.mtime_ns or "")) for info in found]
    unknown = [file.uri for file in files if not _is_known(file.uri)]
    if unknown:
        raise DataError(
            f"{key}: {pattern}: {len(unknown)} of {len(files)} files have a suffix that cannot be "
            f"read (first: {first(unknown)}). {ALLOWED}"
        )
    return sorted(files, key=lambda file: file.uri)


def _locate(uri: str) -> tuple[fs.FileSystem, str, str]:
    """A file system, a path on it, and what put before the path gives the URI again."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return fs.LocalFileSystem(), os.path.abspath(uri), ""
    if scheme == "file":
        return fs.LocalFileSystem(), os.path.abspath(rest), "file://"
    if scheme not in ("s3", "gs"):
        raise DataError(
            f"data: {uri}: {scheme}:// cannot be read. Use a local path, s3://, gs:// or hf://."
        )
    bucket = rest.partition("/")[0]
    # Only the bucket goes through URI parsing: a key may hold spaces, '%' and '#'.
    return fs.FileSystem.from_uri(f"{scheme}://{bucket}")[0], rest.rstrip("/"), f"{scheme}://"


def _matches(filesystem: fs.FileSystem, path: str) -> list[fs.FileInfo]:
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.File:
        return [info]
    if info.type == fs.FileType.Directory:
        below = _glob(filesystem, path, ["**", "*"])
        return [info for info in below if _is_known(info.path)]
    parts = path.split("/")
    wild = [place for place, part in enumerate(parts) if re.search(r"[*?\[]", part)]
    if not wild:
        return []
    found = _glob(filesystem, "/".join(parts[: wild[0]]) or "/", parts[wild[0] :])
    return list({info.path: info for info in found}.values())


def _glob(filesystem: fs.FileSystem, directory: str, parts: list[str]) -> Iterator[fs.FileInfo]:
    """Files below `directory` whose path matches `parts`, one directory level after the other."""
    name, rest = parts[0], parts[1:] or ["*"]
    if name == "**":
        yield from _glob(filesystem, directory, rest)
    for info in filesystem.get_file_info(fs.FileSelector(directory, allow_not_found=True)):
        hidden = info.base_name.startswith(".") and not name.startswith(".")
        is_directory = info.type == fs.FileType.Directory
        if hidden or not fnmatchcase(info.base_name, name):
            continue
        if name == "**" and is_directory:
            yield from _glob(filesystem, info.path, parts)
        elif len(parts) > 1 and is_directory:
            yield from _glob(filesystem, info.path, rest)
        elif len(parts) == 1 and name != "**" and info.type == fs.FileType.File:
            yield info


def _is_known(uri: str) -> bool:
    kind, compression = _kind(uri)
    return kind in FORMATS and not (kind == "parquet" and compression)


def _kind(uri: str) -> tuple[str, str | None]:
    """The format and pyarrow's name of the compression, by suffix; ("", None) without one."""
    _, *suffixes = uri.rpartition("/")[2].lower().split(".")
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression:
        suffixes.pop()
    return (suffixes[-1] if suffixes else ""), compression


def _open(uri: str, compression: str | None) -> io.BufferedReader:
    filesystem, path, _ = _locate(uri)
    return io.BufferedReader(
        filesystem.open_input_stream(path, compression=compression), CHUNK_BYTES
    )


@contextmanager
def _naming(file: InputFile) -> Iterator[None]:
    """Turn what storage and decoders raise into a DataError that names the file."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"data: {file.uri} is missing, truncated or damaged, so its rows cannot be counted: "
            f"{_one_line(error)}. Restore the file or leave it out."
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _parquet_rows(file: InputFile) -> Iterator[SourceRow]:
    filesystem, path, _ = _locate(file.uri)
    with pq.ParquetFile(filesystem.open_input_file(path)) as parquet:
        check_distinct(file.uri, parquet.schema_arrow.names)
        row = 0
        for batch in parquet.iter_batches(batch_size=1024):
            for fields in _batch_fields(batch):
                reason = None if fields is not None else "invalid UTF-8"
                yield SourceRow(row, fields, reason, _excerpt(fields or {}))
                row += 1


def _batch_fields(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | None]:
    """The rows of a batch; None for one whose text is not UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for place in range(batch.num_rows):
            try:
                yield batch.slice(place, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield None


def _excerpt(fields: Mapping[str, Any]) -> str:
    return shortened(f"{name}: {str(value)[:EXCERPT_CHARACTERS]}" for name, value in fields.items())


def _hub_name(uri: str) -> tuple[str, str]:
    match = _HUB.fullmatch(uri)
    if match is None:
        raise DataError(f"data: {uri} is not hf://org/name or hf://org/name:split.")
    return match["name"], match["split"] or "train"


def _hub_rows(file: InputFile) -> Iterator[SourceRow]:
    name, split = _hub_name(file.uri)
    with _reaching_hub(file):
        import datasets

        rows = datasets.load_dataset(name, split=split, streaming=True)
        for row, fields in enumerate(rows):
            yield SourceRow(row, dict(fields), None, _excerpt(fields))


def _hub_num_rows(file: InputFile) -> int:
    """Rows of a split; 0 where its data set does not say."""
    name, split = _hub_name(file.uri)
    with _reaching_hub(file):
        import datasets

        known = datasets.load_dataset_builder(name).info.splits or {}
    return known[split].num_examples if split in known else 0


def _hub_revision(file: InputFile) -> str:
    name, split = _hub_name(file.uri)
    with _reaching_hub(file):
        from huggingface_hub import HfApi

        return f"{HfApi().dataset_info(name).sha}:{split}"


@contextmanager
def _reaching_hub(file: InputFile) -> Iterator[None]:
    """Any failure of the hub's clients, which share no base class, as one DataError."""
    try:
        yield
    except ImportError as error:
        raise DataError(f"data: {file.uri} needs `pip install datasets` ({error}).") from None
    except Exception as error:
        raise DataError(
            f"data: {file.uri} cannot be read from the Hugging Face hub: {_one_line(error)}. "
            "Check the name, the split and the network, or download the files and name them."
        ) from None
