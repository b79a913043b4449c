"""The finished run that an extension starts from, and checks that it is still as it was."""

from collections.abc import Sequence

from s2l_ray.artifacts.extensions import PREPARED, SCORED, BaseRun, Extension
from s2l_ray.artifacts.finished import finished_stages
from s2l_ray.artifacts.identity import identity
from s2l_ray.artifacts.inputs import Contents, base_key
from s2l_ray.artifacts.tables import Parts
from s2l_ray.data.cleaning import dropping_inputs
from s2l_ray.data.declaration import MOVED, PREPARE, tokenizer_of
from s2l_ray.errors import DataError, ModelError, first
from s2l_ray.pipeline.subset import config_of
from s2l_ray.stages import STAGES
from s2l_ray.storage.location import Location
from s2l_ray.training.declaration import (
    REFERENCE,
    adapted_model_of,
    reference_checkpoints,
    reference_path,
)


def load_base_run(run: Location) -> BaseRun:
    """Return the run in the folder `run`, if it can be extended.

    Raises:
        DataError: there is no run, it has no checkpoints or clusters, or they are not finished.
    """
    config = config_of(run)
    if config.trajectories is None or config.trajectories.path is not None:
        origin = "were computed elsewhere" if config.trajectories else "are no part of it"
        raise DataError(
            f"{run} has no checkpoints to score new rows at: its trajectories {origin}. Score the "
            "new rows with the model that scored the old ones, and cluster all of them in a new "
            "run."
        )
    if config.clusters is None:
        raise DataError(
            f"{run} has no clusters to assign new rows to. Add a `clusters` section to its "
            "configuration, and run it: s2l run."
        )
    finished = finished_stages(run, STAGES)
    needed = [stage.name for stage in STAGES if stage.needed_to_extend]
    missing = [name for name in needed if name not in finished]
    if missing:
        raise DataError(
            f"{run}: {len(missing)} of the {len(needed)} stages that new rows need are not "
            f"finished (first: {first(missing)}). Finish it with s2l run."
        )
    return BaseRun(run, config, {name: finished[name].manifest for name in needed})


def check_unchanged(base: BaseRun, contents: Contents) -> None:
    """Refuse new rows that would not be read and scored as the old ones were.

    Raises:
        DataError: the tokenizer, the template or the user's own checkpoints have changed.
        ModelError: a checkpoint no longer exists.
    """
    data = base.config.data
    assert data is not None
    reference, path = base.summary(REFERENCE.name), reference_path(base)
    adapted = adapted_model_of(base)
    path_key = "reference.path contents"
    now = identity(
        {
            **dropping_inputs(data, base.run, contents),
            **contents.model_inputs("data.tokenizer contents", tokenizer_of(base)),
            **contents.template_inputs(data),
            **contents.model_inputs(path_key, path),
            **contents.model_inputs(base_key(path_key), adapted),
        }
    )
    named = ("data.tokenizer", "data.template", "data.chat_template", "data.eval")
    keys = (*(f"{key} contents" for key in named), path_key, base_key(path_key))
    for stage in (PREPARE.name, REFERENCE.name):
        for key in keys:
            before = identity(base.manifests[stage].inputs).get(key)
            if before is not None and now.get(key) != before:
                raise DataError(
                    f"{key.removesuffix(' contents')} is not what {base.run} was made with, or is "
                    "not reachable from here, so new rows could not be compared with old ones. "
                    f"{MOVED} Otherwise restore it, or make a new run of all data."
                )
    folders = list(reference_checkpoints(base.run, reference, path).values())
    file = "adapter_config.json" if adapted else "config.json"
    gone = [str(folder) for folder in folders if not (folder / file).is_file()]
    if gone:
        raise ModelError(
            f"{len(gone)} of {len(folders)} checkpoints of {base.run} are gone (first: "
            f"{first(gone)}). New rows are scored at all of them: restore them."
        )


def check_losses(run: Location, prepared: Sequence[Extension]) -> None:
    """Refuse to move centroids without the trajectories of all old rows.

    Args:
        prepared: the extensions whose rows are prepared.

    Raises:
        DataError: trajectories of the run, or of an extension that was scored, are gone.
    """
    folders = [(run / PREPARED, run / SCORED)]
    folders += [
        (item.folder(PREPARED), item.folder(SCORED))
        for item in prepared
        if item.summary(SCORED) is not None
    ]
    missing = [
        str(losses / name)
        for rows, losses in folders
        for name in sorted({file.name for file in Parts(rows).files()} - set(losses.names()))
    ]
    if missing:
        raise DataError(
            f"{len(missing)} parts of old trajectories are gone (first: {first(missing)}). "
            "Moving the centroids needs the losses of all rows, old and new: restore them, or "
            "extend the run without --update-centroids."
        )
