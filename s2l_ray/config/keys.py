"""The keys of a run file as their sections declare them: type, default and meaning, in words."""

import datetime
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from s2l_ray.config.section import Section

NAMES = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    datetime.date: "date",
    Any: "any value",
}


@dataclass(frozen=True)
class Key:
    """A key of a section.

    Attributes:
        path: the key with those above it, such as clusters.num_clusters.
        kind: its type and bounds, as a phrase.
        default: as YAML; "" for none or for a section, None if the key must be given.
        changes_results: False if results are the same whatever the value is.
        meaning: sentences; "" for a section that says it itself.
        sections: those that stand below it.
    """

    path: str
    kind: str
    default: str | None
    changes_results: bool
    meaning: str
    sections: tuple[type[Section], ...]


def keys_of(section: type[Section], path: str = "") -> list[Key]:
    """Return the keys of a section that stands at `path`, in order."""
    return [
        Key(
            path=f"{path}.{name}" if path else name,
            kind=_kind(field),
            default=_default(field),
            changes_results=name not in section.operational - section.indirect,
            meaning=" ".join((field.description or "").split()),
            sections=tuple(filter(has_keys_of_its_own, alternatives(field.annotation))),
        )
        for name, field in section.model_fields.items()
    ]


def meaning_of(section: type[Section]) -> str:
    """Return what a section is for."""
    return " ".join((section.__doc__ or "").split())


def alternatives(annotation: Any) -> list[Any]:
    """Return the alternatives of a union, or the type itself."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for item in get_args(annotation) for member in alternatives(item)]
    return [annotation]


def has_keys_of_its_own(annotation: Any) -> bool:
    """Tell sections of some length from those of one line, such as `{min: 1, max: 8}`."""
    return _is_section(annotation) and len(annotation.model_fields) > 2


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _kind(field: FieldInfo) -> str:
    words = [_words(item) for item in alternatives(field.annotation) if item is not type(None)]
    return " or ".join(words) + _bounds(field.metadata)


def _words(annotation: Any) -> str:
    return "section" if has_keys_of_its_own(annotation) else _inner(annotation)


def _inner(annotation: Any) -> str:
    """Return the words for a type whose keys are shown nowhere else."""
    if _is_section(annotation):
        return "{" + ", ".join(f"{key}: …" for key in annotation.model_fields) + "}"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _inner(arguments[0]) + _bounds(arguments[1:])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is list:
        return f"list of {_inner(arguments[0])}"
    if origin is dict:
        return f"mapping of {_inner(arguments[0])} to {_inner(arguments[1])}"
    if origin in (Union, types.UnionType):
        return " or ".join(_inner(item) for item in arguments)
    return NAMES[annotation]


def _bounds(metadata: Iterable[Any]) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    items = [part for item in metadata for part in getattr(item, "metadata", [item])]
    shown = [
        f"{sign} {getattr(item, name):,}"
        for item in items
        for name, sign in signs.items()
        if getattr(item, name, None) is not None
    ]
    return f" {', '.join(shown)}" if shown else ""


def _default(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, Section):
        return ""
    return _as_yaml(value)


def _as_yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(_as_yaml, value)) + "]"
    if isinstance(value, Section):
        given = value.model_dump(exclude_defaults=True)
        return "{" + ", ".join(f"{key}: {item}" for key, item in given.items()) + "}"
    return f"{value:_}" if isinstance(value, int) else str(value)


def all_keys(section: type[Section], path: str = "") -> Iterator[Key]:
    """Yield the keys of a section, each followed by those below it."""
    for key in keys_of(section, path):
        yield key
        for below in key.sections:
            yield from all_keys(below, key.path)
