"""Problems of a configuration that pydantic reports, in a user's words."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

WANTED, NOT = "Input should be ", ", not "


def problems(error: ValidationError, tree: Mapping[str, Any], root: type[BaseModel]) -> list[str]:
    """Return one line for each wrong key or value: its path, the fault and the nearest valid key.

    Args:
        tree: the configuration that was refused.
        root: the section that it was checked as.
    """
    faults = [(_path(item, tree), item) for item in error.errors()]
    lines: dict[str, list[str]] = {}
    for path, item in faults:
        if not _is_echo(path, item, faults):
            lines.setdefault(".".join(path), []).append(_explain(path, item, root))
    return [line for of_key in lines.values() for line in _without_echoes(of_key)]


def _path(item: Any, tree: Any) -> tuple[str, ...]:
    """Return the keys that lead to a fault; pydantic also names the members of a union."""
    path, node = [], tree
    for name in item["loc"]:
        is_key = name in node if isinstance(node, Mapping) else isinstance(name, int)
        if is_key:
            node = node[name]
            path.append(str(name))
    last = item["loc"][-1:]
    named = item["type"] in ("missing", "invalid_key") or last == ("[key]",)
    return (*path, *map(str, last)) if named else tuple(path)


def _is_echo(path: tuple[str, ...], item: Any, faults: Sequence[Any]) -> bool:
    """Return whether a mapping only failed as another member of its union.

    Then a key inside the mapping is wrong, and has a line of its own.
    """
    return isinstance(item["input"], dict) and any(
        len(other) > len(path) and other[: len(path)] == path for other, _ in faults
    )


def _explain(path: tuple[str, ...], item: Any, root: type[BaseModel]) -> str:
    if item["type"] == "extra_forbidden":
        return _unknown_key(path, root)
    key, message = ".".join(path), item["msg"].removeprefix("Value error, ")
    if item["type"] in ("model_type", "dict_type"):
        message = f"{WANTED}a mapping"
    if item["type"] in ("value_error", "missing"):
        return f"{key}: {message}" if key else message
    return f"{key}: {message}{NOT}{item['input']!r}"


def _without_echoes(lines: Sequence[str]) -> list[str]:
    """Return one line for one value: every member of a union has said what it accepts."""
    certain = [line for line in lines if WANTED not in line]
    if certain:
        return list(dict.fromkeys(certain))
    before, value = lines[0].rsplit(NOT, 1)
    wanted = [line.partition(WANTED)[2].rsplit(NOT, 1)[0] for line in lines[1:]]
    return [" or ".join(dict.fromkeys([before, *wanted])) + NOT + value]


def _unknown_key(path: tuple[str, ...], root: type[BaseModel]) -> str:
    *parents, key = path
    known = list(_section_at(parents, root).model_fields)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"{'.'.join(path)}: unknown key; {hint}"


def _section_at(parents: Sequence[str], root: type[BaseModel]) -> type[BaseModel]:
    """Return the section class at the path `parents`."""
    section = root
    for name in parents:
        if name in section.model_fields:  # else the user's own name in a mapping
            section = next(_sections_in(section.model_fields[name].annotation), section)
    return section


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the section classes that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections_in(inner)
