"""Where a subset of a run goes: a folder of its own, or a file."""

import re
from pathlib import Path

from s2l_ray.artifacts.manifest import SUBSETS
from s2l_ray.errors import DataError
from s2l_ray.storage.location import Location

SUFFIXES = (".jsonl", ".parquet")
_OF_A_FILE = re.compile(r"\.[A-Za-z]\w*$")
"""The end of a name that stands for a file: `subset.csv`, but not `random-0.4-7`."""


def own_file(run: Location, name: str, suffix: str) -> Location:
    """Return the file of the subset of `run` with this name, in a folder that holds no other."""
    return run / SUBSETS / name / f"selected.{suffix}"


def file_of(run: Location, out: str | Path | Location, suffix: str) -> Location:
    """Return the file that `out` stands for; in a folder it is `selected.<suffix>`.

    Args:
        run: the run whose subset it is.
        out: a file that ends in .jsonl or .parquet, or a folder: one that exists, or a name that
            ends with a slash or has no ending.
        suffix: jsonl or parquet.

    Raises:
        DataError: the file belongs to the run or has another ending, or the folder holds a subset
            in the other format.
    """
    place = out if isinstance(out, Location) else Location.of(out)
    if str(out).endswith("/") or place.is_folder() or not _OF_A_FILE.search(place.name):
        place = _in_folder(place, suffix)
    if _is_of(run, place):
        raise DataError(f"--out {out}: that file belongs to the run. Name another one.")
    if not place.name.endswith(SUFFIXES):
        raise DataError(
            f"--out {out}: the name must end in .jsonl or .parquet, or with a slash for a folder."
        )
    return place


def _in_folder(folder: Location, suffix: str) -> Location:
    """Return the file in `folder`, which opens as one data set only if it is in one format."""
    file = folder / f"selected.{suffix}"
    others = [folder / f"selected{other}" for other in SUFFIXES]
    found = next((other for other in others if other != file and other.is_file()), None)
    if found is not None:
        raise DataError(
            f"--out {folder}: the folder holds {found.name}, and would hold two data sets. Name "
            "another folder, or remove that file."
        )
    return file


def _is_of(run: Location, file: Location) -> bool:
    """Return whether `file` is one of the run, or would be another file of one of its stages."""
    if not file.uri.startswith(f"{run.uri}/"):
        return False
    folder, _, name = file.uri.removeprefix(f"{run.uri}/").partition("/")
    return folder != SUBSETS and (bool(name) or file.exists())
