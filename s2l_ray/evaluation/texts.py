"""Answers in words: names, yes and no, dates and times of day."""

import re

_MONTHS = "january february march april may june july august september october november december"
_MONTH = rf"({'|'.join(f'{month[:3]}(?:{month[3:]})?' for month in _MONTHS.split())})\.?"
_DATES = [
    (re.compile(rf"{_MONTH} (\d{{1,2}})(?:,? (\d{{4}}))?"), (1, 2, 3)),
    (re.compile(rf"(\d{{1,2}})(?: of)? {_MONTH}(?:,? (\d{{4}}))?"), (2, 1, 3)),
]
_YES_OR_NO = {"true": "yes", "false": "no"}


def same_text(left: str, right: str) -> bool:
    """Compare two texts without regard to case, spaces, articles and the way to write a date."""
    return bool(canonical(left)) and canonical(left) == canonical(right)


def canonical(text: str) -> str:
    """Return the one way to write `text`: lower case, no spaces, no leading article."""
    text = re.sub(r"(?<![a-z])(?:the|an?) (?=[a-z]{2})", "", text.strip().lower())
    text = re.sub(r"(?<=\d)(?:st|nd|rd|th)(?![a-z])", "", text)
    text = re.sub(r"(?<=\d)\s?([ap])\.?\s?m(?![a-z])\.?", r"\1m", text)
    for pattern, (month, day, year) in _DATES:
        found = pattern.fullmatch(text)
        if found:
            text = f"{found[month][:3]} {int(found[day])} {found[year] or ''}"
    text = _YES_OR_NO.get(text, text)
    return text.replace(" ", "")
