"""The extensions of a run, and the pool that a run and its extensions form together.

An extension is new data that was scored at the run's checkpoints and assigned to its clusters. Its
folder is `extensions/NNN-HASH/`. NNN numbers the extensions in order, and HASH is a hash of the
data's content.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from s2l_ray.artifacts.manifest import (
    SUPPLEMENT,
    Manifest,
    centroids_file,
    fingerprint,
    read_manifest,
)
from s2l_ray.artifacts.tables import Parts
from s2l_ray.config.sections import RunConfig
from s2l_ray.errors import DataError, first
from s2l_ray.storage import small_files
from s2l_ray.storage.location import Location

FOLDER = "extensions"
SETTINGS = "settings.json"
"""The file, in the folder of an extension, that says whether it moves the centroids."""
UPDATED = "update_centroids"
"""A key of that file, and an input of clusters whose centroids were moved."""
LOSSES_BEFORE = "num_losses_before"
"""The key of a summary with the number of files of losses that an interrupted run had left."""
INCIDENTAL = (
    "notes",
    LOSSES_BEFORE,
    "num_query_rows",
    "rejected_query_rows",
    "contamination",
    "near_duplicates",
    SUPPLEMENT,
)
"""Keys of a summary that do not describe the results of the stage."""
PREPARED, SCORED, CLUSTERED = "prepared", "trajectories", "clusters"
"""Folders, in a run and in an extension, that the pool is read from."""
_NAME = re.compile(r"([0-9]{3,})-([0-9a-f]{16})")


@dataclass(frozen=True)
class Extension:
    """One extension, whether or not its rows are prepared.

    Attributes:
        run: the folder of the run.
        number: its number among the extensions, from 1.
        file_hashes: hashes of the files that its rows come from, in ascending order.
    """

    run: Location
    number: int
    file_hashes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        return f"{self.number:03d}-{data_hash(self.file_hashes)}"

    @property
    def location(self) -> Location:
        """Return the folder that holds the folders of its stages."""
        return self.run / FOLDER / self.name

    def folder(self, name: str) -> Location:
        """Return the folder of one stage."""
        return self.location / name

    def manifest(self, name: str) -> Manifest | None:
        """Return the manifest of the stage in folder `name`; None if it is not finished."""
        return read_manifest(self.folder(name))

    def summary(self, name: str) -> dict[str, Any] | None:
        """Return the summary of the stage in folder `name`; None if it is not finished."""
        manifest = self.manifest(name)
        return manifest.summary if manifest else None

    @property
    def strata(self) -> dict[str, int]:
        """Return the number of its prepared rows in each stratum."""
        prepared = self.summary(PREPARED)
        return prepared["strata"] if prepared else {}

    @property
    def moves_centroids(self) -> bool:
        """Tell whether its settings ask to move the centroids."""
        return bool((small_files.read(self._settings) or {}).get(UPDATED))

    def keep_moving(self) -> None:
        """Make `moves_centroids` true, also for later commands."""
        small_files.write(self._settings, {UPDATED: True})

    def stop_moving(self) -> None:
        """Make `moves_centroids` false again."""
        small_files.remove(self._settings)

    @property
    def _settings(self) -> Location:
        return self.location / SETTINGS

    @property
    def has_moved(self) -> bool:
        """Tell whether its finished clusters were moved, and hold all rows up to its own."""
        manifest = self.manifest(CLUSTERED)
        return manifest is not None and manifest.inputs.get(UPDATED, False)

    @property
    def is_empty(self) -> bool:
        """Tell whether its rows are prepared and none is both new and usable."""
        prepared = self.summary(PREPARED)
        return prepared is not None and not prepared["kept"]


def data_hash(file_hashes: tuple[str, ...]) -> str:
    """Return a hash of the contents of files, whatever their order."""
    return fingerprint({"data": sorted(file_hashes)})


def is_name(name: str) -> bool:
    """Tell whether `name` has the form of an extension's folder."""
    return _NAME.fullmatch(name) is not None


def list_prepared(run: Location) -> list[Extension]:
    """Return the extensions of `run` whose rows are prepared, in order."""
    prepared = []
    for name in (run / FOLDER).names():
        matched = _NAME.fullmatch(name)
        if matched is None:
            continue
        manifest = read_manifest(run / FOLDER / name / PREPARED)
        if manifest is not None:
            prepared.append(Extension(run, int(matched[1]), tuple(manifest.inputs["data"])))
    return sorted(prepared, key=lambda extension: extension.number)


def strata(run: Location) -> set[str]:
    """Return the strata of all prepared rows of extensions."""
    return {name for item in list_prepared(run) for name in item.strata}


def result_fingerprint(run: Location, manifest: Manifest) -> str:
    """Return 16 hexadecimal digits that change with the results of a stage of `run`.

    Inputs alone do not tell, because two trainings with equal inputs differ in the last bits. The
    mean losses in the summary of `trajectories` and the centroids of `clusters` show a difference.
    """
    summary = {key: value for key, value in manifest.summary.items() if key not in INCIDENTAL}
    known = {"inputs": manifest.fingerprint, "summary": summary}
    if manifest.stage != CLUSTERED:
        return fingerprint(known)
    file = centroids_file(run / CLUSTERED)
    content = file.read_bytes() if file.is_file() else b""
    return fingerprint({**known, "centroids": hashlib.sha256(content).hexdigest()})


@dataclass(frozen=True)
class BaseRun:
    """A run that can be extended.

    Attributes:
        run: its folder.
        config: the configuration that it was last run with.
        manifests: name -> manifest of each stage that extending needs.
    """

    run: Location
    config: RunConfig
    manifests: Mapping[str, Manifest]

    def fingerprint(self, stage: str) -> str:
        """Return a hash of the results of a stage."""
        return result_fingerprint(self.run, self.manifests[stage])

    def summary(self, stage: str) -> dict[str, Any]:
        """Return the summary of a stage."""
        return self.manifests[stage].summary


@dataclass(frozen=True)
class ExtendedPool:
    """A clustered pool, of a run and of some of its extensions.

    Attributes:
        clusters: the label of every example.
        trajectories: the losses of every example.
        rows: the original rows.
        extensions: those that are part of it, in order.
    """

    clusters: Parts
    trajectories: Parts
    rows: Parts
    extensions: list[Extension]

    @property
    def suffix(self) -> str:
        """Return a suffix for names of files that come from this pool.

        It names the last extension, and is empty where there is none.
        """
        return f"-with-{self.extensions[-1].number:03d}" if self.extensions else ""


def pool(run: Location, extensions: list[Extension]) -> ExtendedPool:
    """Return the pool of `run` and, after its rows, those of `extensions`.

    Labels of old rows come from the last extension that moved the centroids, if one did.
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
    """Return the pool of `run` with every extension that has new rows.

    Raises:
        DataError: an extension is not finished, or does not fit the run or those before it.
    """
    with_rows = [item for item in list_prepared(run) if not item.is_empty]
    clusters = read_manifest(run / CLUSTERED)
    assert clusters is not None, "the caller has checked"
    _check_complete(run, with_rows)
    manifests = [item.manifest(CLUSTERED) for item in with_rows]
    fingerprints = [manifest.fingerprint if manifest else "" for manifest in manifests]
    current = result_fingerprint(run, clusters) if with_rows else ""
    unfit = [
        item.name
        for number, (item, manifest) in enumerate(zip(with_rows, manifests, strict=True))
        if manifest is None
        or manifest.inputs["clusters of the run"] != current
        or manifest.inputs["earlier"] != fingerprints[:number]
        or item.has_moved != item.moves_centroids
    ]
    if unfit:
        raise DataError(
            f"{len(unfit)} of {len(with_rows)} extension(s) of {run} are not finished, were "
            "assigned to clusters that no longer exist, or do not move the centroids as their "
            f"settings.json says (first: {first(unfit)}). Run `s2l extend {run}`, which assigns "
            "them again or says why they must be made anew (remove settings.json first if the "
            "centroids shall stay), or leave extensions out with --without-extensions."
        )
    return pool(run, with_rows)


def _check_complete(run: Location, chain: list[Extension]) -> None:
    """Refuse an extension if earlier ones have gone or changed.

    When it was prepared, rows that those had were left out of it.
    """
    earlier: list[str] = []
    unfit = []
    for item in chain:
        prepared = item.manifest(PREPARED)
        assert prepared is not None, "list_prepared returns no other"
        if prepared.inputs["earlier"] != earlier:
            unfit.append(item.name)
        earlier.append(prepared.fingerprint)
    if unfit:
        raise DataError(
            f"{len(unfit)} of {len(chain)} extension(s) of {run} came after others that are gone "
            f"or have changed (first: {first(unfit)}). Restore {run / FOLDER} as it was, remove "
            "these and extend the run with their data again, or leave all out with "
            "--without-extensions."
        )
