"""File systems of addresses: this machine's, and object stores with their patience."""

import os
from functools import cache

import pyarrow as pa
import pyarrow.fs as pafs

from s2l_ray.errors import ConfigError
from s2l_ray.storage.failures import GCS_SECONDS, S3_ATTEMPTS

S3_CONNECT_SECONDS = 10.0


def open_uri(uri: str) -> tuple[pafs.FileSystem, str, str]:
    """Return a file system, a path on it, and the prefix that makes a URI of such a path again.

    Args:
        uri: a local path, absolute or relative to the working directory; or SCHEME://BUCKET/KEY,
            where an account may stand before the bucket: abfs://ACCOUNT@CONTAINER/KEY.

    Raises:
        ConfigError: the address holds a password.
        OSError, pyarrow.ArrowInvalid: the scheme is unknown, or its store does not answer.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        prefix = f"{scheme}://" if separator else ""
        return pafs.LocalFileSystem(), os.path.abspath(rest if separator else uri), prefix
    # Only the bucket goes through URI parsing: a key may hold spaces, '%' and '#'.
    bucket, _, key = rest.partition("/")
    account, at, name = bucket.rpartition("@")
    if ":" in account:
        raise ConfigError(
            f"the address of {name} on {scheme}:// holds a password. Take it out, and give it by "
            "the environment, where nothing records it."
        )
    if scheme.startswith("abfs") and (not account or "." in name):
        raise pa.ArrowInvalid("on Azure, write abfs://ACCOUNT@CONTAINER/PATH")
    filesystem = _bucket_filesystem(f"{scheme}://{bucket}")
    return filesystem, f"{name}/{key}".rstrip("/"), f"{scheme}://{account}{at}"


@cache
def _bucket_filesystem(bucket: str) -> pafs.FileSystem:
    """Return the file system of `bucket`, opened once in a process: its region takes a request."""
    if bucket.startswith(("gs://", "gcs://")):
        bucket += f"?retry_limit_seconds={GCS_SECONDS:g}"
    found = pafs.FileSystem.from_uri(bucket)[0]
    if found.type_name != "s3":
        return found
    # An address of a store takes no strategy, and without one pyarrow gives up on a busy store.
    # What it has read from the address and the environment is what it is pickled by.
    settings = found.__reduce__()[1][0] | {
        "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS),
        "connect_timeout": S3_CONNECT_SECONDS,
        # A file is one request, not three, unless it is so large that it goes up in pieces.
        "allow_delayed_open": True,
    }
    return pafs.S3FileSystem(**settings)
