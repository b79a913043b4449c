"""Numbers with a percent sign or a unit, read digit by digit into exact fractions."""

import re
from fractions import Fraction
from typing import NamedTuple

from s2l_ray.evaluation.number_words import PARTS, in_digits

RELATIVE_TOLERANCE = Fraction(1, 1_000_000)


class Quantity(NamedTuple):
    value: Fraction
    is_percent: bool
    unit: str


_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_NUMERAL = re.compile(
    rf"(?P<sign>[+-]?) ?(?:(?P<whole>[0-9]+)(?: and)? (?P<over>[0-9]+) ?/ ?(?P<under>[0-9]+)"
    rf"|\(?(?P<top>[+-]?(?:{_DECIMAL}))\)? ?/ ?\(?(?P<bottom>[+-]?(?:{_DECIMAL}))\)?"
    rf"|(?P<decimal>{_DECIMAL})"
    rf"(?:[eE](?P<e>[+-]?[0-9]{{1,3}})(?![0-9])| ?\* ?10 ?\^ ?\(?(?P<ten>[+-]?[0-9]{{1,3}})\)?)?)"
)
_UNIT = re.compile(r"[A-Za-z]+(?:\^?\(?[23]\)?)?(?:(?: ?/ ?| )[A-Za-z]+(?:\^?\(?[23]\)?)?){0,5}")
_ATTACHED_UNIT = re.compile(
    "cm|mm|km|kg|mg|ml|ft|hrs?|min|sec|mph|kmph|[ap]m|st|nd|rd|th|usd|eur|m/s|km/h"
)
_SHORT_UNIT = re.compile("[mgshl]")
_NOT_UNIT = re.compile(
    "pi|sqrt|sin|cos|tan|cot|csc|log|ln|and|or|to|mod|than|times|plus|minus|through|by|with|but|not"
    "|if|when|where|until|out"
)
"""Words that make a formula, a range, a list or a condition of what would be a unit."""
_ONE_NAME = {
    **dict.fromkeys(["centimeter", "centimetre"], "cm"),
    **dict.fromkeys(["millimeter", "millimetre"], "mm"),
    **dict.fromkeys(["kilometer", "kilometre"], "km"),
    **dict.fromkeys(["meter", "metre"], "m"),
    **dict.fromkeys(["kilogram", "kilo", "kgs"], "kg"),
    **dict.fromkeys(["gram"], "g"),
    **dict.fromkeys(["milliliter", "millilitre"], "ml"),
    **dict.fromkeys(["liter", "litre"], "l"),
    **dict.fromkeys(["hr", "h"], "hour"),
    **dict.fromkeys(["min"], "minute"),
    **dict.fromkeys(["sec", "s"], "second"),
    **dict.fromkeys(["feet", "ft"], "foot"),
    **dict.fromkeys(["inches", "inche", "in"], "inch"),
    **dict.fromkeys(["yr"], "year"),
    **dict.fromkeys(["people", "persons"], "person"),
    **dict.fromkeys(["st", "nd", "rd", "th", "degree", "unit"], ""),
    **dict.fromkeys(["dollar", "usd", "buck", "euro", "eur", "pound sterling", "rupee"], "money"),
}
_SAME_UNITS = {"kmph": "km/hour", "kph": "km/hour", "mph": "mile/hour"}
_MULTIPLES = {
    **{"dozen": Fraction(12), "hundred": Fraction(100), "thousand": Fraction(1_000)},
    **{"million": Fraction(10**6), "billion": Fraction(10**9), "trillion": Fraction(10**12)},
}
_NAMED_PARTS = {
    f"{name}{ending}": Fraction(1, bottom) for name, bottom in PARTS.items() for ending in ("", "s")
} | {"halves": Fraction(1, 2)}


def quantity(text: str) -> Quantity | None:
    """Return the number that plain `text` is, with its percent sign or unit; None for others."""
    text = in_digits(text)
    numeral = _NUMERAL.match(text)
    value = _value(numeral) if numeral else None
    if numeral is None or value is None:
        return None
    rest = text[numeral.end() :]
    percent = re.match(r" ?%| per ?cent(?:age)?(?: points?)?\b", rest, re.IGNORECASE)
    if percent:
        rest = rest[percent.end() :]
    word, _, after = rest.strip().lower().partition(" ")
    factor = _MULTIPLES.get(word) or _NAMED_PARTS.get(word)
    if factor and not percent and rest[0] in " -":
        value, rest = value * factor, f" {after.removeprefix('of ')}".rstrip()
    unit = _unit(rest)
    return None if unit is None else Quantity(value, bool(percent), unit)


def same_quantity(left: Quantity, right: Quantity) -> bool:
    """Compare two numbers by value, to a relative difference of 1e-6.

    Units are compared only if both have one. A percent sign on one side alone may mean hundredths
    or nothing.
    """
    if left.unit and right.unit and left.unit != right.unit:
        return False
    if left.is_percent == right.is_percent:
        return close(left.value, right.value)
    percent, other = (left, right) if left.is_percent else (right, left)
    return close(percent.value, other.value) or close(percent.value / 100, other.value)


def close(left: Fraction, right: Fraction) -> bool:
    return abs(left - right) <= RELATIVE_TOLERANCE * max(abs(left), abs(right))


def _value(numeral: re.Match[str]) -> Fraction | None:
    part = {name: text.replace(",", "") for name, text in numeral.groupdict("").items()}
    if part["decimal"]:
        value = Fraction(part["decimal"]) * Fraction(10) ** int(part["e"] or part["ten"] or 0)
    else:
        under = Fraction(part["under"] or part["bottom"])
        if under == 0:
            return None
        value = Fraction(part["whole"] or 0) + Fraction(part["over"] or part["top"]) / under
    return -value if part["sign"] == "-" else value


def _unit(rest: str) -> str | None:
    """Return the unit after a number, by one name for each; None for a part of a formula."""
    name = rest.strip().lower()
    if not name:
        return ""
    words = re.split(r"[ /^(]|(?<=[a-z])[23]", name)
    parted = rest[0] == " " and (len(words[0]) > 1 or _SHORT_UNIT.fullmatch(words[0]))
    is_attached = _ATTACHED_UNIT.fullmatch(words[0]) or _ATTACHED_UNIT.fullmatch(name)
    if not (parted or is_attached) or not _UNIT.fullmatch(name):
        return None
    if any(_NOT_UNIT.fullmatch(word) for word in words):
        return None
    return _one_name(name)


def _one_name(unit: str) -> str:
    unit = re.sub(r"\^?\(?([23])\)?", r"^\1", unit).replace(" per ", "/")
    unit = re.sub(r"\b(?:square|sq) ([a-z]+)", r"\1^2", unit)
    unit = re.sub(r"\bcubic ([a-z]+)", r"\1^3", unit)
    unit = re.sub(r"[a-z]+", lambda m: _singular(m[0]), unit)
    unit = re.sub(r" ?/ ?", "/", unit).strip()
    return _SAME_UNITS.get(unit, unit)


def _singular(word: str) -> str:
    singular = word.removesuffix("s") if len(word) > 2 else word
    return _ONE_NAME.get(word, _ONE_NAME.get(singular, singular))
