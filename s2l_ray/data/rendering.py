"""Rendered examples: the text that a model reads, cut where loss begins and ends."""

from collections.abc import Sequence
from dataclasses import dataclass

END_IN_TEXT = "rows have an end marker at the end of a text; it stands once"
REASONING_DROPPED = "rows lose the reasoning of earlier turns, which the chat template leaves out"
"""What was handled in a row, as notes count it."""


@dataclass(frozen=True)
class Segment:
    """A stretch of text; all of it carries loss, or none of it."""

    text: str
    learned: bool


@dataclass(frozen=True)
class Rendered:
    """An example as text, up to the end of its last learned turn."""

    segments: tuple[Segment, ...]
    """Their texts joined are what the model reads; the last one is learned."""
    notes: tuple[str, ...] = ()
    """What was handled in this row and is counted."""
    ends_as_marked: bool = False
    """The template itself says what is learned, so no end-of-sequence is added."""


def cut(text: str, ranges: Sequence[tuple[int, int]]) -> tuple[Segment, ...]:
    """Return `text` up to the end of the last range; the ranges of characters are learned.

    Args:
        ranges: half-open, ascending, disjoint and not empty.
    """
    segments, position = [], 0
    for start, end in ranges:
        segments += [Segment(text[position:start], False), Segment(text[start:end], True)]
        position = end
    return tuple(segment for segment in segments if segment.text)


def without_end(text: str, marks: Sequence[str]) -> str:
    """Return `text` without the end markers at its end, nor the white space after them."""
    while True:
        bare = text.rstrip()
        found = next((mark for mark in marks if bare.endswith(mark)), None)
        if found is None:
            return text
        text = bare[: -len(found)]
