"""Files of a store, opened for reading: nothing but their content is taken for it.

pyarrow's client of S3 repeats requests that failed, but for two kinds. If a page that says an error
is longer than what was to be read, it gives up at once. An answer that ends within its headers it
takes for a good one: the file is then empty, or the memory for its content stays as it was.
"""

import os
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from s2l_ray.storage.failures import NO_CONTENT, read_again
from s2l_ray.storage.read_ahead import read_ahead

MARK_BYTES = 16
"""Bytes at the end of the memory of a read that show whether it was filled."""
REQUEST_BYTES = 8 << 20
"""Bytes of one request of who reads a whole file: an object store takes tens of milliseconds to
answer, for however many."""


def open_file(filesystem: fs.FileSystem, path: str) -> pa.NativeFile:
    """Open a file for reading from any byte; a local one as pyarrow does.

    Reads of one that is not local are repeated while its store is busy. They come one after the
    other, also if several threads read.
    """
    file = filesystem.open_input_file(path)
    return file if _is_local(filesystem) else pa.PythonFile(_Repeated(filesystem, path, file), "r")


def copy(filesystem: fs.FileSystem, path: str, target: Path) -> None:
    """Copy a file that is not local to `target`, whose folder is made.

    Threads read the next blocks: less than 50 MB are in memory at a time.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with filesystem.open_input_file(path) as opened, target.open("wb") as stream:
        file = _Repeated(filesystem, path, opened)
        for block in read_ahead(file.block, range(0, file.size, REQUEST_BYTES)):
            stream.write(block)


def file_info(filesystem: fs.FileSystem, path: str) -> fs.FileInfo:
    """Return what a file system says of a path; a store that says nothing, or 0 bytes, twice."""
    info = filesystem.get_file_info(path)
    if _is_local(filesystem) or info.type == fs.FileType.Directory or info.size:
        return info
    return filesystem.get_file_info(path)


def is_file(filesystem: fs.FileSystem, path: str) -> bool:
    """Tell whether there is a file: one request, where `file_info` looks for a folder as well."""
    if _is_local(filesystem):
        return bool(filesystem.get_file_info(path).is_file)
    try:
        filesystem.open_input_file(path).close()
    except FileNotFoundError:
        return False
    return True


def _is_local(filesystem: fs.FileSystem) -> bool:
    return bool(filesystem.type_name == "local")


class _Repeated:
    """A file of a store, with the methods that pyarrow calls of one that it reads from Python."""

    def __init__(self, filesystem: fs.FileSystem, path: str, file: pa.NativeFile) -> None:
        self._file = file if file.size() else filesystem.open_input_file(path)
        self.seek, self.tell, self.close = self._file.seek, self._file.tell, self._file.close
        self.size = int(self._file.size())

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def read(self, size: int) -> pa.Buffer:
        """Return the next bytes, fewer than `size` at the end of the file alone."""
        start = self._file.tell()
        buffer = self._read_at(start, size)
        self._file.seek(start + buffer.size)
        return buffer

    read_buffer = read

    def block(self, start: int) -> pa.Buffer:
        """Return REQUEST_BYTES from `start`, or what there is; several threads may read."""
        return self._read_at(start, REQUEST_BYTES)

    def _read_at(self, start: int, size: int) -> pa.Buffer:
        buffer = pa.allocate_buffer(min(size, max(self.size - start, 0)))
        if buffer.size:
            read_again(self._fill)(buffer, start)
        return buffer

    def _fill(self, buffer: pa.Buffer, start: int) -> None:
        """Fill `buffer` with the bytes from `start`.

        Raises:
            OSError: the store did not answer, or without content.
        """
        content = memoryview(buffer).cast("B")
        mark = os.urandom(min(MARK_BYTES, len(content)))
        content[-len(mark) :] = mark
        num_bytes = self._file.get_stream(start, len(content)).readinto(content)
        if num_bytes < len(content) or content[-len(mark) :] == mark:
            raise OSError(NO_CONTENT)
