"""Input files: list the files that patterns name, hash their content, open them.

A file is local, under s3://, gs:// or abfs://, or one split of a data set on the Hugging Face hub (hf://).
"""

import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import fs

from s2l_ray.errors import DataError, first
from s2l_ray.storage import hub, splits
from s2l_ray.storage.failures import answered
from s2l_ray.storage.filesystems import open_uri
from s2l_ray.storage.location import Location, is_uri
from s2l_ray.storage.readers import REQUEST_BYTES, open_file
from s2l_ray.storage.walk import INPUTS, Walk

CHUNK_BYTES = 1 << 20
"""Number of bytes that are taken from a stream at once."""
TABLES = ("parquet", "arrow")
FORMATS = ("jsonl", "ndjson", "json", "csv", "tsv", *TABLES)
COMPRESSIONS = {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}
ALLOWED = (
    f"Allowed: .{', .'.join(FORMATS)}; all but .{' and .'.join(TABLES)} also with "
    f".{', .'.join(COMPRESSIONS)} added."
)
SCHEMES = ("s3", "gs", "abfs", "file")
LFS_POINTER = b"version https://git-lfs.github.com/"
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


@dataclass(frozen=True)
class Listing:
    """The files that patterns name, and notes on files that were left out."""

    files: list[InputFile]
    notes: list[str]


def expand(patterns: Sequence[str], key: str = "data") -> list[InputFile]:
    """Return the files that `patterns` name, as `list_files` does."""
    return list_files(patterns, key).files


def list_files(
    patterns: Sequence[str],
    key: str = "data",
    *,
    run: Location | None = None,
    split: str | None = None,
    preferred: Sequence[str] = ("train",),
) -> Listing:
    """Return the files that `patterns` name, in the order of the patterns, then by path.

    A pattern is a file, a glob, a directory or hf://org/name[:[config/]split]; the first three may
    be local or under s3://, gs:// or abfs://. In a glob, `**` matches any number of directories. A
    directory stands for all files below it that have a known suffix; if their names tell several
    splits, for those of one. What `walk` leaves out is left out.

    Args:
        patterns: absolute paths or URIs.
        key: the key of the configuration that has the patterns, for messages.
        run: the run that reads the files; what is below it is never input, but for files in its
            folder `inputs`, where that is named.
        split: the split to read of directories, globs and data sets on the hub that have several.
        preferred: kinds of splits that are read of a directory if `split` is None.

    Raises:
        DataError: a pattern matches nothing, a suffix is unknown, a file is named twice or is the
            run's own, or it is unclear which split is meant.
    """
    listings = [_expand_one(pattern, key, run, split, preferred) for pattern in patterns]
    files = [file for listing in listings for file in listing.files]
    real_uris = [_real(file.uri) for file in files]
    repeated = {uri for uri, count in Counter(real_uris).items() if count > 1}
    if repeated:
        uris = dict.fromkeys(
            file.uri for file, uri in zip(files, real_uris, strict=True) if uri in repeated
        )
        raise DataError(
            f"{key}: {len(repeated)} of {len(files)} files are named more than once "
            f"(first: {first(list(uris))}). Name each file once; globs must not overlap."
        )
    return Listing(files, [note for listing in listings for note in listing.notes])


def _real(uri: str) -> str:
    """Return a local path without links, and any other URI as it is."""
    return uri if "://" in uri else os.path.realpath(uri)


def content_hash(file: InputFile, is_stopped: Callable[[], bool] = lambda: False) -> str:
    """Return the SHA-256 of the stored bytes in hexadecimal digits.

    For a data set on the hub, return its revision and split instead.

    Args:
        is_stopped: asked at each chunk; once it is true nobody wants the hash, and no more is read.
    """
    if file.uri.startswith("hf://"):
        return _hub_revision(file)
    digest = hashlib.sha256()
    with naming(file), open_input(file.uri, None, REQUEST_BYTES) as stream:
        while not is_stopped() and (chunk := stream.read(CHUNK_BYTES)):
            digest.update(chunk)
    return digest.hexdigest()


def _expand_one(
    pattern: str,
    key: str,
    run: Location | None,
    split: str | None,
    preferred: Sequence[str],
) -> Listing:
    """Return the files of one pattern by path, as `list_files` does."""
    if pattern.startswith("hf://"):
        named = _HUB.fullmatch(pattern)
        adds = split is not None and split != splits.ALL and named and not named["split"]
        uri = f"{pattern}:{split}" if adds else pattern
        hub_name(uri)
        return Listing([InputFile(uri, 0, "")], [])
    _check_scheme(pattern)
    try:
        with answered(pattern):
            filesystem, path, prefix = open_uri(pattern)
            walk = Walk(filesystem, _path_in(run, prefix))
            _check_start(walk, pattern, path, key)
            matches = walk.matches(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{key}: {pattern} cannot be read: {one_line(error)}") from None
    folder = f"{path.rstrip('/')}/"
    is_directory = bool(matches) and all(info.path.startswith(folder) for info in matches)
    if is_directory:
        matches = [info for info in matches if _is_known(info.path)]
    if not matches:
        resolved = "" if prefix + path == pattern else f" ({prefix}{path})"
        here = "" if is_uri(pattern) else "Relative paths start at the current directory. "
        raise DataError(f"{key}: {pattern} matches no file{resolved}. {here}{ALLOWED}")
    _check_regular(matches, f"{key}: {pattern}")
    files = {
        info.path: InputFile(prefix + info.path, info.size, str(info.mtime_ns or ""))
        for info in matches
    }
    unknown = [file.uri for file in files.values() if not _is_known(file.uri)]
    if unknown:
        raise DataError(
            f"{key}: {pattern}: {len(unknown)} of {len(files)} files have a suffix that cannot be "
            f"read (first: {first(unknown)}). {ALLOWED}"
        )
    notes: list[str] = []
    if is_directory or (split is not None and list(files) != [path]):
        files, notes = _of_one_split(files, f"{key}: {pattern}", split, preferred)
    return Listing(sorted(files.values(), key=lambda file: file.uri), notes)


def _of_one_split(
    files: Mapping[str, InputFile], where: str, split: str | None, preferred: Sequence[str]
) -> tuple[dict[str, InputFile], list[str]]:
    """Return the files of the split to read by their paths, and notes on those left out."""
    root = os.path.commonpath([os.path.dirname(path) for path in files])
    by_name = {os.path.relpath(path, root): path for path in files}
    names, note = splits.choose(sorted(by_name), split, preferred, where)
    return {by_name[name]: files[by_name[name]] for name in names}, [note] if note else []


def _path_in(run: Location | None, prefix: str) -> str:
    """Return the path of the run in the file system of this prefix; "" if it is in another."""
    if run is None:
        return ""
    _, path, own_prefix = open_uri(run.uri)
    return path if own_prefix == prefix.replace("file://", "") else ""


def _check_start(walk: Walk, pattern: str, path: str, key: str) -> None:
    """Refuse a file or directory of the own run, and a whole run as data."""
    if walk.is_own(path):
        raise DataError(
            f"{key}: {pattern} is below run_dir, and results of a run are never its input. Name "
            f"other files, move them to {INPUTS}/ in run_dir, or name another run_dir."
        )
    if walk.is_run(path):
        raise DataError(
            f"{key}: {pattern} is the folder of a run. Name its files of rows, such as "
            f"{pattern.rstrip('/')}/subset/selected.jsonl."
        )


def _check_regular(matches: Sequence[fs.FileInfo], where: str) -> None:
    """Refuse links to nothing, pipes and devices, which would be left out in silence."""
    others = [info.path for info in matches if info.type != fs.FileType.File]
    if others:
        raise DataError(
            f"{where}: {len(others):,} of {len(matches):,} are links to files that are not there, "
            f"or no regular files (first: {first(others)}). Restore the files, or remove the links."
        )


def _check_scheme(uri: str) -> None:
    """Refuse a URI of an unknown scheme."""
    scheme, separator, _ = uri.partition("://")
    if separator and scheme not in SCHEMES:
        raise DataError(
            f"data: {uri}: {scheme}:// cannot be read. Use a local path, s3://, gs://, "
            "abfs:// or hf://."
        )


def _is_known(uri: str) -> bool:
    """Tell whether the suffix of a file is one that can be read."""
    kind, compression = format_of(uri)
    return kind in FORMATS and not (kind in TABLES and compression)


def format_of(uri: str) -> tuple[str, str | None]:
    """Return the format and pyarrow's name of the compression, by suffix, or ("", None)."""
    _, *suffixes = uri.rpartition("/")[2].lower().split(".")
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression:
        suffixes.pop()
    return (suffixes[-1] if suffixes else ""), compression


def open_input(
    uri: str, compression: str | None, request_bytes: int = CHUNK_BYTES
) -> io.BufferedReader:
    """Open a file for reading, decompressed by the named codec of pyarrow.

    Args:
        request_bytes: bytes of one read of the file; REQUEST_BYTES for who reads all of it.
    """
    filesystem, path, _ = open_uri(uri)
    stream = open_file(filesystem, path)
    if compression:  # of which pyarrow takes 64 KiB at once
        stored = pa.BufferedInputStream(stream, request_bytes)
        stream = pa.CompressedInputStream(stored, compression)
    return io.BufferedReader(stream, request_bytes)


@contextmanager
def naming(file: InputFile) -> Iterator[None]:
    """Turn an error of storage or of a decoder into a DataError that names the file.

    Raises:
        StorageError: the store did not answer.
    """
    try:
        with answered(file.uri):
            yield
    except (OSError, pa.ArrowException) as error:
        if _is_lfs_pointer(file):
            raise DataError(
                f"data: {file.uri} is a pointer of Git LFS, not the rows themselves. Fetch them "
                "with `git lfs pull`, or leave the file out."
            ) from None
        raise DataError(
            f"data: {file.uri} is missing, truncated or damaged, so its rows cannot be counted: "
            f"{one_line(error).rstrip('.')}. Restore the file or leave it out."
        ) from None


def _is_lfs_pointer(file: InputFile) -> bool:
    """Tell whether a file holds the few lines that stand for its content in a clone without LFS."""
    try:
        with open_input(file.uri, None) as stream:
            return stream.read(len(LFS_POINTER)) == LFS_POINTER
    except (OSError, pa.ArrowException):
        return False


def one_line(error: Exception) -> str:
    """Return the first 300 characters of a message in one line; its class if it is empty."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def hub_name(uri: str) -> tuple[str, str | None, str]:
    """Return the name, the configuration and the split of a data set on the hub.

    The configuration is None, and the split is "train", unless `uri` names them.
    """
    match = _HUB.fullmatch(uri)
    if match is None:
        raise DataError(
            f"data: {uri} is not hf://org/name, hf://org/name:split or hf://org/name:config/split."
        )
    config, _, split = (match["split"] or "train").rpartition("/")
    return match["name"], config or None, split


def _hub_revision(file: InputFile) -> str:
    """Return "COMMIT:SPLIT" or "COMMIT:CONFIG/SPLIT" of a data set on the hub."""
    name, config, split = hub_name(file.uri)
    with reaching_hub(file):
        split = f"{config}/{split}" if config else split
        return f"{hub.info('dataset', name).sha}:{split}"


@contextmanager
def reaching_hub(file: InputFile) -> Iterator[None]:
    """Turn any failure of the hub's clients into a DataError; they share no base class.

    Raises:
        DataError: also if no network answers, before the block is begun.
    """
    name, _, _ = hub_name(file.uri)
    if silence := hub.silence("dataset", name):
        raise DataError(
            f"data: {file.uri}: {silence}. Download its files where there is a network, with "
            f"`hf download --repo-type dataset {name} --local-dir DIR`, and name DIR instead."
        )
    try:
        yield
    except ImportError as error:
        raise DataError(f"data: {file.uri} needs `pip install datasets` ({error}).") from None
    except Exception as error:
        raise DataError(
            f"data: {file.uri} cannot be read from the Hugging Face hub: {one_line(error)}. "
            "Check the name, the split (hf://org/name:config/split) and the network, or download "
            "the files and name them."
        ) from None
