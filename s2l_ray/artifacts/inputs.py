"""Hashes of input files and revisions of models, cached from one command to the next."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s2l_ray.config.sections import NAMED_TEMPLATES, ModelSpec, RandomModel
from s2l_ray.models import origins
from s2l_ray.storage import input_files
from s2l_ray.storage.location import Location, is_uri

CONTENTS = "contents.json"
"""The file of the cache in the folder of a run."""


@dataclass
class Contents:
    """SHA-256 hashes of input files, and commits of models on the Hugging Face hub.

    A file is hashed again only when its size or modification time has changed. A data set on the
    hub has no modification time, so its revision is asked for every time.
    """

    cache: dict[str, list[Any]] = field(default_factory=dict)
    """URI -> size in bytes, modification time, hash; "model NAME" -> 0, "", commit."""
    unknown: set[str] = field(default_factory=set)
    """Models on the hub whose commit could not be looked up."""

    @classmethod
    def load(cls, run: Location) -> "Contents":
        """Return the contents cached in the folder of a run; none if there is no cache."""
        file = run / CONTENTS
        return cls(file.read_json() if file.exists() else {})

    def file_hash(self, file: input_files.InputFile) -> str:
        """Return the hash of a file's content."""
        cached = self.cache.get(file.uri)
        if cached is None or not file.modified or cached[:2] != [file.size, file.modified]:
            cached = [file.size, file.modified, input_files.content_hash(file)]
            self.cache[file.uri] = cached
        return str(cached[2])

    def file_hashes(self, files: Sequence[input_files.InputFile]) -> list[str]:
        """Return the hash of each file, in order."""
        return [self.file_hash(file) for file in files]

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

    def pinned(self, model: Any) -> Any:
        """Return the same model or tokenizer; the name of one on the hub gets its known commit."""
        if isinstance(model, RandomModel):
            return model.model_copy(update={"tokenizer": self.pinned(model.tokenizer)})
        if model is None or not origins.is_hub_name(model):
            return model
        revision = self.hub_revision(model)
        return origins.pinned(model, revision) if revision else model

    def model_inputs(self, key: str, model: ModelSpec | None) -> dict[str, Any]:
        """Return, under `key`, the hashes of a local model or tokenizer, or the commit on the hub.

        Nothing is returned for None, a path that does not exist, or a commit that is unknown. For a
        random model, its tokenizer counts.
        """
        name = model.tokenizer if isinstance(model, RandomModel) else model
        if name is None:
            return {}
        if origins.is_hub_name(name):
            revision = self.hub_revision(name)
            return {key: revision} if revision else {}
        exists = is_uri(name) or Path(name).expanduser().exists()
        return {key: self.folder_hashes(name)} if exists else {}

    def template_inputs(self, template: str) -> dict[str, Any]:
        """Return the hash of a template that is a user's file; nothing for a named template."""
        if template in NAMED_TEMPLATES or not Path(template).is_file():
            return {}
        return {"data.template contents": self.folder_hashes(template)}

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
        files = [root] if root.is_file() else sorted(i for i in root.rglob("*") if i.is_file())
        return [f"{item.relative_to(root)} {self.file_hash(_input_file(item))}" for item in files]


def _input_file(path: Path) -> input_files.InputFile:
    """Return a local file with its size and modification time."""
    status = path.stat()
    return input_files.InputFile(str(path), status.st_size, str(status.st_mtime_ns))
