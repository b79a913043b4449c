r"""Answers of several values: lists, sets, tuples, intervals, unions and matrices."""

import re
from typing import NamedTuple

MAX_ITEMS = 50


class Several(NamedTuple):
    """Values with their names, as x and 2 of `x = 2`; a value without a name has an empty one."""

    kind: str
    """Brackets such as `()` or `[)`, `matrix 2` of two columns, `union`, or nothing for a list."""
    items: list[tuple[str, str]]

    @property
    def is_ordered(self) -> bool:
        return self.kind not in ("", "union")

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.items if name}


_NAME = re.compile(
    r"\s*([A-Za-z](?:_?(?:\{\w+\}|\w))?'?(?:\([a-z]\))?|\\[a-z]+)\s*(?:=|\\approx(?![a-z]))\s*(?=\S)"
)
_TUPLE_NAME = re.compile(r"\s*(?:\([A-Za-z](?:, ?[A-Za-z]){1,3}\)\s*=|[A-Za-z]\s*\\in(?![a-z]))\s*")
_MATRIX = re.compile(r"\\begin\s?\{([pbvBV]?matrix)\}(.*)\\end\s?\{\1\}", re.DOTALL)
_CONJUNCTION = re.compile(r"[,;]?\s(?:and|or|&)\s|\s?\\(?:lor|land|vee|wedge)(?![a-z])\s?")


def named(text: str) -> tuple[str, str]:
    """Return the x and the 5 of `x = 5`; the name is empty where there is none."""
    name = _NAME.match(text)
    if name is None or re.search(r"[=<>]|\\[lgn]e(?![a-z])", text[name.end() :]):
        return "", text.strip()
    return name[1], text[name.end() :].strip()


def several(text: str) -> Several | None:
    """Return the values of cleaned LaTeX, or None if it is a single one."""
    name = _TUPLE_NAME.match(text)
    text = text[name.end() :] if name else text
    matrix = _MATRIX.fullmatch(text.strip())
    if matrix:
        return _matrix(matrix[2])
    if r"\cup" in text:
        return Several("union", [("", part.strip()) for part in text.split(r"\cup")])
    kind, inner = _brackets(text.strip())
    parts = _parts(inner if kind else _CONJUNCTION.sub(",", text))
    if len(parts) > MAX_ITEMS:
        return None
    items = _signed(_with_names(parts))
    if len(items) < 2:
        return None
    return Several("" if kind == "{}" else kind, items)


def unwrapped(text: str) -> str:
    """Return the 5 of `(5)`, `[5]` and `{5}`."""
    kind, inner = _brackets(text.strip())
    return inner.strip() if kind and inner.strip() and len(_parts(inner)) == 1 else text


def _matrix(body: str) -> Several:
    rows = [row.split("&") for row in body.split(r"\cr") if row.strip()]
    columns = {len(row) for row in rows}
    return Several(
        f"matrix {' '.join(map(str, sorted(columns)))}",
        [("", cell.strip()) for row in rows for cell in row],
    )


def _brackets(text: str) -> tuple[str, str]:
    r"""Return the brackets around all of `text`, and what they hold; \{ and \} become { and }."""
    text = text.replace("\\{", "{").replace("\\}", "}")
    if len(text) > 1 and text[0] in "([{" and _opening_of_last(text) == 0:
        return text[0] + text[-1], text[1:-1]
    return "", text


def _opening_of_last(text: str) -> int | None:
    """Return the position of the bracket, of any kind, that the last character of `text` closes."""
    unclosed: list[int] = []
    opening = None
    for i, character in enumerate(text):
        opening = None
        if character in "([{":
            unclosed.append(i)
        elif character in ")]}" and unclosed:
            opening = unclosed.pop()
    return opening


def _parts(text: str) -> list[str]:
    """Split `text` at its commas and semicolons outside of brackets, but not within a number."""
    parts, depth = [""], 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character in ",;" and depth == 0 and not _is_in_number(text, i):
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _is_in_number(text: str, place: int) -> bool:
    """Return True for the comma of 1,000, which three digits follow."""
    before = re.search(r"(?<![\d.])\d{1,3}(?:,\d{3})*$", text[max(0, place - 20) : place])
    return bool(before) and bool(re.match(r",\d{3}(?!\d)", text[place:]))


def _with_names(parts: list[str]) -> list[tuple[str, str]]:
    """Name every part; in `x = 2, 3` the 3 is an x, too."""
    items: list[tuple[str, str]] = []
    for part in parts:
        name, value = named(part)
        items.append((name or (items[-1][0] if items else ""), value))
    return items


def _signed(items: list[tuple[str, str]]) -> list[tuple[str, str]]:
    r"""Put two values in the place of one with \pm."""
    signed = []
    for name, value in items:
        if re.search(r"\\(?:pm|mp)(?![A-Za-z])", value):
            plus = re.sub(r"\\pm(?![A-Za-z])", "+", re.sub(r"\\mp(?![A-Za-z])", "-", value))
            minus = re.sub(r"\\pm(?![A-Za-z])", "-", re.sub(r"\\mp(?![A-Za-z])", "+", value))
            signed += [(name, plus), (name, minus)]
        else:
            signed.append((name, value))
    return signed
