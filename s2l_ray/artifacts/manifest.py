"""Manifests: the file that a stage writes last, and that says what its results came from.

A manifest lists every input that shaped the results: keys of the configuration, contents of files
and the fingerprints of the stages before it. A stage is finished once its manifest exists. It is
current while the inputs in the manifest equal those of the present configuration and data.
"""

import hashlib
import importlib.metadata
import json
import platform
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from s2l_ray.artifacts.identity import identity
from s2l_ray.config.section import Section, default_of
from s2l_ray.errors import StorageError
from s2l_ray.storage import small_files
from s2l_ray.storage.location import Location
from s2l_ray.storage.walk import RUN_MARK

MANIFEST = "_manifest.json"
"""The underscore makes readers of a folder of Parquet files skip the manifest."""
OLD_MANIFEST = "manifest.json"
"""The name in runs of version 0.1."""
SUBSET = "subset"
"""The folder of the selected rows. Older runs have them in `selection/`, next to the ranking."""
SUBSETS = "subsets"
"""The folder of further subsets, each in a folder of its own. Older runs have files in it."""
RANKING, REJECTED_ROWS = "ranking.parquet", "rejected.parquet"
"""The files of all examples in order of rank, and of input rows that cannot be used."""
CONTAMINATED_ROWS, REPEATED_ROWS = "contaminated.parquet", "near_duplicates.parquet"
"""The lists of rows that hold a prompt of an evaluation set, and that nearly repeat another row."""
CENTROIDS, OLD_CENTROIDS = "_centroids.npy", "centroids.npy"
STRATA = "_strata.npy"
"""The centroids of strata that were found in embeddings."""
UNFINISHED = "unfinished.json"
"""The inputs of a stage that has begun; removed when it is finished."""
OUTDATED = "_outdated.json"
"""The fingerprints, of this stage, for which its finished result no longer counts: an earlier stage
is done again. The underscore is for readers of Parquet, as that of the manifest."""
SCRATCH = ("staged", "units", "resume", "attempts")
"""Folders that a stage needs only until it is finished; then they are removed."""
EMBEDDINGS = "embeddings"
"""The folder of embeddings, next to the trajectories, and the prefix of its files."""
NORMS = "error_norms"
"""The folder of error norms, for EL2N, next to the trajectories, and the prefix of its files."""
QUERIES = "queries"
"""The folder with the losses and embeddings of queries, next to the trajectories."""
SUPPLEMENT = "supplement"
"""The key of a summary with the fingerprint and the notes of a stage's supplement."""
_PART = re.compile(r"(\w+)-[0-9]{6,}\.parquet")
VERSIONED = ("s2l_ray", "ray", "torch", "transformers", "deepspeed", "numpy", "pyarrow", "rensa")
"""Packages whose versions a manifest records."""


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that change with any input.

    A key whose value is None changes nothing.
    """
    given = {key: value for key, value in inputs.items() if value is not None}
    text = json.dumps(given, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def section_inputs(name: str, section: Section) -> dict[str, Any]:
    """Return `name.key` -> value for every key of `section` that shapes results."""
    return {f"{name}.{key}": value for key, value in section_values(section).items()}


def section_values(section: Section) -> dict[str, Any]:
    """Return the value of every key of `section` that shapes results.

    Operational keys are left out. So are keys that a later version added, while they change
    nothing: fingerprints of older runs stay as they are.
    """
    neutral = {key: default_of(section, key) for key in section.added} | dict(section.as_before)
    unused = {key for key, value in neutral.items() if getattr(section, key) == value}
    return section.model_dump(mode="json", exclude=set(section.operational) | unused)


@dataclass(frozen=True)
class Manifest:
    """The record of a finished stage.

    Attributes:
        stage: name of the stage.
        fingerprint: hash of the inputs.
        inputs: all that shaped the results.
        summary: counts and other facts about the results.
        seconds: how long the stage took.
        finished: date and time of its end, in UTC.
        versions: of Python and of packages.
        parts: prefix -> number of the files PREFIX-NUMBER.parquet; older versions recorded none.
    """

    stage: str
    fingerprint: str
    inputs: dict[str, Any]
    summary: dict[str, Any]
    seconds: float
    finished: str
    versions: dict[str, str]
    parts: dict[str, int] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """Return what the stage said beside its line: what its user may want to act on."""
        return [
            *self.summary.get("notes", []),
            *self.summary.get(SUPPLEMENT, {}).get("notes", []),
        ]


_MANIFESTS = TypeAdapter(Manifest)


def read_manifest(folder: Location) -> Manifest | None:
    """Return the manifest in `folder`, whatever its inputs are; None if there is none."""
    for name in (MANIFEST, OLD_MANIFEST):
        if (content := small_files.read(folder / name)) is not None:
            return _manifest(content, folder / name)
    return None


def _manifest(content: Any, file: Location) -> Manifest:
    """Return the manifest that JSON holds; a newer version may write more."""
    try:
        return _MANIFESTS.validate_python(content)
    except ValidationError:
        raise StorageError(
            f"{file} is not a manifest of s2l_ray. Bring it back as it was, or remove it: the "
            "stage is then done again."
        ) from None


def outdated_fingerprints(folder: Location) -> set[str]:
    """Return the fingerprints for which the finished stage in `folder` does not count."""
    return set(small_files.read(folder / OUTDATED) or [])


def centroids_file(folder: Location) -> Location:
    """Return the file of the centroids in the folder of finished clusters."""
    return _first_there(folder / CENTROIDS, folder / OLD_CENTROIDS)


def pass_folder(losses: Location, name: str) -> Location:
    """Return the folder of the embeddings or error norms from the passes that left `losses`.

    Args:
        losses: the folder of the trajectories; in runs of version 0.1 it has these files, too.
        name: EMBEDDINGS or NORMS.
    """
    own = losses.parent / name
    return own if own.names() else losses


def query_embeddings(losses: Location) -> Location:
    """Return the folder of the embeddings of queries of the run whose trajectories these are."""
    own, old = losses.parent / QUERIES / EMBEDDINGS, losses / QUERIES
    return old if not own.names() and old.names() else own


def subset_file(parent: Location, suffix: str) -> Location:
    """Return the file of the selected rows of the run, arm or extension in `parent`."""
    name = f"selected.{suffix}"
    return _first_there(parent / SUBSET / name, parent / "selection" / name)


def _first_there(new: Location, old: Location) -> Location:
    """Return the file under the name of runs of version 0.1 if it has only that one."""
    return old if not new.is_file() and old.is_file() else new


@dataclass(frozen=True)
class StageDir:
    """The folder of one stage, and the inputs that its content must come from.

    Attributes:
        location: the folder.
        stage: the name of the stage.
        inputs: all that shapes the result.
        further: names of further folders, in the same parent, that the stage fills as well.
        advice_on_memory: what to change when a worker had too little memory.
    """

    location: Location
    stage: str
    inputs: dict[str, Any]
    further: tuple[str, ...] = ()
    advice_on_memory: str = ""

    @property
    def fingerprint(self) -> str:
        """Return a hash of the inputs."""
        return fingerprint(self.inputs)

    def manifest(self) -> Manifest | None:
        """Return the manifest in this folder, whatever its inputs are; None if there is none."""
        return read_manifest(self.location)

    def further_folder(self, name: str) -> Location:
        """Return one of the further folders."""
        assert name in self.further, name
        return self.location.parent / name

    def remove(self) -> None:
        """Remove this folder and the further ones."""
        for location in (self.location, *(self.location.parent / name for name in self.further)):
            small_files.remove(location)

    def forget(self) -> None:
        """Remove the manifest, so that the stage no longer counts as finished."""
        # The newer name goes last: where an interruption leaves one, it is the one that counts.
        for name in (OLD_MANIFEST, MANIFEST):
            small_files.remove(self.location / name)

    def identified(self) -> "StageDir":
        """Return this folder with inputs that do not change with the spelling of a path.

        Older versions recorded spellings. A result of the same inputs, finished or begun, keeps
        what is recorded, and with it its fingerprint.
        """
        wanted, manifest = identity(self.inputs), self.manifest()
        begun = small_files.read(self.location / UNFINISHED) if manifest is None else None
        recorded = manifest.inputs if manifest else (begun or {}).get("inputs", {})
        is_same = fingerprint(identity(recorded)) == fingerprint(wanted)
        return replace(self, inputs=recorded if is_same else wanted)

    def changed_keys(self) -> list[str]:
        """Return the inputs that differ from those in the manifest; empty if it is current."""
        manifest = self.manifest()
        before, now = identity(manifest.inputs if manifest else {}), identity(self.inputs)
        return [key for key in sorted(before | now) if before.get(key) != now.get(key)]

    def is_current(self) -> bool:
        """Tell whether the stage is finished, and came from these inputs."""
        manifest = self.manifest()
        if manifest is None or manifest.fingerprint != self.fingerprint:
            return False
        return not self.is_outdated()

    def is_outdated(self) -> bool:
        """Tell whether it is settled that the stage is to be done (again) with these inputs."""
        return self.fingerprint in outdated_fingerprints(self.location)

    def outdate(self, fingerprints: Collection[str]) -> None:
        """Note that the finished result does not count for these fingerprints of the stage."""
        known = outdated_fingerprints(self.location)
        if not known.issuperset(fingerprints):
            small_files.write(self.location / OUTDATED, sorted(known.union(fingerprints)))

    def is_new(self) -> bool:
        """Tell whether the stage starts anew.

        It does not where an interrupted run with the same inputs left work to go on from.
        """
        begun = small_files.read(self.location / UNFINISHED)
        same = begun is not None and begun["fingerprint"] == self.fingerprint
        return not same or self.manifest() is not None or self._is_old_form()

    def _is_old_form(self) -> bool:
        """Tell whether version 0.1 began it, with files that now have other names or folders."""
        beginnings = (OLD_CENTROIDS, "selected.", *self.further)
        return any(name.startswith(beginnings) for name in self.location.names())

    def begin(self) -> None:
        """Make the folder ready for work.

        Work of an interrupted run with the same inputs stays; anything else is removed.
        """
        if self.is_new():
            self._clear()

    def _clear(self) -> None:
        """Remove all results; what is left counts as unfinished, wherever this is interrupted."""
        mark = self.location / UNFINISHED
        if self.manifest() is not None:
            # Of no fingerprint: nobody goes on from the old results.
            small_files.write(mark, {"fingerprint": "", "inputs": {}})
            self.forget()
        self.remove()
        small_files.write(mark, {"fingerprint": self.fingerprint, "inputs": self.inputs})

    def replace_by(self, other: "StageDir") -> None:
        """Put the finished result of `other`, from the same inputs, in the place of this one.

        It has no further folders; those of this one are removed.
        After an interruption, the same call goes on: `other` is whole until all of it is here.
        """
        assert other.is_current(), self.stage
        self._clear()
        other.location.move_to(self.location, last=MANIFEST)
        for moved in (other.location, self.location):
            small_files.forget(moved)
        small_files.remove(self.location / UNFINISHED)

    def finish(self, summary: dict[str, Any], seconds: float) -> Manifest:
        """Write the manifest; from then on this stage is finished."""
        manifest = Manifest(
            stage=self.stage,
            fingerprint=self.fingerprint,
            inputs=self.inputs,
            summary=summary,
            seconds=round(seconds, 3),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=_versions(),
            parts=_num_parts(self.location.names()),
        )
        small_files.write(self.location / MANIFEST, asdict(manifest))
        # Not before the manifest is there: a restart goes on from these folders.
        small_files.remove_of(self.location, *SCRATCH, UNFINISHED, OLD_MANIFEST)
        return manifest

    def replace_summary(self, summary: dict[str, Any]) -> Manifest:
        """Write the manifest of this finished stage again, with another summary."""
        manifest = self.manifest()
        assert manifest is not None, f"{self.location} is not finished"
        changed = replace(manifest, summary=summary)
        small_files.write(self.location / MANIFEST, asdict(changed))
        small_files.remove_of(self.location, *SCRATCH)
        return changed


def _num_parts(names: Collection[str]) -> dict[str, int]:
    """Return how many of these files are parts, by prefix."""
    found = (_PART.fullmatch(name) for name in sorted(names))
    return dict(Counter(matched[1] for matched in found if matched))


@cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in VERSIONED:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def check_run(folder: Location) -> bool:
    """Tell whether `folder` is a run of s2l_ray; False if it is empty. Nothing is written.

    Raises:
        StorageError: the folder is not empty, and is no run.
    """
    if small_files.read(folder / RUN_MARK) is not None:
        return True
    names = folder.names()
    if names and RUN_MARK not in names:
        raise StorageError(
            f"{folder} is not a run of s2l_ray: it holds {len(names)} other entries (first: "
            f"{', '.join(names[:3])}). Give a run_dir that is new or empty."
        )
    return bool(names)


def open_run(folder: Location) -> None:
    """Check `folder` as `check_run` does, and mark it as a run."""
    if not check_run(folder):
        (folder / RUN_MARK).write_json(
            {"program": "s2l_ray", "created": datetime.now(UTC).isoformat(timespec="seconds")}
        )
