"""Local paths and object stores (s3://, gs://, abfs://) behind one interface.

A file appears whole or not at all. Locally it is renamed from a unique temporary name. On an object
store, an object becomes visible only when its upload is complete.
"""

import contextlib
import io
import json
import os
import shutil
import tempfile
import uuid
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from s2l_ray.errors import StorageError, first
from s2l_ray.storage.failures import explained
from s2l_ray.storage.filesystems import open_uri
from s2l_ray.storage.listing import entries
from s2l_ray.storage.read_ahead import read_ahead
from s2l_ray.storage.readers import copy, file_info, is_file, open_file


def is_uri(path: str) -> bool:
    """Tell whether `path` has a scheme, such as s3://."""
    return "://" in path


def absolute(path: str) -> str:
    """Return a local path as an absolute one, and a URI as it is."""
    return path if is_uri(path) else _absolute(path)


def _absolute(path: str) -> str:
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError:
        raise StorageError(
            f"{path}: the home directory that ~ stands for is not known here: give a whole path."
        ) from None


def absolute_if_file(name: str | None) -> Any:
    """Return the absolute path of a file that exists, and any other name as it is.

    Workers have another working directory, so they need absolute paths.
    """
    if not name or is_uri(name) or not Path(name).expanduser().exists():
        return name
    return absolute(name)


@dataclass(frozen=True)
class Location:
    """A file or folder: an absolute local path, or SCHEME://BUCKET/KEY.

    The key is taken literally. Endpoint, region and credentials of an object store come from its
    standard environment variables, never from the URI.
    """

    uri: str

    @classmethod
    def of(cls, path: str | Path) -> "Location":
        """Return the location of `path`; a relative path starts at the working directory."""
        text = str(path).removeprefix("file://")
        if is_uri(text):
            return cls(text.rstrip("/"))
        return cls(_absolute(text))

    def __truediv__(self, name: str) -> "Location":
        return Location(f"{self.uri}/{name}")

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """Return the last component."""
        return self.uri.rsplit("/", 1)[-1]

    @property
    def parent(self) -> "Location":
        """Return the folder that holds it."""
        return Location(self.uri.rsplit("/", 1)[0])

    @property
    def is_local(self) -> bool:
        """Tell whether it is a local path."""
        return not is_uri(self.uri)

    def filesystem(self) -> tuple[pafs.FileSystem, str]:
        """Return the pyarrow file system, and the path in it."""
        if self.is_local:
            return pafs.LocalFileSystem(), self.uri
        with explained(self, "open"):
            return open_uri(self.uri)[:2]

    def exists(self) -> bool:
        """Tell whether there is a file or folder."""
        with explained(self, "look up"):
            return bool(self._info().type != pafs.FileType.NotFound)

    def is_file(self) -> bool:
        """Tell whether there is a file; on an object store one request, where `exists` is many."""
        with explained(self, "look up"):
            return is_file(*self.filesystem())

    def is_folder(self) -> bool:
        """Tell whether there is a folder; on an object store, one that holds something."""
        with explained(self, "look up"):
            return bool(self._info().type == pafs.FileType.Directory)

    def names(self) -> list[str]:
        """Return the names in this folder, sorted; none if it does not exist.

        Names that begin with a dot, as those of temporary files do, are left out.
        """
        with explained(self, "list"):
            fs, path = self.filesystem()
            infos = entries(fs, path)
        return sorted(info.base_name for info in infos if not info.base_name.startswith("."))

    def files(self) -> list[tuple[str, int, str]]:
        """Return path, size in bytes and modification time of every file below this folder.

        Paths are relative to this folder, and sorted. Times are nanoseconds since 1970, as text.

        Raises:
            StorageError: there is no such folder, or it cannot be listed.
        """
        with explained(self, "list"):
            fs, path = self.filesystem()
            infos = entries(fs, path, below=True)
            if not infos and not self.exists():
                raise FileNotFoundError(path)
        return sorted(
            (info.path.removeprefix(f"{path}/"), info.size, str(info.mtime_ns))
            for info in infos
            if info.type == pafs.FileType.File
        )

    def open(self) -> pa.NativeFile:
        """Open this file for reading from any byte, as `open_file` does."""
        return open_file(*self.filesystem())

    def read_bytes(self) -> bytes:
        """Return the content of this file."""
        with explained(self, "read"), self.open() as stream:
            return bytes(stream.read())

    def read_json(self) -> Any:
        """Return the value in this JSON file.

        Raises:
            StorageError: the file is missing, or is not JSON.
        """
        content = self.read_bytes()
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise StorageError(f"{self} is not JSON ({error}). Was it edited by hand?") from None

    def read_table(
        self,
        columns: list[str] | None = None,
        *,
        optional: Collection[str] = (),
        groups: Sequence[int] | None = None,
    ) -> pa.Table:
        """Return the table in this Parquet file: all or some of its columns and row groups.

        The columns of `optional` are read as well if the file has them.
        """
        with explained(self, "read"), self.open() as stream:
            # `read_table` of pyarrow takes three times as long to open a small file.
            file = pq.ParquetFile(stream, pre_buffer=True)
            numbers = range(file.num_row_groups) if groups is None else groups
            if columns is None:
                return file.read_row_groups(numbers, use_threads=False)
            names = file.schema_arrow.names
            columns = [*columns, *(name for name in optional if name in names)]
            if missing := [name for name in columns if name not in names]:
                raise pa.ArrowInvalid(f"it has no column {first(missing)}")
            return file.read_row_groups(numbers, columns, use_threads=False).select(columns)

    def read_schema(self) -> pa.Schema:
        """Return the schema of this Parquet file, read from its end alone."""
        with explained(self, "read"), self.open() as stream:
            return pq.read_schema(stream)

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
        """Write this file, whole or not at all."""
        with self.open_atomic() as stream:
            stream.write(content)

    def write_json(self, value: Any) -> None:
        """Write `value` as JSON, whole or not at all."""
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
        """Write `table` as Parquet, whole or not at all."""
        with self.open_atomic() as stream:
            pq.write_table(table, stream, compression="zstd")

    @contextlib.contextmanager
    def open_atomic(self, *, replace: bool = True) -> Iterator[IO[bytes]]:
        """Open a stream whose content becomes this file when the block ends without an error.

        Args:
            replace: False keeps a file that is there; another content than its own is refused.

        Raises:
            StorageError: the file cannot be written, or must not be replaced.
        """
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
                if not replace and self.exists():
                    self._check_same(Path(temporary))
                elif self.is_local:
                    os.chmod(temporary, 0o644)
                    os.replace(temporary, self.uri)
                else:
                    self._put(Path(temporary))
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)

    def upload(self, folder: Path) -> None:
        """Copy the local `folder` to this location.

        A local copy appears all at once. On an object store, files appear one by one, `config.json`
        last: a model directory without it is unfinished.
        """
        with explained(self, "write"):
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            if self.is_local:
                self._copy_at_once(folder, files)
                return
            for path in sorted(files, key=lambda file: file.name == "config.json"):
                (self / path.relative_to(folder).as_posix())._put(path)

    @contextlib.contextmanager
    def local(self) -> Iterator[Path]:
        """Give a local path of this file or folder.

        It is the file itself, or a download that is removed at the end of the block. Of a folder,
        four files are downloaded at a time, in less than 200 MB of memory.
        """
        if self.is_local:
            yield Path(self.uri)
            return
        with tempfile.TemporaryDirectory(prefix="s2l-") as folder:
            target = Path(folder) / self.name
            with explained(self, "download"):
                if self.is_folder():
                    files = [(self / name, target / name) for name, _, _ in self.files()]
                else:
                    files = [(self, target)]
                deque(read_ahead(lambda each: copy(*each[0].filesystem(), each[1]), files), 0)
            yield target

    def remove(self) -> None:
        """Remove this file or folder, if it exists."""
        with explained(self, "remove"):
            fs, path = self.filesystem()
            kind = file_info(fs, path).type
            if kind == pafs.FileType.Directory:
                # On gs:// it ends by looking for an object of the folder itself, which need not be.
                with contextlib.suppress(FileNotFoundError):
                    fs.delete_dir(path)
            elif kind == pafs.FileType.File:
                fs.delete_file(path)

    def _info(self) -> pafs.FileInfo:
        return file_info(*self.filesystem())

    def _check_same(self, file: Path) -> None:
        """Raise StorageError if this file has another content than the local `file`."""
        with file.open("rb") as new, self.open() as old:
            is_same = old.size() == file.stat().st_size
            while is_same and (block := new.read(1 << 22)):
                is_same = old.read(len(block)) == block
        if not is_same:
            raise StorageError(
                f"{self} is there already, with another content. Name another file, or say that "
                "it is to be replaced (--force; replace=True)."
            )

    def move_to(self, folder: "Location", *, last: str) -> None:
        """Move this folder, of files alone, into the place of `folder`, which is removed.

        A local folder moves at once. On an object store, its files are copied one by one, the one
        named `last` after all others. Until the move is complete, this folder stays whole.
        """
        with explained(folder, "write"):
            if self.is_local:
                folder.remove()
                os.replace(self.uri, folder.uri)
                return
            fs, path = self.filesystem()
            _, target = folder.filesystem()
            for name in sorted(self.names(), key=lambda name: name == last):
                fs.copy_file(f"{path}/{name}", f"{target}/{name}")
        self.remove()

    def _copy_at_once(self, folder: Path, files: list[Path]) -> None:
        """Copy `files` of `folder` under a temporary name, and rename the copy to this location."""
        copy = Path(self.uri).with_name(f".{self.name}.{uuid.uuid4().hex}")
        try:
            for file in files:
                target = copy / file.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                with file.open("rb") as source, target.open("wb") as stream:
                    shutil.copyfileobj(source, stream)
                    stream.flush()
                    # A folder that exists is whole, even after the machine has crashed.
                    os.fsync(stream.fileno())
            self.remove()
            os.replace(copy, self.uri)
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    def _put(self, file: Path) -> None:
        """Upload `file` as this object."""
        fs, path = self.filesystem()
        # The source is opened first: an error that closes the sink publishes half an object.
        with file.open("rb") as source, fs.open_output_stream(path) as sink:
            while block := source.read(1 << 22):
                sink.write(block)
