"""What input files hold, as hashes that are remembered from one command to the next."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s2l_ray.config.sections import NAMED_TEMPLATES, ModelSpec, RandomModel
from s2l_ray.models import origins
from s2l_ray.storage import input_files
from s2l_ray.storage.location import Location, is_uri

CONTENTS = "contents.json"


@dataclass
class Contents:
    """SHA-256 of input files, hashed again only when a file's size or date has changed.

    What has no date (a data set on a hub) is asked for its revision every time.
    """

    cache: dict[str, list[Any]] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    """Models on the hub whose revision could not be found out."""

    @classmethod
    def of_run(cls, run: Location) -> "Contents":
        place = run / CONTENTS
        return cls(place.read_json() if place.exists() else {})

    def sha(self, file: input_files.InputFile) -> str:
        known = self.cache.get(file.uri)
        if known is None or not file.modified or known[:2] != [file.size, file.modified]:
            known = [file.size, file.modified, input_files.content_sha(file)]
            self.cache[file.uri] = known
        return str(known[2])

    def shas(self, files: Sequence[input_files.InputFile]) -> list[str]:
        return [self.sha(file) for file in files]

    def hub_revision(self, name: str) -> str | None:
        """The commit of a model on the hub: asked for once, so that a run keeps to one version."""
        key = f"model {name}"
        if key not in self.cache and name not in self.unknown:
            revision = origins.hub_revision(name)
            if revision is None:
                self.unknown.add(name)
            else:
                self.cache[key] = [0, "", revision]
        return None if name in self.unknown else str(self.cache[key][2])

    def pinned(self, model: Any) -> Any:
        """The same model or tokenizer, one on the hub at its revision if that is known."""
        if isinstance(model, RandomModel):
            return model.model_copy(update={"tokenizer": self.pinned(model.tokenizer)})
        if model is None or not origins.is_hub_name(model):
            return model
        revision = self.hub_revision(model)
        return origins.pinned(model, revision) if revision else model

    def of_model(self, key: str, model: ModelSpec | None) -> dict[str, Any]:
        """The contents of a model or tokenizer under `key`; of one on the hub, its revision."""
        name = model.tokenizer if isinstance(model, RandomModel) else model
        if name is None:
            return {}
        if origins.is_hub_name(name):
            revision = self.hub_revision(name)
            return {key: revision} if revision else {}
        found = is_uri(name) or Path(name).expanduser().exists()
        return {key: self.of_folder(name)} if found else {}

    def of_template(self, template: str) -> dict[str, Any]:
        """The text of a template that is a user's file."""
        if template in NAMED_TEMPLATES or not Path(template).is_file():
            return {}
        return {"data.template contents": self.of_folder(template)}

    def of_folder(self, path: str) -> list[str]:
        """Names and contents of all files below a folder, or of one local file."""
        if is_uri(path):
            place = Location.of(path)
            stored = [
                (name, input_files.InputFile(f"{place.uri}/{name}", size, date))
                for name, size, date in place.files()
            ]
            return [f"{name} {self.sha(file)}" for name, file in stored]
        root = Path(path).expanduser()
        files = [root] if root.is_file() else sorted(i for i in root.rglob("*") if i.is_file())
        return [f"{item.relative_to(root)} {self.sha(_input_file(item))}" for item in files]


def _input_file(path: Path) -> input_files.InputFile:
    status = path.stat()
    return input_files.InputFile(str(path), status.st_size, str(status.st_mtime_ns))
