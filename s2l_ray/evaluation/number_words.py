"""Numbers in English words."""

import re

PARTS = {
    **{"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7},
    **{"eighth": 8, "ninth": 9, "tenth": 10, "hundredth": 100, "thousandth": 1_000},
}
"""The denominator that a word names; `halves` is not among the plurals in s."""
_SMALL_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TENS_NAMES = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL, _TENS = _SMALL_NAMES.split(), _TENS_NAMES.split()
_NUMBERS = {word: number for number, word in enumerate(_SMALL)} | {
    word: 10 * number for number, word in enumerate(_TENS, start=2)
}
_SCALES = {"thousand": 1_000, "million": 10**6, "billion": 10**9}
_UNDER_HUNDRED = (
    rf"(?:(?:{'|'.join(_TENS)})(?:[ -](?:{'|'.join(_SMALL[1:10])}))?|{'|'.join(_SMALL)})"
)
_UNDER_THOUSAND = (
    rf"(?:(?:{'|'.join(_SMALL[1:])}|a) hundred(?:(?: and)? {_UNDER_HUNDRED})?|{_UNDER_HUNDRED})"
)
_LEADING = re.compile(
    rf"(?P<sign>(?:negative|minus) )?"
    rf"(?P<words>(?:{_UNDER_THOUSAND}|a) (?:thousand|million|billion)"
    rf"(?:,?(?: and)? {_UNDER_THOUSAND}(?: thousand)?){{0,2}}|{_UNDER_THOUSAND})(?![A-Za-z])",
    re.IGNORECASE,
)
_PART_OF_ONE = re.compile(rf"an? (?=(?:{'|'.join(PARTS)})\b)", re.IGNORECASE)


def in_digits(text: str) -> str:
    """Return `text` with the number that it begins with in digits: forty-two, minus 5, a third."""
    negative = re.match(r"(?:negative|minus) (?=\.?\d)", text, re.IGNORECASE)
    if negative:
        return f"-{text[negative.end() :]}"
    leading = _LEADING.match(text)
    if leading:
        sign = "-" if leading["sign"] else ""
        return f"{sign}{_value(leading['words'])}{text[leading.end() :]}"
    return _PART_OF_ONE.sub("1 ", text, count=1) if _PART_OF_ONE.match(text) else text


def _value(words: str) -> int:
    total = current = 0
    for word in re.findall(r"[a-z]+", words.lower()):
        if word == "hundred":
            current *= 100
        elif word in _SCALES:
            total, current = total + current * _SCALES[word], 0
        elif word != "and":
            current += 1 if word == "a" else _NUMBERS[word]
    return total + current
