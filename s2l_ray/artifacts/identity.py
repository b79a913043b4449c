"""The identity of a stage's inputs: files count by their contents, not by how a path is spelled."""

from collections.abc import Mapping
from typing import Any

CONTENTS = " contents"
"""The end of the key with the hashes of the files that another key names."""
_NAMING = ("model", "tokenizer")
"""Keys of a section that name files, where that section is the value of an input."""


def identity(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs without paths of files that are known by their contents.

    A name on the hub stays: beside it is a commit, not a list of hashes. Keys whose value is None
    are left out, because they change nothing. The files of a folder are sorted: an object store
    lists them in another order than a disk. Hidden ones do not count: in a folder that was
    downloaded they hold dates and places.
    """
    known = {
        key.removesuffix(CONTENTS)
        for key, value in inputs.items()
        if key.endswith(CONTENTS) and isinstance(value, list)
    }
    found = {key: _unnamed(value) if key in known else value for key, value in inputs.items()}
    for key in known:
        lines = inputs[f"{key}{CONTENTS}"]
        found[f"{key}{CONTENTS}"] = sorted(line for line in lines if not _is_hidden(line))
    return {key: value for key, value in found.items() if value is not None}


def _unnamed(value: Any) -> Any:
    """Return the rest of a value that names files; None if there is no rest."""
    if not isinstance(value, Mapping):
        return None
    return {key: rest for key, rest in value.items() if key not in _NAMING}


def _is_hidden(line: str) -> bool:
    """Tell whether "NAME HASH" is of a hidden file, or of one in a hidden folder."""
    return any(part.startswith(".") and part != "." for part in line.rpartition(" ")[0].split("/"))
