"""Numbers and outside text as a page or a terminal shows them."""

import re
from collections.abc import Mapping
from typing import Any

from s2l_ray.notation import with_prefix

MAX_NAME = 40
"""Characters of a name in a chart or in a sentence."""
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and marks that change the direction of the text around them."""


def count(number: int) -> str:
    return f"{number:,}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 arm, 2 arms."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def share(part: float, whole: float = 1) -> str:
    """Return `part` of `whole` in per cent: <0.1% for few, and n/a if `whole` is zero."""
    if not whole:
        return "n/a"
    return "<0.1%" if 0 < part / whole < 0.0005 else f"{part / whole:.1%}"


def nats(loss: float) -> str:
    return f"{loss:.4f}"


def duration(seconds: float) -> str:
    """Return a time in at most two units: 0.4 s, 12 s, 3 min 05 s, 1 h 02 min."""
    if round(seconds) < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    if seconds < 3600 - 0.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes:02d} min"


def power(number: float) -> str:
    """Return a number with three digits and, from a million on, a prefix: 850, 1.2 M, 3.05 T."""
    return f"{number:,.0f}" if number < 1e6 else with_prefix(number)


def excerpt(text: str, limit: int) -> str:
    """Return the beginning of `text`, and the number of characters that are missing."""
    shown = with_marks(text[:limit])
    return shown if len(text) <= limit else f"{shown} ... ({len(text) - limit:,} more characters)"


def with_marks(text: str) -> str:
    """Return `text` with its unseen characters written out, such as [U+202E]."""
    return UNSEEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", text)


def name(text: str, limit: int = MAX_NAME) -> str:
    """Return a name on one line: short, and without unseen characters."""
    clean = " ".join(with_marks(text).split())
    return clean if len(clean) <= limit else f"{clean[: limit - 3]}..."


def summary(values: Mapping[str, Any]) -> str:
    """Write `num_rows: 1200` as `1,200 rows`, and other values as `key: value`."""
    return ", ".join(_summary_item(key, value) for key, value in values.items())


def _summary_item(key: str, value: Any) -> str:
    is_count = isinstance(value, int) and not isinstance(value, bool)
    text = f"{value:,}" if is_count else name(str(value), 300)
    words = name(key.removeprefix("num_").replace("_", " "), 300)
    return f"{text} {words}" if key.startswith("num_") else f"{words}: {text}"
