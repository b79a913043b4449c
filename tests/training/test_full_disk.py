"""A worker of a training that cannot write says where and what to do, whatever raised it."""

import errno
import os

import pytest

from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.errors import StorageError
from s2l_ray.storage.location import Location
from s2l_ray.training import ray_train


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "no space left. Free some, then run the same command again"),
        (errno.EROFS, "the file system is read-only. Choose another run_dir."),
        (errno.EACCES, "permission denied. Choose another run_dir"),
    ],
)
def test_the_message_names_the_folder_and_the_remedy(tmp_path, code, remedy):
    out = StageDir(Location.of(tmp_path), "reference", {})
    error = ray_train._user_error([OSError(code, os.strerror(code))], out)

    assert isinstance(error, StorageError)
    assert str(error).startswith(f"reference: cannot write {tmp_path}: {remedy}")
