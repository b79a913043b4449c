"""Answers to questions of multiple choice: a letter, and the text beside it."""

import re
from typing import NamedTuple


class Choice(NamedTuple):
    """`B) 12 cm` has the letter b and the text 12 cm; the text of `B` is empty."""

    letter: str
    text: str


_WHOLE = re.compile(r"(?:(?:option|choice|answer) ?)?\(? ?([A-J]) ?\)?", re.IGNORECASE)
_BEFORE_TEXT = [
    re.compile(r"(?:(?:option|choice) )?\(\s?([A-Ja-j])\s?\)\s*[:.,-]?\s*(\S.*)", re.DOTALL),
    re.compile(r"(?:(?:option|choice) )?([A-Ja-j])\s?\)\s*(\S.*)", re.DOTALL),
    re.compile(r"([A-J])\s?[.:]\s+(\S.*)", re.DOTALL),
    re.compile(r"([A-J]) - ([A-Za-z]{2}.*)", re.DOTALL),
]
_AFTER_TEXT = re.compile(r"(-?[\d.].*) \( ?([A-J]) ?\)", re.IGNORECASE | re.DOTALL)


def choice(text: str) -> Choice | None:
    """Return the choice that `text` is: `B`, `(b)`, `option B`, `B) 12 cm`, `B. The sun`."""
    whole = _WHOLE.fullmatch(text)
    if whole:
        return Choice(whole[1].lower(), "")
    for pattern in _BEFORE_TEXT:
        found = pattern.fullmatch(text)
        if found:
            return Choice(found[1].lower(), found[2])
    found = _AFTER_TEXT.fullmatch(text)
    return Choice(found[2].lower(), found[1]) if found else None
