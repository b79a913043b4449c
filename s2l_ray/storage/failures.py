"""Failures of storage as errors that say what to do."""

import contextlib
import errno
import functools
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import pyarrow as pa

from s2l_ray.errors import StorageError

S3_ATTEMPTS = 10
"""Attempts at a request to S3, after pauses that double up to 20 s: one to two minutes in all."""
GCS_SECONDS = 120.0
"""Time in which a request to Google's store is tried again."""
PAGE_TOO_LONG = "Failed to flush response stream"
"""pyarrow's client of S3, where an error page was longer than what was to be read: it gives up."""
NO_CONTENT = "the answer of the store ended before any content"
UNANSWERED = re.compile(
    r"NETWORK_CONNECTION|INTERNAL_FAILURE|SLOW_DOWN|THROTTLING|REQUEST_TIMEOUT"
    rf"|UNAVAILABLE|HTTP status 5\d\d|{NO_CONTENT}",
    re.IGNORECASE,
)
"""What a failure is called that was tried to get over: by the clients of stores, and here."""
_QUOTED = re.compile(r"(?:key|bucket|path) '[^']*'")
"""Names in an error of a store; a word of theirs says nothing of its answer."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 20.0
Arguments = ParamSpec("Arguments")
Content = TypeVar("Content")


def read_again(read: Callable[Arguments, Content]) -> Callable[Arguments, Content]:
    """Repeat `read`, S3_ATTEMPTS times at the most, where the client of the store gives up at once.

    It does so if the store answers with a page of some 400 bytes, and less than that was to be
    read. Many files of a run are no longer.
    """

    @functools.wraps(read)
    def repeated(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Content:
        for attempt in range(S3_ATTEMPTS - 1):
            try:
                return read(*args, **kwargs)
            except (OSError, StorageError) as error:
                if PAGE_TOO_LONG not in str(error) and NO_CONTENT not in str(error):
                    raise
            time.sleep(min(FIRST_PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS))
        return read(*args, **kwargs)

    return repeated


@contextlib.contextmanager
def temporary_space(*failures: type[Exception]) -> Iterator[None]:
    """Report an OSError, or one of `failures`, inside the block as a problem of temporary files.

    Raises:
        StorageError: the disk for temporary files is full, or cannot be written.
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
def explained(location: object, verb: str) -> Iterator[None]:
    """Turn an error of the system into a StorageError that says what to do.

    Args:
        location: the file or folder that the block uses.
        verb: what the block does with it, such as "read".
    """
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        raise StorageError(f"cannot {verb} {location}: {cause(error, verb, location)}") from error


@contextlib.contextmanager
def answered(location: object) -> Iterator[None]:
    """Raise StorageError, which is tried again, if the store of a file did not answer.

    Any other error is left to the caller: it says that the file is missing or damaged.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if not _is_unanswered(error, location):
            raise
        raise StorageError(f"cannot read {location}: {cause(error, 'read', location)}") from error


def cause(error: Exception, verb: str, location: object) -> str:
    """Return the cause of an error, and the remedy where one is known."""
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
    text = " ".join(str(error).split())
    if _is_unanswered(error, location):
        text += (
            f" The store did not answer in {S3_ATTEMPTS} attempts (on Google's, in "
            f"{GCS_SECONDS:g} s). Once it does, the same command goes on from here."
        )
    return text


def _is_unanswered(error: Exception, location: object) -> bool:
    """Tell whether the store of `location` did not answer; a local file has none."""
    _, of_store, path = str(location).partition("://")
    if not of_store or getattr(error, "errno", None) is not None:
        return False
    text = str(error)
    for name in (path.rpartition("@")[2], path.partition("/")[2]):
        text = text.replace(name, "") if "/" in name else text
    return UNANSWERED.search(_QUOTED.sub("", text)) is not None
