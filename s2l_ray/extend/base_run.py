"""What of a finished run new rows depend on, and whether it is still there as it was."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s2l_ray.artifacts import extensions
from s2l_ray.artifacts.extensions import Extension
from s2l_ray.artifacts.inputs import Contents
from s2l_ray.artifacts.manifest import Manifest, Parts
from s2l_ray.config.sections import RunConfig
from s2l_ray.errors import DataError, ModelError, first
from s2l_ray.pipeline.subset import config_of
from s2l_ray.storage.location import Location

NEEDED = ("prepare", "reference", "trajectories", "clusters")


@dataclass(frozen=True)
class Base:
    """A run that can be extended, and the manifests of its stages up to the clusters."""

    run: Location
    config: RunConfig
    manifests: Mapping[str, Manifest]

    def fingerprint(self, stage: str) -> str:
        """Of what the stage came out as."""
        return extensions.outcome(self.run, self.manifests[stage])

    def summary(self, stage: str) -> dict[str, Any]:
        return self.manifests[stage].summary


def base_of(run: Location) -> Base:
    """The run in its folder, if it can be extended.

    Raises:
        DataError: there is no run, it has no checkpoints or clusters, or they are not finished.
    """
    config = config_of(run)
    if config.trajectories is None or config.trajectories.path is not None:
        origin = "were computed elsewhere" if config.trajectories else "are no part of it"
        raise DataError(
            f"{run} has no checkpoints to score new rows at: its trajectories {origin}. Score the "
            "new rows where the old ones were scored, and cluster all of them in a new run."
        )
    if config.clusters is None:
        raise DataError(
            f"{run} has no clusters to place new rows in. Add a `clusters` section to its "
            "configuration, and run it: s2l run."
        )
    from s2l_ray.report.stage import finished_stages

    finished = finished_stages(run)
    missing = [stage for stage in NEEDED if stage not in finished]
    if missing:
        raise DataError(
            f"{run}: {len(missing)} of the {len(NEEDED)} stages that new rows need are not "
            f"finished (first: {first(missing)}). Finish it with s2l run."
        )
    return Base(run, config, {stage: finished[stage].manifest for stage in NEEDED})


def check_unchanged(base: Base, contents: Contents) -> None:
    """Refuse new rows that would not be read and scored as the old ones were.

    Raises:
        DataError: the tokenizer, the template or brought checkpoints have changed.
        ModelError: a checkpoint is gone.
    """
    data = base.config.data
    assert data is not None
    now = {
        **contents.of_model("data.tokenizer contents", base.summary("prepare")["tokenizer"]),
        **contents.of_template(data.template),
        **contents.of_model("reference.path contents", base.summary("reference")["path"]),
    }
    for stage in ("prepare", "reference"):
        for key in ("data.tokenizer contents", "data.template contents", "reference.path contents"):
            before = base.manifests[stage].inputs.get(key)
            if before is not None and now.get(key) != before:
                raise DataError(
                    f"{key.removesuffix(' contents')} is not what {base.run} was made with, or not "
                    "found from here, so new rows could not be compared with old ones. Restore it, "
                    "or make a new run of all data."
                )
    places = checkpoint_places(base)
    gone = [str(place) for place in places if not (place / "config.json").exists()]
    if gone:
        raise ModelError(
            f"{len(gone)} of {len(places)} checkpoints of {base.run} are gone (first: "
            f"{first(gone)}). New rows are scored at all of them: restore them."
        )


def check_losses(run: Location, found: Sequence[Extension]) -> None:
    """Refuse to move centroids without the trajectories of all old rows.

    Raises:
        DataError: some are gone, of the run or of one of its extensions that were scored.
    """
    folders = [(run / "prepared", run / "trajectories")]
    folders += [
        (item.folder("prepare"), item.folder("trajectories"))
        for item in found
        if item.summary("trajectories") is not None
    ]
    missing = [
        str(losses / name)
        for prepared, losses in folders
        for name in sorted({file.name for file in Parts(prepared).files()} - set(losses.names()))
    ]
    if missing:
        raise DataError(
            f"{len(missing)} parts of old trajectories are gone (first: {first(missing)}). "
            "Centroids move to where all rows are, old and new: restore them, or extend the run "
            "without --update-centroids."
        )


def checkpoint_places(base: Base) -> list[Location]:
    reference = base.summary("reference")
    place = Location(reference["path"]) if reference["path"] else base.run / "reference"
    return [place / name for name in reference["names"]]
