"""What pydantic found wrong with a configuration, in a user's words."""

import difflib
import re
from collections.abc import Collection, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

_UNION_MEMBER = re.compile(
    r"constrained-\w+|function-\w+\[.*\]|int|float|str|literal\[.*\]|(list|dict)\[.*\]"
)
WANTED, NOT = "Input should be ", ", not "


def problems(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """One line for each wrong key or value: its place, what is wrong, and the nearest valid key."""
    sections = {section.__name__ for section in _models_in(root, deep=True)}
    found = [(_place(item["loc"], sections), item) for item in error.errors()]
    lines: dict[str, list[str]] = {}
    for place, item in found:
        if not _is_echo(place, item, found):
            lines.setdefault(".".join(place), []).append(_explain(place, item, root))
    return [line for of_key in lines.values() for line in _without_echoes(of_key)]


def _without_echoes(lines: Sequence[str]) -> list[str]:
    """What is wrong with one value: each member of a union says what it wants of it."""
    told = [line for line in lines if WANTED not in line]
    if told:
        return list(dict.fromkeys(told))
    before, value = lines[0].rsplit(NOT, 1)
    wanted = [line.partition(WANTED)[2].rsplit(NOT, 1)[0] for line in lines[1:]]
    return [" or ".join(dict.fromkeys([before, *wanted])) + NOT + value]


def _place(loc: tuple[Any, ...], sections: Collection[str]) -> tuple[str, ...]:
    """The keys of `loc` without the names that pydantic adds for the members of a union."""
    names = [str(name) for name in loc]
    return tuple(n for n in names if n not in sections and not _UNION_MEMBER.fullmatch(n))


def _is_echo(place: tuple[str, ...], item: Any, found: Sequence[Any]) -> bool:
    """Whether a mapping only failed as another member of its union; a key inside it is wrong."""
    return isinstance(item["input"], dict) and any(
        len(other) > len(place) and other[: len(place)] == place for other, _ in found
    )


def _explain(place: tuple[str, ...], item: Any, root: type[BaseModel]) -> str:
    if item["type"] == "extra_forbidden":
        return _unknown_key(place, root)
    key, message = ".".join(place), item["msg"].removeprefix("Value error, ")
    if item["type"] in ("model_type", "dict_type"):
        message = f"{WANTED}a mapping"
    if item["type"] in ("value_error", "missing"):
        return f"{key}: {message}" if key else message
    return f"{key}: {message}{NOT}{item['input']!r}"


def _unknown_key(place: tuple[str, ...], root: type[BaseModel]) -> str:
    *parents, key = place
    known = list(_section_at(parents, root).model_fields)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"{'.'.join(place)}: unknown key; {hint}"


def _section_at(parents: Sequence[str], root: type[BaseModel]) -> type[BaseModel]:
    """The section class that lies at `parents`."""
    section = root
    for name in parents:
        inside = _models_in(section.model_fields[name].annotation)
        section = inside[0] if inside else section
    return section


def _models_in(annotation: Any, *, deep: bool = False) -> list[type[BaseModel]]:
    """The sections that an annotation names; with `deep`, those inside them, too."""
    inside = get_args(annotation)
    found = []
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        found = [annotation]
        inside = tuple(f.annotation for f in annotation.model_fields.values()) if deep else ()
    return found + [model for inner in inside for model in _models_in(inner, deep=deep)]
