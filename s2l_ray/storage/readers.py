"""Files of a store, opened for reading: nothing but their content is taken for it.

pyarrow's client of S3 repeats requests that failed, but for two kinds. If a page that says an error
is longer than what was to be read, it gives up at once. An answer that ends within its headers it
takes for a good one: the file is then empty, or the memory for its content stays as it was.
"""

import os

import pyarrow as pa
from pyarrow import fs

from s2l_ray.storage.failures import NO_CONTENT, read_again

MARK_BYTES = 16
"""Bytes at the end of the memory of a read that show whether it was filled."""


def open_file(filesystem: fs.FileSystem, path: str) -> pa.NativeFile:
    """Open a file for reading from any byte; a local one as pyarrow does.

    Reads of one that is not local are repeated while its store is busy. They come one after the
    other, also if several threads read.
    """
    file = filesystem.open_input_file(path)
    if _is_local(filesystem):
        return file
    if not file.size():
        file = filesystem.open_input_file(path)
    return pa.PythonFile(_Repeated(file), mode="r")


def file_info(filesystem: fs.FileSystem, path: str) -> fs.FileInfo:
    """Return what a file system says of a path; a store that says 0 bytes is asked twice."""
    info = filesystem.get_file_info(path)
    if info.is_file and not info.size and not _is_local(filesystem):
        info = filesystem.get_file_info(path)
    return info


def _is_local(filesystem: fs.FileSystem) -> bool:
    return bool(filesystem.type_name == "local")


class _Repeated:
    """The methods that pyarrow calls of a file that it reads from Python."""

    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def read(self, size: int) -> pa.Buffer:
        """Return the next bytes, fewer than `size` at the end of the file alone."""
        left = max(self._file.size() - self._file.tell(), 0)
        buffer = pa.allocate_buffer(min(size, left))
        return buffer.slice(0, read_again(self._fill)(buffer)) if buffer.size else buffer

    read_buffer = read

    def _fill(self, buffer: pa.Buffer) -> int:
        """Read into `buffer`, and return how many bytes.

        Raises:
            OSError: the store did not answer, or without content; the place is as before.
        """
        content, place = memoryview(buffer).cast("B"), self._file.tell()
        mark = os.urandom(min(MARK_BYTES, len(content)))
        content[-len(mark) :] = mark
        num_bytes = int(self._file.readinto(content))
        if num_bytes == len(content) and content[-len(mark) :] == mark:
            self._file.seek(place)
            raise OSError(NO_CONTENT)
        return num_bytes
