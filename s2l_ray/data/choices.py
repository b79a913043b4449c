"""The choices of a multiple-choice row, and which of them is right."""

from collections.abc import Mapping, Sequence
from typing import Any

from s2l_ray.config.data import FieldNames
from s2l_ray.data.row_errors import RowError, checked_text, kind_of
from s2l_ray.errors import first


def read_choices(row: Mapping[str, Any], fields: FieldNames) -> tuple[tuple[str, ...], int | None]:
    """Return the choices of a row, and the number of the right one, from 0 on.

    Choices are a list of texts or numbers, or {text: [...], label: [...]}. The right one is named
    by, in this order: its label, its text, its letter (A is the first), or its number from 0 on.

    Returns:
        No choices and None if `fields` names none.

    Raises:
        RowError: the fields hold something else.
    """
    if fields.choices is None:
        return (), None
    value, name = row.get(fields.choices), fields.choices
    labels: Sequence[Any] = ()
    if isinstance(value, Mapping):
        labels, value, name = value.get("label") or (), value.get("text"), f"{name}.text"
    if value is None:
        raise RowError("missing field", f"no {name!r}; the row's fields: {first(list(row), 8)}")
    if not isinstance(value, list | tuple) or len(value) < 2:
        raise RowError("wrong type", f"{name!r} is no list of at least two choices")
    choices = tuple(_text(choice, f"{name}[{i}]") for i, choice in enumerate(value))
    return choices, _right(row, fields.right_choice, choices, [str(label) for label in labels])


def _text(choice: Any, path: str) -> str:
    is_number = isinstance(choice, int | float) and not isinstance(choice, bool)
    text = checked_text(str(choice) if is_number else choice, path)
    if not text.strip():
        raise RowError("empty field", f"{path} holds no text")
    return text


def _right(row: Mapping[str, Any], name: str, choices: Sequence[str], labels: Sequence[str]) -> int:
    value = row.get(name)
    if value is None:
        raise RowError("missing field", f"no {name!r}, which names the right choice")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError("wrong type", f"{name!r} is {kind_of(value)}, not text or an integer")
    number = value if isinstance(value, int) else _place(value.strip(), choices)
    if str(value) in labels:
        number = labels.index(str(value))
    if number is None or not 0 <= number < len(choices):
        detail = f"{name!r} is {value!r}, which names none of the {len(choices)} choices"
        raise RowError("wrong type", detail)
    return number


def _place(text: str, choices: Sequence[str]) -> int | None:
    if text in choices:
        return choices.index(text)
    if len(text) == 1 and text.isascii() and text.isalpha():
        return ord(text.upper()) - ord("A")
    return int(text) if text.isdecimal() else None
