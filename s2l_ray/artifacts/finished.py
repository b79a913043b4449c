"""The finished stages of a run and of its arms."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s2l_ray.artifacts.manifest import UNFINISHED, Manifest, outdated_fingerprints, read_manifest
from s2l_ray.artifacts.stage import Stage, label
from s2l_ray.storage import small_files
from s2l_ray.storage.location import Location


@dataclass(frozen=True)
class Finished:
    """A finished stage.

    Attributes:
        stage: its name.
        arm: the arm that it belongs to; "" is the run's own.
        folder: its folder.
        manifest: its manifest.
    """

    stage: str
    arm: str
    folder: Location
    manifest: Manifest

    @property
    def summary(self) -> dict[str, Any]:
        """Return the summary in its manifest."""
        return self.manifest.summary

    @property
    def label(self) -> str:
        """Return its name in the inputs of later stages."""
        return label(self.stage, self.arm)


def finished_stages(run: Location, stages: Sequence[Stage]) -> dict[str, Finished]:
    """Return every finished stage by label, without those whose earlier stages are redone.

    Args:
        run: the folder of the run.
        stages: the table of all stages. A stage without a section of the configuration (the report)
            is left out.
    """
    finished: dict[str, Finished] = {}
    fingerprints: dict[str, str | None] = {}
    for stage, arm, folder in _folders(run, stages):
        name, manifest = label(stage.name, arm), read_manifest(folder)
        if manifest is None:
            if small_files.read(folder / UNFINISHED) is not None:
                fingerprints[name] = None
            continue
        inputs = manifest.inputs
        fits = manifest.fingerprint not in outdated_fingerprints(folder) and all(
            inputs.get(other, known) == known for other, known in fingerprints.items()
        )
        # None equals no fingerprint: a stage that came from an outdated one is outdated too.
        fingerprints[name] = manifest.fingerprint if fits else None
        if fits:
            finished[name] = Finished(stage.name, arm, folder, manifest)
    return finished


def outdated_stages(
    run: Location, stages: Sequence[Stage], finished: Mapping[str, Finished]
) -> dict[str, list[str]]:
    """Return, by label, the stages whose results came from earlier ones that are others now.

    Args:
        run: the folder of the run.
        stages: the table of all stages.
        finished: the stages whose results fit.

    Returns:
        label -> labels of the earlier stages.
    """
    outdated: dict[str, list[str]] = {}
    for stage, arm, folder in _folders(run, stages):
        name = label(stage.name, arm)
        manifest = read_manifest(folder) if name not in finished else None
        if manifest is None:
            continue
        others = [
            key
            for key, value in manifest.inputs.items()
            if key in outdated or (key in finished and finished[key].manifest.fingerprint != value)
        ]
        if others:
            outdated[name] = others
    return outdated


def outdated_note(run: Location, stages: Sequence[Stage]) -> str:
    """Say which results of the run's own arm are of earlier results that it has no more."""
    outdated = outdated_stages(run, stages, finished_stages(run, stages))
    named = [
        f"{stage.name} is of another {outdated[stage.name][0]}"
        for stage in stages
        if stage.name in outdated
    ]
    return f"{', '.join(named)}, and stays until it is done again" if named else ""


def _folders(run: Location, stages: Sequence[Stage]) -> Iterator[tuple[Stage, str, Location]]:
    """Yield stage, arm and folder of every stage that may be finished, earlier stages first."""
    shown = [stage for stage in stages if stage.section]
    for stage in shown:
        yield stage, "", run / stage.folder
    for arm in (run / "arms").names():
        for stage in shown:
            if stage.per_arm:
                yield stage, arm, run / "arms" / arm / stage.folder
