"""Input files: list the files that patterns name, hash their content, open them.

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
"""Number of bytes that are read at once."""
FORMATS = ("jsonl", "ndjson", "json", "csv", "tsv", "parquet")
COMPRESSIONS = {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}
ALLOWED = (
    f"Allowed: .{', .'.join(FORMATS)}; all but parquet also with .{', .'.join(COMPRESSIONS)} added."
)
SCHEMES = ("s3", "gs", "file")
_HUB = re.compile(r"hf://(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<split>.+))?")


@dataclass(frozen=True)
class InputFile:
    """One file, or one split of a data set on the hub.

    Attributes:
        uri: an absolute local path, or a URI.
        size: size in bytes, as stored; 0 for a data set on the hub.
        modified: modification time in nanoseconds since 1970, as text; "" for a data set on the
            hub.
    """

    uri: str
    size: int
    modified: str


def expand(patterns: Sequence[str], key: str = "data") -> list[InputFile]:
    """Return the files that `patterns` name, in the order of the patterns, then by path.

    A pattern is a file, a glob, a directory or hf://org/name[:split]; the first three may be local
    or under s3:// or gs://. In a glob, `**` matches any number of directories. A directory stands
    for all files below it that have a known suffix and are not hidden.

    Args:
        key: the key of the configuration that has the patterns, for messages.

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


def content_hash(file: InputFile) -> str:
    """Return the SHA-256 of the stored bytes in hexadecimal digits.

    For a data set on the hub, return its revision and split instead.
    """
    if file.uri.startswith("hf://"):
        return _hub_revision(file)
    digest = hashlib.sha256()
    with naming(file), open_input(file.uri, None) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _expand_one(pattern: str, key: str) -> list[InputFile]:
    """Return the files of one pattern by path, as `expand` does."""
    if pattern.startswith("hf://"):
        hub_name(pattern)
        return [InputFile(pattern, 0, "")]
    _check_scheme(pattern)
    try:
        filesystem, path, prefix = open_uri(pattern)
        matches = _matches(filesystem, path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{key}: {pattern} cannot be read: {one_line(error)}") from None
    if not matches:
        resolved = "" if prefix + path == pattern else f" ({prefix}{path})"
        raise DataError(f"{key}: {pattern} matches no file{resolved}. {ALLOWED}")
    files = [InputFile(prefix + info.path, info.size, str(info.mtime_ns or "")) for info in matches]
    unknown = [file.uri for file in files if not _is_known(file.uri)]
    if unknown:
        raise DataError(
            f"{key}: {pattern}: {len(unknown)} of {len(files)} files have a suffix that cannot be "
            f"read (first: {first(unknown)}). {ALLOWED}"
        )
    return sorted(files, key=lambda file: file.uri)


def _check_scheme(uri: str) -> None:
    """Refuse a URI of an unknown scheme."""
    scheme, separator, _ = uri.partition("://")
    if separator and scheme not in SCHEMES:
        raise DataError(
            f"data: {uri}: {scheme}:// cannot be read. Use a local path, s3://, gs:// or hf://."
        )


def _matches(filesystem: fs.FileSystem, path: str) -> list[fs.FileInfo]:
    """Return the files that a file, a directory or a glob names, each once."""
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.File:
        return [info]
    if info.type == fs.FileType.Directory:
        below = _glob(filesystem, path, ["**", "*"])
        return [info for info in below if _is_known(info.path)]
    parts = path.split("/")
    wild = [number for number, part in enumerate(parts) if re.search(r"[*?\[]", part)]
    if not wild:
        return []
    matches = _glob(filesystem, "/".join(parts[: wild[0]]) or "/", parts[wild[0] :])
    return list({info.path: info for info in matches}.values())


def _glob(filesystem: fs.FileSystem, directory: str, parts: list[str]) -> Iterator[fs.FileInfo]:
    """Yield the files below `directory` that match `parts`, one pattern per directory level."""
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
    """Tell whether the suffix of a file is one that can be read."""
    kind, compression = format_of(uri)
    return kind in FORMATS and not (kind == "parquet" and compression)


def format_of(uri: str) -> tuple[str, str | None]:
    """Return the format and pyarrow's name of the compression, by suffix, or ("", None)."""
    _, *suffixes = uri.rpartition("/")[2].lower().split(".")
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression:
        suffixes.pop()
    return (suffixes[-1] if suffixes else ""), compression


def open_input(uri: str, compression: str | None) -> io.BufferedReader:
    """Open a file for reading, decompressed by the named codec of pyarrow."""
    filesystem, path, _ = open_uri(uri)
    return io.BufferedReader(
        filesystem.open_input_stream(path, compression=compression), CHUNK_BYTES
    )


@contextmanager
def naming(file: InputFile) -> Iterator[None]:
    """Turn an error of storage or of a decoder into a DataError that names the file."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"data: {file.uri} is missing, truncated or damaged, so its rows cannot be counted: "
            f"{one_line(error)}. Restore the file or leave it out."
        ) from None


def one_line(error: Exception) -> str:
    """Return the first 300 characters of a message in one line; its class if it is empty."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def hub_name(uri: str) -> tuple[str, str]:
    """Return the name and the split of a data set on the hub; the split is "train" by default."""
    match = _HUB.fullmatch(uri)
    if match is None:
        raise DataError(f"data: {uri} is not hf://org/name or hf://org/name:split.")
    return match["name"], match["split"] or "train"


def _hub_revision(file: InputFile) -> str:
    """Return "COMMIT:SPLIT" of a data set on the hub."""
    name, split = hub_name(file.uri)
    with reaching_hub(file):
        from huggingface_hub import HfApi

        return f"{HfApi().dataset_info(name).sha}:{split}"


@contextmanager
def reaching_hub(file: InputFile) -> Iterator[None]:
    """Turn any failure of the hub's clients into a DataError; they share no base class."""
    try:
        yield
    except ImportError as error:
        raise DataError(f"data: {file.uri} needs `pip install datasets` ({error}).") from None
    except Exception as error:
        raise DataError(
            f"data: {file.uri} cannot be read from the Hugging Face hub: {one_line(error)}. "
            "Check the name, the split and the network, or download the files and name them."
        ) from None
