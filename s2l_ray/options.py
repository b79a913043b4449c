"""Options that several commands have, and how commands print."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

from s2l_ray.display import FORMATS
from s2l_ray.selection.methods import METHODS
from s2l_ray.stages import NAMES


def one_of(names: Iterable[str]) -> Callable[[str | None], str | None]:
    """Return a check that an option, if it is given, is one of `names`."""

    def checked(value: str | None) -> str | None:
        if value is not None and value not in names:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(names)}.")
        return value

    return checked


Config = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file (see configs/).")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key, such as selection.budget=0.2; may be repeated.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="ADDR",
        help="Join the Ray cluster there. Default: RAY_ADDRESS, else Ray is started here.",
    ),
]
FromStage = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="STAGE", callback=one_of(NAMES), help="Redo STAGE and all after it."
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        metavar="M",
        callback=one_of(METHODS),
        help="One of those of `s2l select --help`. Default: the run's.",
    ),
]
Seed = Annotated[int | None, typer.Option(metavar="S", help="A whole number. Default: the run's.")]
WithoutExtensions = Annotated[
    bool,
    typer.Option(
        "--without-extensions",
        help="Rank the run's own rows alone. Default: with those that `s2l extend` added.",
    ),
]
LogFormat = Annotated[
    str,
    typer.Option(
        "--log-format",
        metavar="text|json",
        callback=one_of(FORMATS),
        help="`json`: an object of JSON in each line, for collectors of logs.",
    ),
]
RunDir = Annotated[str, typer.Argument(metavar="RUN_DIR", help="The directory or URI of a run.")]


def working_directory() -> Path | None:
    """Return the working directory; Ray removes that of a job when it disconnects."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return None


def shortest(path: str, here: Path | None) -> str:
    """Return a path relative to the working directory if it is inside; `/` is none to leave out."""
    if here is not None and here.parent != here and Path(path).is_relative_to(here):
        return str(Path(path).relative_to(here))
    return path
