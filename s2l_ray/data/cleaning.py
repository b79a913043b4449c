"""Which rows of the pool are compared with what: its inputs, known before anything runs.

Rows to drop are a matter of the pool, so what they depend on is among the inputs of `prepare`. A
list changes nothing in the pool; it is a supplement with inputs of its own.
"""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from s2l_ray.artifacts.inputs import Contents
from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.stage import Supplement
from s2l_ray.artifacts.tables import Parts
from s2l_ray.config.data import DataConfig
from s2l_ray.errors import UserError
from s2l_ray.progress import Progress
from s2l_ray.storage.input_files import InputFile, Listing, list_files
from s2l_ray.storage.location import Location, absolute


def held_out_files(data: DataConfig, name: str, run: Location | None = None) -> Listing:
    """Return the files of one set of `data.eval`; those of the run that reads them are left out."""
    return list_files(
        [absolute(path) for path in data.files_of(name)],
        f"data.eval.{name}",
        run=run,
        preferred=("test", "validation", "train"),
    )


def compared_sets(data: DataConfig, run: Location) -> dict[str, list[InputFile]]:
    """Return the files of every held-out set that the pool of a run is compared with, by name.

    Raises:
        DataError: a file is missing.
    """
    if data.decontaminate == "off":
        return {}
    return {name: list(held_out_files(data, name, run).files) for name in data.eval}


def dropping_inputs(data: DataConfig, run: Location, contents: Contents) -> dict[str, Any]:
    """Return the keys and the contents of held-out sets that say which rows are dropped."""
    inputs: dict[str, Any] = {}
    if data.near_duplicates == "drop":
        inputs["data.near_duplicates"] = "drop"
    if data.decontaminate == "drop" and data.eval:
        inputs["data.decontaminate"] = "drop"
        inputs["data.eval contents"] = _hashes(data, run, contents)
    return inputs


def lists(
    data: DataConfig,
    run: Location,
    contents: Contents,
    files: Callable[[], Sequence[InputFile]],
    *,
    pool: Parts | None = None,
    is_asked_for: bool = False,
    gone: Sequence[str] = (),
) -> Supplement:
    """Return the lists of rows that hold a prompt, or that nearly repeat others.

    Args:
        files: returns the input files, or the prepared rows of them: how much work it is.
        pool: the prepared parts of the pool that the rows extend, or None.
        is_asked_for: as in Supplement.
        gone: names of held-out sets that the rows cannot be compared with.
    """
    inputs: dict[str, Any] = {}
    if data.decontaminate == "report" and data.eval:
        # A copy: which files have changed is a matter of the steps that depend on them.
        inputs["data.eval contents"] = _hashes(data, run, Contents(dict(contents.cache)))
    if data.near_duplicates == "report":
        inputs["data.near_duplicates"] = "report"
    return Supplement(inputs, partial(_list, data, run, files, pool, gone), is_asked_for)


def is_list_asked_for(data: DataConfig) -> bool:
    """Tell whether the configuration itself names a list, and not only the default."""
    return data.near_duplicates == "report" or "decontaminate" in data.model_fields_set


def with_reachable_sets(data: DataConfig, run: Location) -> tuple[DataConfig, list[str]]:
    """Return the section without held-out sets that are gone, and their names.

    Extending a run needs none of them.
    """
    reachable = {}
    for name, held_out in data.eval.items():
        with contextlib.suppress(UserError):
            held_out_files(data, name, run)
            reachable[name] = held_out
    gone = [name for name in data.eval if name not in reachable]
    return data.model_copy(update={"eval": reachable}), gone


def _hashes(data: DataConfig, run: Location, contents: Contents) -> dict[str, list[str]]:
    return {
        name: [*contents.file_hashes(files), *map(str, data.own_fields_of(name).items())]
        for name, files in compared_sets(data, run).items()
    }


def _list(
    data: DataConfig,
    run: Location,
    files: Callable[[], Sequence[InputFile]],
    pool: Parts | None,
    gone: Sequence[str],
    out: StageDir,
    progress: Progress,
) -> dict[str, Any]:
    from s2l_ray.data import prepare

    sets = compared_sets(data, run)
    summary = prepare.list_rows(data, files(), sets, out, progress=progress, pool=pool)
    missing = [f"data.eval.{name} is gone: no row is compared with it" for name in gone]
    return {**summary, "notes": [*missing, *summary.get("notes", [])]}
