"""The extensions of a run: which there are, and the parts of the pool that they enlarge.

An extension is new data that was scored at the run's checkpoints and placed in its clusters. It
lies in `extensions/NNN-HASH/`: a number that tells their order, and a hash of the data's content.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from s2l_ray.artifacts.manifest import Manifest, Parts, StageDir, fingerprint
from s2l_ray.errors import DataError, first
from s2l_ray.pipeline.steps import FOLDERS
from s2l_ray.storage.location import Location

FOLDER = "extensions"
SETTINGS = "settings.json"
UPDATED = "update_centroids"
"""A key of that file, and an input of clusters whose centroids were moved."""
HOW_IT_WENT = ("notes", "num_losses_before", "num_query_rows", "rejected_query_rows")
"""What a summary says that is no part of what came out."""
_NAME = re.compile(r"([0-9]{3,})-([0-9a-f]{16})")


@dataclass(frozen=True)
class Extension:
    """One extension, its rows prepared or not."""

    run: Location
    number: int
    shas: tuple[str, ...]
    """Hashes of the files that its rows came from, in ascending order."""

    @property
    def name(self) -> str:
        return f"{self.number:03d}-{data_hash(self.shas)}"

    def folder(self, stage: str) -> Location:
        return self.run / FOLDER / self.name / FOLDERS.get(stage, stage)

    def summary(self, stage: str) -> dict[str, Any] | None:
        """What its finished stage says of itself; None of one that is not finished."""
        manifest = _manifest(self, stage)
        return manifest.summary if manifest else None

    @property
    def strata(self) -> dict[str, int]:
        """Its prepared rows by stratum."""
        prepared = self.summary("prepare")
        return prepared["strata"] if prepared else {}

    @property
    def moves_centroids(self) -> bool:
        """Whether its clusters are to be moved, as was once asked for."""
        return self._settings.exists() and bool(self._settings.read_json().get(UPDATED))

    def keep_moving(self) -> None:
        """From now on `moves_centroids`, whatever is interrupted or placed again."""
        self._settings.write_json({UPDATED: True})

    def stop_moving(self) -> None:
        """As if it had never been asked for."""
        self._settings.remove()

    @property
    def _settings(self) -> Location:
        return self.run / FOLDER / self.name / SETTINGS

    @property
    def has_moved(self) -> bool:
        """Whether its finished clusters hold the rows of all before it, in moved clusters."""
        manifest = _manifest(self, "clusters")
        return manifest is not None and manifest.inputs.get(UPDATED, False)

    @property
    def is_empty(self) -> bool:
        """Whether all its rows turned out to be known, or to be of no use."""
        prepared = self.summary("prepare")
        return prepared is not None and not prepared["kept"]


def data_hash(shas: tuple[str, ...]) -> str:
    return fingerprint({"data": sorted(shas)})


def is_name(name: str) -> bool:
    """Whether a folder of that name is one of an extension."""
    return _NAME.fullmatch(name) is not None


def of_run(run: Location) -> list[Extension]:
    """Those whose rows are prepared, in their order."""
    found = []
    for name in (run / FOLDER).names():
        matched = _NAME.fullmatch(name)
        if matched is None:
            continue
        place = run / FOLDER / name / FOLDERS["prepare"]
        manifest = StageDir(place, "prepare", {}).manifest()
        if manifest is not None:
            found.append(Extension(run, int(matched[1]), tuple(manifest.inputs["data"])))
    return sorted(found, key=lambda extension: extension.number)


def strata(run: Location) -> set[str]:
    """The strata of all rows that extensions prepared, in the run or not."""
    return {name for item in of_run(run) for name in item.strata}


def outcome(run: Location, manifest: Manifest) -> str:
    """16 hex digits that change with what a stage of `run` came out as, even of equal inputs.

    Trainings do not repeat themselves to the last bit. Another one shows in the mean losses that
    trajectories sum up, and in the centroids.
    """
    told = {key: value for key, value in manifest.summary.items() if key not in HOW_IT_WENT}
    known = {"inputs": manifest.fingerprint, "summary": told}
    if manifest.stage != "clusters":
        return fingerprint(known)
    place = run / "clusters" / "centroids.npy"
    content = place.read_bytes() if place.exists() else b""
    return fingerprint({**known, "centroids": hashlib.sha256(content).hexdigest()})


@dataclass(frozen=True)
class Pool:
    """A clustered pool: its labels, losses and original rows, and what enlarged it."""

    clusters: Parts
    trajectories: Parts
    rows: Parts
    extensions: list[Extension]

    @property
    def suffix(self) -> str:
        """Of what comes from this pool: the last extension's number; none for a run by itself."""
        return f"-with-{self.extensions[-1].number:03d}" if self.extensions else ""


def pool(run: Location, extensions: list[Extension]) -> Pool:
    """The rows of `run` and, after them, those of its extensions.

    Labels are those of the last extension that moved the centroids, and of what came after it.
    """
    folders = [run / "clusters", *(item.folder("clusters") for item in extensions)]
    start = max((n for n, item in enumerate(extensions, 1) if item.has_moved), default=0)
    return Pool(
        Parts(folders[start], more=tuple(folders[start + 1 :])),
        Parts(run / "trajectories", more=tuple(item.folder("trajectories") for item in extensions)),
        Parts(run / "prepared", "rows", tuple(item.folder("prepare") for item in extensions)),
        extensions,
    )


def extended_pool(run: Location) -> Pool:
    """The pool of `run` with every extension that has new rows.

    Raises:
        DataError: an extension is not finished, or does not fit the run or those before it.
    """
    found = [item for item in of_run(run) if not item.is_empty]
    clusters = StageDir(run / "clusters", "clusters", {}).manifest()
    assert clusters is not None, "the caller has looked"
    _check_complete(run, found)
    stages = [_manifest(item, "clusters") for item in found]
    placed = [manifest.fingerprint if manifest else "" for manifest in stages]
    now = outcome(run, clusters) if found else ""
    unfit = [
        item.name
        for number, (item, manifest) in enumerate(zip(found, stages, strict=True))
        if manifest is None
        or manifest.inputs["clusters of the run"] != now
        or manifest.inputs["earlier"] != placed[:number]
        or item.has_moved != item.moves_centroids
    ]
    if unfit:
        raise DataError(
            f"{len(unfit)} of {len(found)} extension(s) of {run} are not finished, were placed in "
            "clusters that are no more, or do not move the centroids as their settings.json says "
            f"(first: {first(unfit)}). Run `s2l extend {run}`, which places them again or says why "
            "they have to be made anew (remove settings.json first where centroids are to stay), "
            "or leave extensions out with --without-extensions."
        )
    return pool(run, found)


def _check_complete(run: Location, found: list[Extension]) -> None:
    """Refuse extensions without others that they came after: what those had was left out."""
    prints: list[str] = []
    unfit = []
    for item in found:
        prepared = _manifest(item, "prepare")
        assert prepared is not None, "of_run has looked"
        if prepared.inputs["earlier"] != prints:
            unfit.append(item.name)
        prints.append(prepared.fingerprint)
    if unfit:
        raise DataError(
            f"{len(unfit)} of {len(found)} extension(s) of {run} came after others that are gone "
            f"or have changed (first: {first(unfit)}). Restore {run / FOLDER} as it was, remove "
            "these and extend the run with their data again, or leave all out with "
            "--without-extensions."
        )


def _manifest(extension: Extension, stage: str) -> Manifest | None:
    return StageDir(extension.folder(stage), stage, {}).manifest()
