"""The extensions of a run: which there are, and the parts of the pool that they enlarge.

An extension is new data that was scored at the run's checkpoints and placed in its clusters. It
lies in `extensions/NNN-HASH/`: a number that tells their order, and a hash of the data's content.
"""

import re
from dataclasses import dataclass
from typing import Any

from s2l_ray.artifacts import Parts, StageDir, fingerprint
from s2l_ray.errors import DataError, first
from s2l_ray.steps import FOLDERS
from s2l_ray.storage import Location

FOLDER = "extensions"
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
        manifest = StageDir(self.folder(stage), stage, {}).manifest()
        return manifest.summary if manifest else None

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
    """The rows of `run` and, after them, those of its extensions."""
    return Pool(
        Parts(run / "clusters", more=tuple(item.folder("clusters") for item in extensions)),
        Parts(run / "trajectories", more=tuple(item.folder("trajectories") for item in extensions)),
        Parts(run / "prepared", "rows", tuple(item.folder("prepare") for item in extensions)),
        extensions,
    )


def extended_pool(run: Location) -> Pool:
    """The pool of `run` with every extension that has new rows.

    Raises:
        DataError: an extension is not finished, or was placed in clusters that are no more.
    """
    found = [item for item in of_run(run) if not item.is_empty]
    clusters = StageDir(run / "clusters", "clusters", {}).manifest()
    assert clusters is not None, "the caller has looked"
    unfit = []
    for item in found:
        placed = StageDir(item.folder("clusters"), "clusters", {}).manifest()
        if placed is None or placed.inputs["clusters of the run"] != clusters.fingerprint:
            unfit.append(item.name)
    if unfit:
        raise DataError(
            f"{len(unfit)} of {len(found)} extension(s) of {run} are not finished, or were placed "
            f"in clusters that are no more (first: {first(unfit)}). Run `s2l extend {run}`, which "
            "needs no data for it, or leave them out with --without-extensions."
        )
    return pool(run, found)
