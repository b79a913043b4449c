"""Programs in namespaces of their own: disks and networks that no other program has."""

import shutil
import subprocess
from pathlib import Path

import pytest


def isolated(*options: str) -> list[str]:
    """The words that run a program in namespaces of its own; skips where none may be made."""
    words = ["unshare", "--map-root-user", *options]
    allowed = shutil.which("unshare") and subprocess.run([*words, "true"], check=False)
    if not allowed or allowed.returncode:
        pytest.skip("this machine allows no namespaces")
    return words


def on_small_disk(folder: Path, size: str) -> list[str]:
    """The words, after those of `isolated("--mount")`, that give a program such a disk there."""
    script = f'mount -t tmpfs -o size={size} none {folder} && exec "$@"'
    return ["sh", "-c", script, "sh"]
