r"""Final answers of responses: their extraction, and the comparison of their meanings.

No answer is executed as code. Numbers are read digit by digit into exact fractions, LaTeX is
rewritten to plain text by a fixed number of passes, and a text longer than MAX_CHARS is compared
literally.
"""

import re
from fractions import Fraction
from typing import NamedTuple

MAX_CHARS = 1_000
RELATIVE_TOLERANCE = Fraction(1, 1_000_000)
_MAX_DEPTH = 4

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(
    rf"(?:(?<![\w)\]}}.])-)?(?:\\[dtc]?frac\{{[^{{}}]{{1,40}}\}}\{{[^{{}}]{{1,40}}\}}"
    rf"|(?:{_DIGITS})(?:\s?/\s?[0-9]+)?%?)"
)
_MARK = re.compile(
    r"####|\banswers?\s*(?:is|are|was|:|=)\s*:?|\banswer\b[^.:=\n]{1,40}?\b(?:is|are|was|be)\b\s*:?",
    re.IGNORECASE,
)
_BARE_CHOICE = re.compile(
    r"\b(?:answer|ans|option|choice)(?:\s{0,3}[:-])?\s{1,3}(?:option\s{1,3})?\(?\s?([A-J])\s?\)?$",
    re.IGNORECASE,
)
_LEADING_CHOICE = re.compile(
    r"(?:(?:option|choice)\s+)?(?:\(\s?([A-J])\s?\)|([A-J])(?:\s?\)|\s?[.:,](?=\s)|\s?[.:]?$))",
    re.IGNORECASE,
)
_CLOSING_CHOICE = re.compile(r"(?:^|\s)\(\s?([A-J])\s?\)$", re.IGNORECASE)
_CHOICE_AND_TEXT = re.compile(r"(?:\(\s?([A-J])\s?\)|([A-J])\))(?:\s|$)", re.IGNORECASE)


def extract(text: str) -> str | None:
    r"""Return the final answer in `text` as it is written; None for a text without content.

    The answer is the first of these that exists: the last complete \boxed{...}; the text after the
    last "answer is", "answer:" or "####"; the letter of a multiple choice; an expression that makes
    up the whole text; the last number; the last line.
    """
    stripped = text.strip()
    for rule in (_boxed, _announced, _lettered, _expression, _last_number, _last_line):
        answer = rule(stripped)
        if answer:
            return answer
    return None


def equal(predicted: str | None, gold: str | None) -> bool:
    r"""Return True if two answers mean the same; None is equal to nothing.

    Numbers are compared by value (1/2, \frac12, 0.5 and 1,000.00 are numbers), to a relative
    difference of 1e-6. Units are compared only if both answers have one. A percent sign on one
    side alone may mean hundredths or nothing. Letters of a choice and words are compared without
    regard to case. (a, b) is compared in order; {a, b} and bare lists in any order. All other
    answers are compared as LaTeX without its layout.
    """
    if predicted is None or gold is None:
        return False
    return _same(_plain(predicted), _plain(gold), depth=0)


def _boxed(text: str) -> str | None:
    content = None
    closing = _closing_braces(text)
    for box in re.finditer(r"\\f?box(?:ed)?\s?(?:\{|([0-9A-Za-z]))", text):
        if box[1]:
            content = box[1]
        elif box.end() - 1 in closing:
            content = text[box.end() : closing[box.end() - 1]].strip() or content
    return content


def _closing_braces(text: str) -> dict[int, int]:
    """Map the position of each closed opening brace of `text` to that of its closing brace."""
    closing: dict[int, int] = {}
    unclosed: list[int] = []
    for brace in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if brace[0] == "{":
            unclosed.append(brace.start())
        elif brace[0] == "}" and unclosed:
            closing[unclosed.pop()] = brace.start()
    return closing


def _announced(text: str) -> str | None:
    """Return the text after the last announcement, up to the end of its line or sentence."""
    bare = _BARE_CHOICE.search(text.rstrip(" ."))
    if bare:
        return bare[1]
    marks = list(_MARK.finditer(text))
    if not marks:
        return None
    line = text[marks[-1].end() :].strip(" \t\r\n*`").partition("\n")[0]
    choice = _LEADING_CHOICE.match(line)
    if choice:
        return choice[1] or choice[2]
    sentence = re.split(r"\.(?:\s|$)", line, maxsplit=1)[0]
    choice = _CLOSING_CHOICE.search(sentence.rstrip(" ."))
    if choice:
        return choice[1]
    return _without_prose(_undelimited(sentence))


def _undelimited(text: str) -> str:
    """Return `text` without emphasis, quotation marks, and the dollars around a formula."""
    text = text.strip(" \t*`\"'").rstrip(" .,;:*")
    if len(text) > 2 and text[0] == text[-1] == "$":
        return text[1:-1].strip()
    return text


def _without_prose(statement: str) -> str:
    """Return the first number of a sentence, a calculation's result, or the whole statement."""
    number = _NUMBER.search(statement)
    if number and len(re.findall(r"(?<![\\\w])[A-Za-z]{2,}", statement)) > 4:
        return number[0]
    return _result(statement)


def _result(statement: str) -> str:
    value = statement.rpartition("=")[2].strip()
    return value if "," not in statement and _NUMBER.fullmatch(value.strip("$ ")) else statement


def _lettered(text: str) -> str | None:
    line = _last_line(text).rstrip(" .*$")
    choice = _CHOICE_AND_TEXT.match(line) or _CLOSING_CHOICE.search(line)
    return next(letter for letter in choice.groups() if letter) if choice else None


def _expression(text: str) -> str | None:
    r"""Return all of `text` if it is one line without words (a \command is no word)."""
    words = re.search(r"(?<![\\A-Za-z])[A-Za-z]{2,}", text)
    if words or "\n" in text or not re.search(r"\w", text):
        return None
    return _result(_undelimited(text))


def _last_number(text: str) -> str | None:
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def _last_line(text: str) -> str:
    return text.rpartition("\n")[2].strip()


_LAYOUT = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle)(?![A-Za-z])|\\[!,;:]|\\\(|\\\)|\\\[|\\\]"
    r"|\^\s?\{?\s?\\circ\s?\}?|\\degree|°|\\?\$|[£€¥]"
)
_SPACE = re.compile(r"\\(?:quad|qquad)(?![A-Za-z])|\\ |~|\u00a0")
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (
            r"\\(?:text|mathrm|mbox|textbf|textit|mathbf|operatorname|textrm)\s?\{([^{}]*)\}",
            r" \1 ",
        ),
        (r"\\boxed\s?\{([^{}]*)\}", r"\1"),
        (r"\\sqrt\s?(\[[^][{}]*\])?\s?\{([^{}]*)\}", r"sqrt\1(\2)"),
        (r"\\sqrt\s?([0-9A-Za-z])", r"sqrt(\1)"),
        (r"([_^])\s?\{([0-9A-Za-z])\}", r"\1\2"),
        (r"([_^])\s?\{([^{}]*)\}", r"\1(\2)"),
        (r"\\frac\s?([0-9A-Za-z])\s?(?=[0-9A-Za-z{])", r"\\frac{\1}"),
        (r"(\\frac\s?\{[^{}]*\})\s?([0-9A-Za-z])", r"\1{\2}"),
    ]
]
_FRACTION = re.compile(r"\\frac\s?\{([^{}]*)\}\s?\{([^{}]*)\}")
_ATOM = re.compile(r"[+-]?[\w.\\]*(?:\([^()]*\))?")
_SYNONYMS = str.maketrans({"\u2212": "-", "\u2013": "-", "\u00d7": "*", "\u00f7": "/", "π": "pi"})
_COMMANDS = [(r"\\[dtc]frac", r"\\frac"), (r"\\(?:cdot|times)(?![A-Za-z])", "*"), (r"\\%", "%")]
_NAMES = [(r"\\leq?(?![A-Za-z])", "<="), (r"\\geq?(?![A-Za-z])", ">="), (r"\\infty", "infinity")]


def _plain(text: str) -> str:
    """Return `text` with its LaTeX spelt out and its layout removed; spaces between words stay."""
    text = text.strip()
    if len(text) > MAX_CHARS:
        return text
    text = _SPACE.sub(" ", _LAYOUT.sub("", text.translate(_SYNONYMS)))
    for pattern, replacement in _COMMANDS + _NAMES:
        text = re.sub(pattern, replacement, text)
    for _ in range(_MAX_DEPTH):  # the innermost braces first
        for compiled, replacement in _REWRITES:
            text = compiled.sub(replacement, text)
        text = _FRACTION.sub(lambda m: f" {_grouped(m[1])}/{_grouped(m[2])}", text)
    text = re.sub(r"\\([A-Za-z]+)", r"\1", text).replace("\\{", "{").replace("\\}", "}")
    return re.sub(r"\s+", " ", text).replace(" ^", "^").strip(" ").rstrip(" .,;:")


def _grouped(text: str) -> str:
    text = text.strip()
    return text if _ATOM.fullmatch(text) else f"({text})"


def _same(left: str, right: str, depth: int) -> bool:
    if max(len(left), len(right)) > MAX_CHARS:
        return left == right
    left_letter, right_letter = _letter(left), _letter(right)
    if left_letter and right_letter:
        return left_letter == right_letter
    if _named_value(left) == left or _named_value(right) == right:  # only one side names its value
        left, right = _named_value(left), _named_value(right)
    left_quantity, right_quantity = _quantity(left), _quantity(right)
    if left_quantity and right_quantity:
        return _same_quantity(left_quantity, right_quantity)
    if _compact(left) == _compact(right):
        return bool(_compact(left))
    return depth < _MAX_DEPTH and _same_items(left, right, depth + 1)


def _compact(text: str) -> str:
    return text.replace(" ", "").casefold()


def _named_value(text: str) -> str:
    """Return the 5 of `x = 5`."""
    name, _, value = text.partition("=")
    is_name = re.fullmatch(r"[A-Za-z](?:_?\w)?", name.strip())
    return value.strip() if is_name and value.strip() and "=" not in value else text


def _letter(text: str) -> str | None:
    """Return the letter of `B`, `(b)`, `option B` or `B) 12 cm`."""
    whole = re.fullmatch(r"(?:(?:option|choice) ?)?\(? ?([A-Ja-j]) ?\)?", text, re.IGNORECASE)
    choice = whole or _CHOICE_AND_TEXT.match(text)
    return next(x for x in choice.groups() if x).casefold() if choice else None


class _Quantity(NamedTuple):
    value: Fraction
    is_percent: bool
    unit: str


_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_NUMERAL = re.compile(
    rf"(?P<sign>[+-]?) ?(?:(?P<whole>[0-9]+) (?P<over>[0-9]+) ?/ ?(?P<under>[0-9]+)"
    rf"|\(?(?P<top>[+-]?(?:{_DECIMAL}))\)? ?/ ?\(?(?P<bottom>[+-]?(?:{_DECIMAL}))\)?"
    rf"|(?P<decimal>{_DECIMAL})"
    rf"(?:[eE](?P<e>[+-]?[0-9]{{1,3}})(?![0-9])| ?\* ?10 ?\^ ?\(?(?P<ten>[+-]?[0-9]{{1,3}})\)?)?)"
)
_UNIT = re.compile(r"[A-Za-z]+(?:\^?\(?[23]\)?)?(?:(?: ?/ ?| )[A-Za-z]+(?:\^?\(?[23]\)?)?){0,4}")
_ATTACHED_UNITS = frozenset(
    ["cm", "mm", "km", "kg", "mg", "ml", "ft", "hr", "hrs", "min", "sec", "mph", "kmph", "am", "pm"]
)
_SHORT_UNITS = frozenset(["m", "g", "s", "h", "l"])
_NOT_UNITS = frozenset(
    ["pi", "sqrt", "sin", "cos", "tan", "cot", "csc", "log", "ln", "and", "or", "to", "mod"]
)
_MULTIPLES = {
    "dozen": 12,
    "hundred": 100,
    "thousand": 1_000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}


def _quantity(text: str) -> _Quantity | None:
    """Return the number that `text` is, with its percent sign or unit; None for other texts."""
    numeral = _NUMERAL.match(text)
    value = _value(numeral) if numeral else None
    if numeral is None or value is None:
        return None
    rest = text[numeral.end() :]
    percent = re.match(r" ?%| per ?cent(?:age)?\b", rest, re.IGNORECASE)
    if percent:
        rest = rest[percent.end() :]
    word, _, after = rest.strip().lower().partition(" ")
    if word in _MULTIPLES and not percent:
        value, rest = value * _MULTIPLES[word], f" {after}"
    unit = _unit(rest)
    return None if unit is None else _Quantity(value, bool(percent), unit)


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
    """Return the unit after a number, in lower case and singular; None for a part of a formula."""
    name = rest.strip().lower()
    if not name:
        return ""
    first = re.split(r"[ /^(23]", name, maxsplit=1)[0]
    parted = rest[0] == " " and (len(first) > 1 or first in _SHORT_UNITS)
    if first in _NOT_UNITS or not _UNIT.fullmatch(name) or not (parted or first in _ATTACHED_UNITS):
        return None
    return " ".join(word.removesuffix("s") for word in name.split())


def _same_quantity(left: _Quantity, right: _Quantity) -> bool:
    if left.unit and right.unit and left.unit != right.unit:
        return False
    if left.is_percent == right.is_percent:
        return _close(left.value, right.value)
    percent, plain = (left, right) if left.is_percent else (right, left)
    return _close(percent.value, plain.value) or _close(percent.value / 100, plain.value)


def _close(left: Fraction, right: Fraction) -> bool:
    return abs(left - right) <= RELATIVE_TOLERANCE * max(abs(left), abs(right))


def _same_items(left: str, right: str, depth: int) -> bool:
    left_brackets, left_items = _items(left)
    right_brackets, right_items = _items(right)
    if left_brackets != right_brackets or not 1 < len(left_items) == len(right_items):
        return False
    if left_brackets or "=" in left + right:
        pairs = zip(left_items, right_items, strict=True)
        return all(_same(one, other, depth) for one, other in pairs)
    return _same_in_any_order(left_items, right_items, depth)


def _same_in_any_order(left_items: list[str], right_items: list[str], depth: int) -> bool:
    unmatched = list(right_items)
    for item in left_items:
        partner = next((i for i, other in enumerate(unmatched) if _same(item, other, depth)), None)
        if partner is None:
            return False
        del unmatched[partner]
    return True


def _items(text: str) -> tuple[str, list[str]]:
    """Return the brackets around a list (none for braces) and the items between its commas."""
    brackets = ""
    if len(text) > 1 and text[0] in "([{" and _opening_of_last(text) == 0:
        brackets = "" if text[0] == "{" else text[0] + text[-1]
        text = text[1:-1]
    text = re.sub(r" (?:and|or) ", ",", text)
    items, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character in ",;" and depth == 0:
            items.append("")
        else:
            items[-1] += character
    return brackets, [item.strip() for item in items if item.strip()]


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
