"""Where a run came from: the command that repeats it, and the commit of the program."""

import json
import shlex
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from s2l_ray.storage.location import Location

PACKAGE = Path(__file__).parents[1]
SECONDS_FOR_GIT = 10


@dataclass(frozen=True)
class Provenance:
    """The origin of a run; empty texts are not known."""

    command: str = ""
    commit: str = ""
    """The commit of the program that wrote the page; `-dirty` follows where files were changed."""


def provenance(run: Location) -> Provenance:
    """Return the command that runs, or continues, the configuration of `run`, and the commit."""
    config = run / "config.json"
    command = f"s2l run {shlex.quote(str(config))}" if config.exists() else ""
    return Provenance(command, _commit_of_checkout() or _commit_of_package())


def _commit_of_checkout() -> str:
    """Return the commit of the checkout that this package is in; empty if it is in none."""
    # An environment may lie inside the checkout of another project, which does not track it.
    if not _git("ls-files", "version.py"):
        return ""
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _commit_of_package() -> str:
    """Return the commit that pip installed this package from; empty if it was another source."""
    try:
        text = metadata.distribution("s2l-ray").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return ""
    commit = json.loads(text or "{}").get("vcs_info", {}).get("commit_id", "")
    return str(commit)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - no text from outside
            ["git", "-C", str(PACKAGE), *arguments],  # noqa: S607 - whichever git there is
            capture_output=True,
            text=True,
            timeout=SECONDS_FOR_GIT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
