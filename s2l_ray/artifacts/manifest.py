"""What stages leave behind: folders of parquet parts with a manifest, written last.

A manifest lists every input that shaped the stage (configuration keys, contents of files, the
fingerprints of the stages before it). A stage is finished when its manifest is there, and current
when the inputs in it are those of today.
"""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from s2l_ray.config.section import Section, default_of
from s2l_ray.errors import StorageError
from s2l_ray.storage.location import Location

MANIFEST = "_manifest.json"
"""Readers of a folder of Parquet files skip names that begin with an underscore."""
OLD_MANIFEST = "manifest.json"
"""The name that runs of version 0.1 have."""
SUBSET = "subset"
"""The folder of the selected rows; older runs have them beside the ranking."""
RANKING, REJECTED_ROWS = "ranking.parquet", "rejected.parquet"
"""The files of all examples in order of rank, and of input rows that cannot be used."""
CENTROIDS, OLD_CENTROIDS = "_centroids.npy", "centroids.npy"
UNFINISHED = "unfinished.json"
SCRATCH = ("staged", "units", "resume", "attempts")
"""Folders that a stage needs only until it is finished."""
EMBEDDINGS = "embeddings"
"""What the names of embedding files begin with, which lie beside the parts of trajectories."""
NORMS = "error_norms"
"""The same of files with error norms, for EL2N."""
QUERIES = "queries"
"""The folder beside them that has the embeddings of queries."""
RUN_MARK = "run.json"
VERSIONED = ("s2l_ray", "ray", "torch", "transformers", "deepspeed", "numpy", "pyarrow")


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """16 hex digits that change with any input; a key without a value is as good as none."""
    given = {key: value for key, value in inputs.items() if value is not None}
    text = json.dumps(given, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def section_inputs(name: str, section: Section) -> dict[str, Any]:
    """`name.key` -> value for every key of `section` that shapes results."""
    unused = {key for key in section.added if getattr(section, key) == default_of(section, key)}
    values = section.model_dump(mode="json", exclude=set(section.operational) | unused)
    return {f"{name}.{key}": value for key, value in values.items()}


@dataclass(frozen=True)
class Manifest:
    """What a finished stage says of itself."""

    stage: str
    fingerprint: str
    inputs: dict[str, Any]
    summary: dict[str, Any]
    seconds: float
    finished: str
    versions: dict[str, str]


def read_manifest(folder: Location) -> Manifest | None:
    """Return the manifest of the finished stage in `folder`, whatever its inputs were."""
    for name in (MANIFEST, OLD_MANIFEST):
        if (folder / name).exists():
            return Manifest(**(folder / name).read_json())
    return None


def centroids_file(folder: Location) -> Location:
    """Return the file of the centroids in the folder of finished clusters."""
    old = folder / OLD_CENTROIDS
    return old if old.exists() else folder / CENTROIDS


def subset_file(parent: Location, suffix: str) -> Location:
    """Return the file of the selected rows of the run, arm or extension in `parent`."""
    old = parent / "selection" / f"selected.{suffix}"
    return old if old.exists() else parent / SUBSET / f"selected.{suffix}"


@dataclass(frozen=True)
class StageDir:
    """The folder of one stage, and the inputs that its content must come from.

    Attributes:
        location: the folder.
        stage: the name of the stage.
        inputs: all that shapes the result.
        further: names of folders beside this one that the stage fills as well.
        advice_on_memory: what to change when a worker had too little memory.
    """

    location: Location
    stage: str
    inputs: dict[str, Any]
    further: tuple[str, ...] = ()
    advice_on_memory: str = ""

    @property
    def fingerprint(self) -> str:
        """A hash of the inputs."""
        return fingerprint(self.inputs)

    def manifest(self) -> Manifest | None:
        """Return the manifest of the finished stage that lies here, whatever its inputs were."""
        return read_manifest(self.location)

    def beside(self, name: str) -> Location:
        """Return a further folder."""
        assert name in self.further, name
        return self.location.parent / name

    def remove(self) -> None:
        """Remove this folder and the further ones."""
        for location in (self.location, *(self.location.parent / name for name in self.further)):
            location.remove()

    def forget(self) -> None:
        """Remove the manifest: what lies here no longer counts as finished."""
        for name in (MANIFEST, OLD_MANIFEST):
            (self.location / name).remove()

    def changed_keys(self) -> list[str]:
        """Inputs that differ from those of the finished stage; empty when it is current."""
        manifest = self.manifest()
        before = manifest.inputs if manifest else {}
        keys = sorted(before.keys() | self.inputs.keys())
        return [key for key in keys if before.get(key) != self.inputs.get(key)]

    def is_current(self) -> bool:
        manifest = self.manifest()
        return manifest is not None and manifest.fingerprint == self.fingerprint

    def is_new(self) -> bool:
        """Whether no interrupted run with the same inputs left anything to go on from."""
        mark = self.location / UNFINISHED
        same = mark.exists() and mark.read_json()["fingerprint"] == self.fingerprint
        return not same or self.manifest() is not None

    def begin(self) -> None:
        """Make the folder ready: what an interrupted run with the same inputs left is kept."""
        if self.is_new():
            self.remove()
            mark = self.location / UNFINISHED
            mark.write_json({"fingerprint": self.fingerprint, "inputs": self.inputs})

    def finish(self, summary: dict[str, Any], seconds: float) -> Manifest:
        """Write the manifest: from now on this stage is finished."""
        manifest = Manifest(
            stage=self.stage,
            fingerprint=self.fingerprint,
            inputs=self.inputs,
            summary=summary,
            seconds=round(seconds, 3),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=_versions(),
        )
        (self.location / MANIFEST).write_json(asdict(manifest))
        # Only now: whoever is stopped before has not lost what a restart goes on from.
        for name in (*SCRATCH, UNFINISHED):
            (self.location / name).remove()
        return manifest


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in VERSIONED:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def check_run(folder: Location) -> None:
    """Refuse a folder that holds something other than a run of ours; writes nothing.

    Raises:
        StorageError: the folder is not empty and no run of ours.
    """
    names = folder.names()
    if names and RUN_MARK not in names:
        raise StorageError(
            f"{folder} is not a run of s2l_ray: it holds {len(names)} other entries (first: "
            f"{', '.join(names[:3])}). Give a run_dir that is new or empty."
        )


def open_run(folder: Location) -> None:
    """Mark `folder` as a run's, after `check_run`."""
    check_run(folder)
    mark = folder / RUN_MARK
    if not mark.exists():
        mark.write_json(
            {"program": "s2l_ray", "created": datetime.now(UTC).isoformat(timespec="seconds")}
        )
