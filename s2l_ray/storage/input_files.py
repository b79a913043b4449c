"""Input files: which ones a pattern names, and a hash of what each holds.

A file is local, under s3:// or gs://, or one split of a data set on the Hugging Face hub (hf://).
"""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain

import pyarrow as pa
from pyarrow import fs

from s2l_ray.errors import DataError, first
from s2l_ray.storage.location import open_uri

CHUNK_BYTES = 1 << 20
"""Bytes that are read at once."""
FORMATS = ("jsonl", "ndjson", "json", "csv", "tsv", "parquet")
COMPRESSIONS = {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}
ALLOWED = (
    f"Allowed: .{', .'.join(FORMATS)}; all but parquet also with .{', .'.join(COMPRESSIONS)} added."
)
SCHEMES = ("s3", "gs", "file")
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


def content_sha(file: InputFile) -> str:
    """The sha256 of the stored bytes in hex; for a hub data set its revision and split."""
    if file.uri.startswith("hf://"):
        return _hub_revision(file)
    digest = hashlib.sha256()
    with naming(file), open_input(file.uri, None) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _expand_one(pattern: str, key: str) -> list[InputFile]:
    if pattern.startswith("hf://"):
        hub_name(pattern)
        return [InputFile(pattern, 0, "")]
    _check_scheme(pattern)
    try:
        filesystem, path, prefix = open_uri(pattern)
        found = _matches(filesystem, path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{key}: {pattern} cannot be read: {one_line(error)}") from None
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


def _check_scheme(uri: str) -> None:
    scheme, separator, _ = uri.partition("://")
    if separator and scheme not in SCHEMES:
        raise DataError(
            f"data: {uri}: {scheme}:// cannot be read. Use a local path, s3://, gs:// or hf://."
        )


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
    kind, compression = format_of(uri)
    return kind in FORMATS and not (kind == "parquet" and compression)


def format_of(uri: str) -> tuple[str, str | None]:
    """The format and pyarrow's name of the compression, by suffix; ("", None) without one."""
    _, *suffixes = uri.rpartition("/")[2].lower().split(".")
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression:
        suffixes.pop()
    return (suffixes[-1] if suffixes else ""), compression


def open_input(uri: str, compression: str | None) -> io.BufferedReader:
    filesystem, path, _ = open_uri(uri)
    return io.BufferedReader(
        filesystem.open_input_stream(path, compression=compression), CHUNK_BYTES
    )


@contextmanager
def naming(file: InputFile) -> Iterator[None]:
    """Turn what storage and decoders raise into a DataError that names the file."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"data: {file.uri} is missing, truncated or damaged, so its rows cannot be counted: "
            f"{one_line(error)}. Restore the file or leave it out."
        ) from None


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def hub_name(uri: str) -> tuple[str, str]:
    match = _HUB.fullmatch(uri)
    if match is None:
        raise DataError(f"data: {uri} is not hf://org/name or hf://org/name:split.")
    return match["name"], match["split"] or "train"


def _hub_revision(file: InputFile) -> str:
    name, split = hub_name(file.uri)
    with reaching_hub(file):
        from huggingface_hub import HfApi

        return f"{HfApi().dataset_info(name).sha}:{split}"


@contextmanager
def reaching_hub(file: InputFile) -> Iterator[None]:
    """Any failure of the hub's clients, which share no base class, as one DataError."""
    try:
        yield
    except ImportError as error:
        raise DataError(f"data: {file.uri} needs `pip install datasets` ({error}).") from None
    except Exception as error:
        raise DataError(
            f"data: {file.uri} cannot be read from the Hugging Face hub: {one_line(error)}. "
            "Check the name, the split and the network, or download the files and name them."
        ) from None
