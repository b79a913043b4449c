r"""Answers: whether two of them mean the same.

No answer is executed as code. Numbers are read digit by digit into exact fractions, formulas by
math-verify within bounds (formulas.py), and a text longer than MAX_CHARS is compared literally.
"""

import re

from s2l_ray.evaluation import latex
from s2l_ray.evaluation.choices import Choice, choice
from s2l_ray.evaluation.final_answers import extract
from s2l_ray.evaluation.formulas import same_formula
from s2l_ray.evaluation.quantities import quantity, same_quantity
from s2l_ray.evaluation.several import Several, named, several, unwrapped
from s2l_ray.evaluation.texts import same_text

__all__ = ["equal", "extract"]
MAX_CHARS = 1_000
_HEDGE = re.compile(
    r"(?:\\approx|~|(?:approximately|approx\.?|about|around|roughly|nearly|exactly|precisely|simply"
    r"|just|only|equal to|equals|equal)(?![A-Za-z]))\s*",
    re.IGNORECASE,
)
_RELATION = re.compile(r"(\\[lgn]e(?![A-Za-z])|[<>=])")
_MIRRORED = {">": "<", r"\ge": r"\le"}


def equal(predicted: str | None, gold: str | None) -> bool:
    r"""Return True if two answers mean the same; None is equal to nothing.

    Numbers are compared by value (1/2, \frac12, 0.5, one half and 1,000.00 are numbers), to a
    relative difference of 1e-6. Units are compared only if both answers have one. A percent sign on
    one side alone may mean hundredths or nothing. Choices are compared by their letters, and by
    their texts where only one side has a letter. (a, b) is compared in order; {a, b} and bare
    lists in any order. Formulas are compared by their values. All other answers are compared as
    texts without layout, articles and case.
    """
    if predicted is None or gold is None:
        return False
    if max(len(predicted), len(gold)) > MAX_CHARS:
        return predicted.strip() == gold.strip()
    return _same(_bare(latex.cleaned(predicted)), _bare(latex.cleaned(gold)), depth=0)


def _bare(text: str) -> str:
    """Return `text` without hedges before its value, and brackets around it."""
    hedge = _HEDGE.match(text)
    return unwrapped(text[hedge.end() :] if hedge else text)


def _same(left: str, right: str, depth: int) -> bool:
    one, other = choice(left), choice(right)
    if one and other:
        return one.letter == other.letter
    left, right = _text_of(one, left), _text_of(other, right)
    if _same_number(left, right):
        return True
    several_left, several_right = several(left), several(right)
    if several_left and several_right:
        return depth < latex.MAX_DEPTH and _same_several(several_left, several_right, depth + 1)
    if several_left or several_right:
        return same_text(latex.plain(left), latex.plain(right))
    return _same_single(left, right)


def _text_of(found: Choice | None, text: str) -> str:
    """Return the `12 cm` of `B) 12 cm`; a letter alone stays what it is."""
    return found.text if found and found.text else text


def _same_number(left: str, right: str) -> bool | None:
    """Compare two numbers; None if one of the texts is none."""
    one, other = quantity(latex.plain(left)), quantity(latex.plain(right))
    return same_quantity(one, other) if one and other else None


def _same_several(left: Several, right: Several, depth: int) -> bool:
    if len(left.items) != len(right.items) or not _same_kind(left, right):
        return False
    named_on_one_side = min(len(left.names), len(right.names)) == 0
    several_names = max(len(left.names), len(right.names)) > 1
    if left.is_ordered or right.is_ordered or (named_on_one_side and several_names):
        pairs = zip(left.items, right.items, strict=True)
        return all(_same_item(one, other, depth) for one, other in pairs)
    unmatched = list(right.items)
    for item in left.items:
        partner = next((i for i, x in enumerate(unmatched) if _same_item(item, x, depth)), None)
        if partner is None:
            return False
        del unmatched[partner]
    return True


def _same_kind(left: Several, right: Several) -> bool:
    """Return True for the same brackets; `x = 1, y = 2` may stand for a tuple."""
    if left.kind == right.kind:
        return True
    kinds = {left.kind: left, right.kind: right}
    return set(kinds) == {"", "()"} and len(kinds[""].names) == len(kinds[""].items)


def _same_item(left: tuple[str, str], right: tuple[str, str], depth: int) -> bool:
    if left[0] and right[0] and left[0] != right[0]:
        return False
    return _same(_bare(left[1]), _bare(right[1]), depth)


def _same_single(left: str, right: str) -> bool:
    """Compare two answers that are neither choices nor of several values."""
    (left_name, left_value), (right_name, right_value) = named(left), named(right)
    is_equation = not (left_name and right_name) and _RELATION.search(right if left_name else left)
    if left_name == right_name or not ((left_name and right_name) or is_equation):
        left, right = _bare(left_value), _bare(right_value)
    by_value = _same_number(left, right)
    if by_value is not None:
        return by_value
    if same_text(latex.plain(left), latex.plain(right)):
        return True
    one, other = _RELATION.split(left), _RELATION.split(right)
    if len(one) == len(other) > 1:
        return _same_relation(one, other)
    return len(one) == len(other) and same_formula(left, right)


def _same_relation(left: list[str], right: list[str]) -> bool:
    """Compare relations that are split into sides and signs: 2 < x with x > 2."""
    left, right = _ascending(left), _ascending(right)
    if left[1::2] != right[1::2]:
        return False
    if len(left) > 3:
        pairs = zip(left[::2], right[::2], strict=True)
        return all(_same_single(one.strip(), other.strip()) for one, other in pairs)
    difference = f"({left[0]})-({left[2]})"
    if same_formula(difference, f"({right[0]})-({right[2]})"):
        return True
    is_symmetric = left[1] in ("=", r"\ne")
    return is_symmetric and same_formula(difference, f"({right[2]})-({right[0]})")


def _ascending(relation: list[str]) -> list[str]:
    """Return a relation with `>` turned into `<`, and its sides with it."""
    if not set(relation[1::2]) & set(_MIRRORED):
        return relation
    return [_MIRRORED.get(part, part) for part in reversed(relation)]
