"""Copies, in a run, of the templates that are a user's files.

Workers on other machines and later commands read the copies: they need the user's files no more.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from s2l_ray.artifacts.identity import CONTENTS
from s2l_ray.config.data import DataConfig
from s2l_ray.storage.location import Location

FOLDER = "templates"
_SUFFIX = {"template": "txt", "chat_template": "jinja"}


def keep(data: DataConfig, run: Location) -> DataConfig:
    """Copy templates that are files into a run; return the section that names the copies."""
    update = {}
    for key, name in data.template_files.items():
        content = Location.of(name).read_bytes()
        copy = _copy(run, key, hashlib.sha256(content).hexdigest())
        if not copy.is_file():
            copy.write_bytes(content)
        update[key] = copy.uri
    return data.model_copy(update=update)


def kept(data: DataConfig, run: Location, inputs: Mapping[str, Any]) -> DataConfig:
    """Return the section of a run that names the copies; runs of older versions have none.

    Args:
        data: the section.
        run: the folder of the run.
        inputs: of its rows, with the hashes of the templates.
    """
    update = {}
    for key in data.template_files:
        for line in inputs.get(f"data.{key}{CONTENTS}", []):
            copy = _copy(run, key, line.split()[-1])
            if copy.is_file():
                update[key] = copy.uri
    return data.model_copy(update=update)


def _copy(run: Location, key: str, sha256: str) -> Location:
    return run / FOLDER / f"{key}-{sha256[:16]}.{_SUFFIX[key]}"
