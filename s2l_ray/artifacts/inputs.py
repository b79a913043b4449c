"""Hashes of input files and revisions of models, cached from one command to the next."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from s2l_ray.config.data import DataConfig
from s2l_ray.config.training import ModelSpec, RandomModel
from s2l_ray.errors import ModelError
from s2l_ray.models import adapters, origins
from s2l_ray.storage import hub, input_files, small_files
from s2l_ray.storage.location import Location, is_uri

CONTENTS = "contents.json"
"""The file of the cache in the folder of a run."""
SETTLED_SECONDS = 2.0
"""A file that was written less than this before it was hashed may be written again without a change
of its modification time, which some file systems count in seconds."""


HASHED_AT_ONCE = 8
"""Files, of which each takes a buffer of 8 MB. One connection to a store is slow."""


@dataclass
class Contents:
    """SHA-256 hashes of input files, and commits of models on the Hugging Face hub.

    A file is hashed again when its size or modification time has changed, or when it had just been
    written as it was hashed. A data set on the hub has no modification time, so its revision is
    asked for every time.
    """

    cache: dict[str, list[Any]] = field(default_factory=dict)
    """URI or path without links -> size in bytes, modification time, hash; "model NAME" -> 0, "",
    commit."""
    unknown: set[str] = field(default_factory=set)
    """Models on the hub whose commit could not be looked up."""
    changed: set[str] = field(default_factory=set)
    """URIs of files whose content is no longer the one that was cached."""

    @classmethod
    def load(cls, run: Location) -> "Contents":
        """Return the contents cached in the folder of a run; none if there is no cache."""
        return cls(small_files.read(run / CONTENTS) or {})

    def file_hash(self, file: input_files.InputFile) -> str:
        """Return the hash of a file's content."""
        return self.file_hashes([file])[0]

    def file_hashes(self, files: Sequence[input_files.InputFile]) -> list[str]:
        """Return the hash of each file, in order; files that are not known are read by threads."""
        unknown = [file for file in files if not self._knows(file)]
        stopped = threading.Event()
        with ThreadPoolExecutor(HASHED_AT_ONCE) as threads, contextlib.ExitStack() as stack:
            stack.callback(stopped.set)  # after an interruption nobody wants the rest
            hashed = threads.map(partial(_hashed, stopped), unknown)
            for file, (settled, content) in zip(unknown, hashed, strict=True):
                key = _without_links(file.uri)
                cached = self.cache.get(key)
                if cached is not None and cached[2] != content:
                    self.changed.add(file.uri)
                # Without a date it is hashed again the next time.
                self.cache[key] = [file.size, file.modified if settled else "", content]
        return [str(self.cache[_without_links(file.uri)][2]) for file in files]

    def _knows(self, file: input_files.InputFile) -> bool:
        cached = self.cache.get(_without_links(file.uri))
        return (
            bool(file.modified) and cached is not None and cached[:2] == [file.size, file.modified]
        )

    def hub_revision(self, name: str) -> str | None:
        """Return the commit of a model on the hub, or None if it cannot be looked up.

        It is looked up once, so that a run stays with one version.
        """
        key = f"model {name}"
        if key not in self.cache and name not in self.unknown:
            revision = origins.hub_revision(name)
            if revision is None:
                self.unknown.add(name)
            else:
                self.cache[key] = [0, "", revision]
        return None if name in self.unknown else str(self.cache[key][2])

    def check_revisions(self) -> None:
        """Refuse models whose commit is unknown: a run could be neither repeated nor resumed.

        Raises:
            ModelError: naming them, and why the hub did not say.
        """
        if self.unknown:
            names = sorted(self.unknown)
            silence = hub.silence("model", names[0].partition("@")[0])
            raise origins.not_reached(names, silence or "the hub did not answer before")

    def pinned(self, model: Any) -> Any:
        """Return the same model or tokenizer; the name of one on the hub gets its known commit."""
        if isinstance(model, RandomModel):
            return model.model_copy(update={"tokenizer": self.pinned(model.tokenizer)})
        if model is None or not origins.is_hub_name(model):
            return model
        revision = self.hub_revision(model)
        return origins.pinned(model, revision) if revision else model

    def loadable(self, model: ModelSpec | None) -> Any:
        """Return what a worker loads: `pinned` of a model; of a folder with an adapter, both."""
        adapter = None if model is None else adapters.adapter_of(model)
        if adapter is None:
            return self.pinned(model)
        return adapters.Adapter(adapter.folder, self.pinned(adapter.base))

    def model_inputs(self, key: str, model: ModelSpec | None) -> dict[str, Any]:
        """Return, under `key`, the hashes of a local model or tokenizer, or the commit on the hub.

        Nothing is returned for None, a path that does not exist, or a commit that is unknown. For a
        random model, its tokenizer counts; for an adapter, its base as well, under another key.

        Raises:
            ModelError: the model is a folder without files.
        """
        name = model.tokenizer if isinstance(model, RandomModel) else model
        if name is None:
            return {}
        if origins.is_hub_name(name):
            revision = self.hub_revision(name)
            return {key: revision} if revision else {}
        path = name if is_uri(name) else str(origins.local_path(name))
        if not is_uri(path) and not Path(path).exists():
            return {}
        hashes = self.folder_hashes(path)
        if not hashes:
            raise ModelError(
                f"{key.removesuffix(' contents')}: {path} has no config.json and no "
                "tokenizer.json: there are no files in it."
            )
        inputs = {key: hashes}
        if (adapter := adapters.adapter_of(name)) is not None:
            inputs |= self.model_inputs(base_key(key), adapter.base)
        return inputs

    def template_inputs(self, data: DataConfig) -> dict[str, Any]:
        """Return the hashes of templates that are a user's files; nothing for named templates."""
        return {
            f"data.{key} contents": self._template_hashes(name)
            for key, name in data.template_files.items()
            if Location.of(name).is_file()
        }

    def _template_hashes(self, name: str) -> list[str]:
        if not is_uri(name):
            return self.folder_hashes(name)
        return [f". {self.file_hash(input_files.InputFile(name, 0, ''))}"]

    def folder_hashes(self, path: str) -> list[str]:
        """Return "NAME HASH" for every file below a folder, or for one local file."""
        if is_uri(path):
            folder = Location.of(path)
            stored = [
                (name, input_files.InputFile(f"{folder.uri}/{name}", size, date))
                for name, size, date in folder.files()
            ]
            return [f"{name} {self.file_hash(file)}" for name, file in stored]
        root = Path(path).expanduser()
        files = [root] if root.is_file() else sorted(_files_below(root))
        return [f"{item.relative_to(root)} {self.file_hash(_input_file(item))}" for item in files]


def base_key(key: str) -> str:
    """Return the key of the base of an adapter, whose own contents have the key `key`."""
    return f"{key.removesuffix(' contents')} base contents"


def _files_below(root: Path) -> Iterator[Path]:
    """Yield every file below a local folder, also through links to files and to folders.

    A link to a folder that it is in itself is not followed.
    """
    ancestors = {str(root): [os.path.realpath(root)]}
    for folder, names, files in os.walk(root, followlinks=True):
        chain = ancestors.pop(folder)
        yield from (path for name in files if (path := Path(folder, name)).is_file())
        targets = {name: os.path.realpath(os.path.join(folder, name)) for name in names}
        # `os.walk` goes on into the names that are left here.
        names[:] = [name for name in names if targets[name] not in chain]
        for name in names:
            ancestors[os.path.join(folder, name)] = [*chain, targets[name]]


def _without_links(uri: str) -> str:
    """Return the path of a local file itself: a link may lead to another of its size and date."""
    return uri if is_uri(uri) else os.path.realpath(uri)


def _hashed(stopped: threading.Event, file: input_files.InputFile) -> tuple[bool, str]:
    """Return whether a file is settled, and the hash of its content, unless `stopped` is set."""
    settled = _is_settled(file)
    return settled, input_files.content_hash(file, stopped.is_set)


def _is_settled(file: input_files.InputFile) -> bool:
    """Tell whether a file was written long enough ago for its date to change with its content."""
    written = int(file.modified) / 1e9 if file.modified.isdecimal() else 0.0
    return time.time() - written > SETTLED_SECONDS


def _input_file(path: Path) -> input_files.InputFile:
    """Return a local file with its size and modification time."""
    status = path.stat()
    return input_files.InputFile(str(path), status.st_size, str(status.st_mtime_ns))
