"""The extensions of a run: which there are, and the parts of the pool that they enlarge.

An extension is new data that was scored at the run's checkpoints and placed in its clusters. It
lies in `extensions/NNN-HASH/`: a number that tells their order, and a hash of the data's content.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from s2l_ray.artifacts.manifest import Manifest, centroids_file, fingerprint, read_manifest
from s2l_ray.artifacts.tables import Parts
from s2l_ray.config.sections import RunConfig
from s2l_ray.errors import DataError, first
from s2l_ray.storage.location import Location

FOLDER = "extensions"
SETTINGS = "settings.json"
UPDATED = "update_centroids"
"""A key of that file, and an input of clusters whose centroids were moved."""
HOW_IT_WENT = ("notes", "num_losses_before", "num_query_rows", "rejected_query_rows")
"""What a summary says that is no part of what came out."""
PREPARED, SCORED, CLUSTERED = "prepared", "trajectories", "clusters"
"""The folders of a run, and of an extension, that the pool is read from."""
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

    @property
    def location(self) -> Location:
        """The folder that its stages lie in."""
        return self.run / FOLDER / self.name

    def folder(self, name: str) -> Location:
        """Return the folder of one stage."""
        return self.location / name

    def manifest(self, name: str) -> Manifest | None:
        """Return the manifest of the stage in folder `name`; None where it is not finished."""
        return read_manifest(self.folder(name))

    def summary(self, name: str) -> dict[str, Any] | None:
        """Return what the finished stage in folder `name` says of itself, or None."""
        manifest = self.manifest(name)
        return manifest.summary if manifest else None

    @property
    def strata(self) -> dict[str, int]:
        """Its prepared rows by stratum."""
        prepared = self.summary(PREPARED)
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
        return self.location / SETTINGS

    @property
    def has_moved(self) -> bool:
        """Whether its finished clusters hold the rows of all before it, in moved clusters."""
        manifest = self.manifest(CLUSTERED)
        return manifest is not None and manifest.inputs.get(UPDATED, False)

    @property
    def is_empty(self) -> bool:
        """Whether all its rows turned out to be known, or to be of no use."""
        prepared = self.summary(PREPARED)
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
        manifest = read_manifest(run / FOLDER / name / PREPARED)
        if manifest is not None:
            found.append(Extension(run, int(matched[1]), tuple(manifest.inputs["data"])))
    return sorted(found, key=lambda extension: extension.number)


def strata(run: Location) -> set[str]:
    """The strata of all rows that extensions prepared, in the run or not."""
    return {name for item in of_run(run) for name in item.strata}


def result_fingerprint(run: Location, manifest: Manifest) -> str:
    """Return 16 hex digits that change with the result of a stage of `run`, even of equal inputs.

    Trainings do not repeat themselves to the last bit. Another one shows in the mean losses that
    trajectories sum up, and in the centroids.
    """
    summary = {key: value for key, value in manifest.summary.items() if key not in HOW_IT_WENT}
    known = {"inputs": manifest.fingerprint, "summary": summary}
    if manifest.stage != CLUSTERED:
        return fingerprint(known)
    file = centroids_file(run / CLUSTERED)
    content = file.read_bytes() if file.exists() else b""
    return fingerprint({**known, "centroids": hashlib.sha256(content).hexdigest()})


@dataclass(frozen=True)
class Base:
    """A run that can be extended, and the manifests of its stages up to the clusters.

    Attributes:
        run: its folder.
        config: that it was last run with.
        manifests: by name of the stage.
    """

    run: Location
    config: RunConfig
    manifests: Mapping[str, Manifest]

    def fingerprint(self, stage: str) -> str:
        """Return a hash of what the stage came out as."""
        return result_fingerprint(self.run, self.manifests[stage])

    def summary(self, stage: str) -> dict[str, Any]:
        """Return what the stage says of itself."""
        return self.manifests[stage].summary


@dataclass(frozen=True)
class ExtendedPool:
    """A clustered pool: its labels, losses and original rows, and what enlarged it."""

    clusters: Parts
    trajectories: Parts
    rows: Parts
    extensions: list[Extension]

    @property
    def suffix(self) -> str:
        """Of what comes from this pool: the last extension's number; none for a run by itself."""
        return f"-with-{self.extensions[-1].number:03d}" if self.extensions else ""


def pool(run: Location, extensions: list[Extension]) -> ExtendedPool:
    """The rows of `run` and, after them, those of its extensions.

    Labels are those of the last extension that moved the centroids, and of what came after it.
    """
    folders = [run / CLUSTERED, *(item.folder(CLUSTERED) for item in extensions)]
    start = max((n for n, item in enumerate(extensions, 1) if item.has_moved), default=0)
    return ExtendedPool(
        Parts(folders[start], more=tuple(folders[start + 1 :])),
        Parts(run / SCORED, more=tuple(item.folder(SCORED) for item in extensions)),
        Parts(run / PREPARED, "rows", tuple(item.folder(PREPARED) for item in extensions)),
        extensions,
    )


def extended_pool(run: Location) -> ExtendedPool:
    """The pool of `run` with every extension that has new rows.

    Raises:
        DataError: an extension is not finished, or does not fit the run or those before it.
    """
    found = [item for item in of_run(run) if not item.is_empty]
    clusters = read_manifest(run / CLUSTERED)
    assert clusters is not None, "the caller has looked"
    _check_complete(run, found)
    stages = [item.manifest(CLUSTERED) for item in found]
    placed = [manifest.fingerprint if manifest else "" for manifest in stages]
    now = result_fingerprint(run, clusters) if found else ""
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
        prepared = item.manifest(PREPARED)
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
