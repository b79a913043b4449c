"""One way to speak to local paths and object stores (s3://, gs://).

A file appears whole or not at all: locally by a rename from a unique temporary name, on an object
store because an object is visible only once its upload is complete.
"""

import contextlib
import errno
import io
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from s2l_ray.errors import StorageError


def is_uri(path: str) -> bool:
    return "://" in path


def absolute(path: str) -> str:
    return path if is_uri(path) else str(Path(path).expanduser().absolute())


def absolute_if_file(name: str | None) -> Any:
    """Workers may run elsewhere: a name that is a path here becomes absolute, others stay."""
    if not name or is_uri(name) or not Path(name).expanduser().exists():
        return name
    return absolute(name)


@dataclass(frozen=True)
class Location:
    """A file or folder: an absolute local path, or SCHEME://BUCKET/KEY with the key as it is.

    Endpoint, region and credentials of an object store come from its standard environment
    variables, never from the URI.
    """

    uri: str

    @classmethod
    def of(cls, path: str | Path) -> "Location":
        """The location of `path`; relative paths count from the working directory."""
        text = str(path).removeprefix("file://")
        if is_uri(text):
            return cls(text.rstrip("/"))
        return cls(str(Path(text).expanduser().absolute()))

    def __truediv__(self, name: str) -> "Location":
        return Location(f"{self.uri}/{name}")

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        return self.uri.rsplit("/", 1)[-1]

    @property
    def parent(self) -> "Location":
        return Location(self.uri.rsplit("/", 1)[0])

    @property
    def is_local(self) -> bool:
        return not is_uri(self.uri)

    def filesystem(self) -> tuple[pafs.FileSystem, str]:
        """The pyarrow filesystem and the path in it."""
        if self.is_local:
            return pafs.LocalFileSystem(), self.uri
        with explained(self, "open"):
            return open_uri(self.uri)[:2]

    def exists(self) -> bool:
        with explained(self, "look up"):
            fs, path = self.filesystem()
            return bool(fs.get_file_info(path).type != pafs.FileType.NotFound)

    def names(self) -> list[str]:
        """Names of the direct children, sorted, without temporary ones; empty if there is none."""
        with explained(self, "list"):
            fs, path = self.filesystem()
            found = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return sorted(item.base_name for item in found if not item.base_name.startswith("."))

    def files(self) -> list[tuple[str, int, str]]:
        """Relative name, size in bytes and date of every file below this folder, by name."""
        with explained(self, "list"):
            fs, path = self.filesystem()
            found = fs.get_file_info(pafs.FileSelector(path, recursive=True))
        return sorted(
            (item.path.removeprefix(f"{path}/"), item.size, str(item.mtime_ns))
            for item in found
            if item.type == pafs.FileType.File
        )

    def read_bytes(self) -> bytes:
        with explained(self, "read"):
            fs, path = self.filesystem()
            with fs.open_input_stream(path) as stream:
                return bytes(stream.read())

    def read_json(self) -> Any:
        content = self.read_bytes()
        try:
            return json.loads(content)
        except ValueError as error:
            raise StorageError(f"{self} is not JSON ({error}). Was it edited by hand?") from None

    def read_table(self, columns: list[str] | None = None) -> pa.Table:
        with explained(self, "read"):
            fs, path = self.filesystem()
            return pq.read_table(path, columns=columns, filesystem=fs, use_threads=False)

    def read_npy(self) -> np.ndarray:
        """Return the array of a .npy file; nothing is unpickled.

        Raises:
            StorageError: the file cannot be read, or is no such array.
        """
        content = self.read_bytes()
        try:
            array: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise StorageError(f"{self} is no .npy array ({error}). Was it edited?") from None
        return array

    def write_bytes(self, content: bytes) -> None:
        with self.open_atomic() as stream:
            stream.write(content)

    def write_json(self, value: Any) -> None:
        self.write_bytes((json.dumps(value, indent=1) + "\n").encode())

    def write_npy(self, array: np.ndarray) -> None:
        """Write the array as a .npy file; nothing is pickled.

        Raises:
            ValueError: it holds Python objects.
        """
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        self.write_bytes(buffer.getvalue())

    def write_table(self, table: pa.Table) -> None:
        with self.open_atomic() as stream:
            pq.write_table(table, stream, compression="zstd")

    @contextlib.contextmanager
    def open_atomic(self) -> Iterator[IO[bytes]]:
        """A stream whose content becomes this file when the block ends without an error."""
        with explained(self, "write"):
            if self.is_local:
                Path(self.uri).parent.mkdir(parents=True, exist_ok=True)
            folder = str(Path(self.uri).parent) if self.is_local else None
            handle, temporary = tempfile.mkstemp(prefix=f".{self.name}.", dir=folder)
            try:
                with os.fdopen(handle, "wb") as stream:
                    yield stream
                    stream.flush()
                    os.fsync(stream.fileno())
                if self.is_local:
                    os.chmod(temporary, 0o644)
                    os.replace(temporary, self.uri)
                else:
                    self._put(Path(temporary))
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)

    def upload(self, folder: Path) -> None:
        """Make the local `folder` appear here; locally at once, on an object store file by file.

        `config.json` goes last, so that a model directory without it is an unfinished one.
        """
        with explained(self, "write"):
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            if self.is_local:
                staged = Path(self.uri).with_name(f".{self.name}.{uuid.uuid4().hex}")
                try:
                    for path in files:
                        copy = staged / path.relative_to(folder)
                        copy.parent.mkdir(parents=True, exist_ok=True)
                        with path.open("rb") as source, copy.open("wb") as stream:
                            shutil.copyfileobj(source, stream)
                            stream.flush()
                            # A folder that is there is whole, even after the machine has crashed.
                            os.fsync(stream.fileno())
                    self.remove()
                    os.replace(staged, self.uri)
                finally:
                    shutil.rmtree(staged, ignore_errors=True)
                return
            for path in sorted(files, key=lambda file: file.name == "config.json"):
                (self / path.relative_to(folder).as_posix())._put(path)

    @contextlib.contextmanager
    def local(self) -> Iterator[Path]:
        """A local view of this file or folder: itself, or a download that goes with the block."""
        if self.is_local:
            yield Path(self.uri)
            return
        with tempfile.TemporaryDirectory(prefix="s2l-") as folder:
            target = Path(folder) / self.name
            with explained(self, "download"):
                fs, path = self.filesystem()
                if fs.get_file_info(path).type == pafs.FileType.Directory:
                    target.mkdir()
                pafs.copy_files(path, str(target), source_filesystem=fs)
            yield target

    def remove(self) -> None:
        """Nothing is here afterwards, whatever was here before."""
        with explained(self, "remove"):
            fs, path = self.filesystem()
            kind = fs.get_file_info(path).type
            if kind == pafs.FileType.Directory:
                fs.delete_dir(path)
            elif kind == pafs.FileType.File:
                fs.delete_file(path)

    def _put(self, file: Path) -> None:
        fs, path = self.filesystem()
        # A stream that is closed by an error would publish half an object: read it first.
        with file.open("rb") as source, fs.open_output_stream(path) as sink:
            while block := source.read(1 << 22):
                sink.write(block)


def open_uri(uri: str) -> tuple[pafs.FileSystem, str, str]:
    """Return a file system, a path on it, and the prefix that makes a URI of such a path again.

    Args:
        uri: a local path, absolute or relative to the working directory; or SCHEME://BUCKET/KEY.

    Raises:
        OSError, pyarrow.ArrowInvalid: the scheme is unknown, or its store does not answer.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        prefix = f"{scheme}://" if separator else ""
        return pafs.LocalFileSystem(), os.path.abspath(rest if separator else uri), prefix
    # Only the bucket goes through URI parsing: a key may hold spaces, '%' and '#'.
    bucket = f"{scheme}://{rest.partition('/')[0]}"
    return _bucket_filesystem(bucket), rest.rstrip("/"), f"{scheme}://"


@cache
def _bucket_filesystem(bucket: str) -> pafs.FileSystem:
    """Open the file system of `bucket` once in a process: to learn its region takes a request."""
    return pafs.FileSystem.from_uri(bucket)[0]


@contextlib.contextmanager
def temporary_space(*failures: type[Exception]) -> Iterator[None]:
    """What goes wrong inside the block, an OSError or one of `failures`, is about temporary files.

    Raises:
        StorageError: the disk that temporary files lie on is full, or cannot be written.
    """
    kinds: tuple[type[Exception], ...] = (OSError, *failures)
    try:
        yield
    except kinds as error:
        raise StorageError(
            f"cannot write into {tempfile.gettempdir()} on this machine or worker: {error}. Free "
            f"some space, or set TMPDIR to a larger disk; the same command then goes on from here."
        ) from error


@contextlib.contextmanager
def explained(place: Location, verb: str) -> Iterator[None]:
    """Turn what the system says about `place` into a message that a user can act on."""
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        raise StorageError(f"cannot {verb} {place}: {_cause(error, verb)}") from error


def _cause(error: Exception, verb: str) -> str:
    code = getattr(error, "errno", None)
    if code in (errno.ENOSPC, errno.EDQUOT):
        return "no space left. Free some, then run the same command again: it goes on from here."
    if code == errno.EROFS:
        return "the file system is read-only. Choose another run_dir."
    if code in (errno.EACCES, errno.EPERM):
        return "permission denied. Choose another run_dir, or change the permissions."
    if verb == "write" and isinstance(error, FileNotFoundError | NotADirectoryError):
        return "its folder cannot be made. Choose another run_dir."
    if isinstance(error, FileNotFoundError):
        return "there is no such file."
    return " ".join(str(error).split())
