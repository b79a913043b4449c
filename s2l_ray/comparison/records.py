"""The trials of a comparison as its folder records them: which are asked for, and which are done.

`s2l status` reads it as well, so it imports no library of models.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from s2l_ray.storage.location import Location

FOLDER, TRIALS = "comparison", "trials"
"""The folder of a comparison, in that of the run, and in it that of the trials."""
ASKED = "trials.json"
"""The names of all trials that the last comparison asked for, in its folder."""
RESULT, ITEMS = "result.json", "items.parquet"


@dataclass(frozen=True)
class Trial:
    """One training of the target.

    Attributes:
        name: a hash of all that shapes its result; also the name of its folder.
        rows: the file of the rows that it is trained on; "" for no training.
        seed: decides the order of the rows, and random weights.
        steps: optimizer steps.
        label: method and budget of an arm that it belongs to, for messages.
    """

    name: str
    rows: str
    seed: int
    steps: int
    label: str = ""


@dataclass(frozen=True)
class Ended:
    """The end of a trial.

    Attributes:
        trial: its name.
        error: why it failed; None if its result is in its folder.
    """

    trial: str
    error: str | None = None


def failure(trial: Trial, error: Exception) -> str:
    """Return what went wrong in a trial, with the arm that it belongs to."""
    return f"{trial.label}, seed {trial.seed}: {error}"


def is_done(trials: Location, name: str) -> bool:
    """Tell whether a trial has left its result in the folder of trials."""
    return (trials / name / RESULT).is_file()


def ask(folder: Location, names: Iterable[str]) -> None:
    """Record in the folder of a comparison which trials it asks for."""
    (folder / ASKED).write_json(sorted(set(names)))


def counts(run: Location) -> tuple[int, int] | None:
    """Return how many trials the last comparison of a run asked for, as (finished, all).

    None if there was no comparison, or it has not got as far as its trials.
    """
    folder = run / FOLDER
    if not (folder / ASKED).is_file():
        return None
    asked = (folder / ASKED).read_json()
    begun = set((folder / TRIALS).names())
    return sum(is_done(folder / TRIALS, name) for name in asked if name in begun), len(asked)
