r"""Formulas that mean the same: 2x + 3 and 3 + 2x, \sqrt{12} and 2\sqrt{3}.

`math-verify` reads the LaTeX; it builds expressions and runs no code. Two expressions with values
are the same if they agree at fixed points. What has no values (sets, statements) is compared by
math-verify. A formula whose values could be huge or costly is not read at all, so that no time
limit is needed: the result never depends on the machine.
"""

import itertools
import logging
import math
import re
from functools import lru_cache
from typing import Any

import sympy
from math_verify import LatexExtractionConfig, parse, verify
from math_verify.parser import NormalizationConfig

MAX_CHARS = 120
MAX_DIGITS = 25
"""Most digits of a number in a formula."""
MAX_EXPONENT = 3_000
MAX_EXPONENT_IN_FUNCTION = 20
"""Largest exponent in a formula with functions such as sine and exp, whose values grow fast."""
MAX_NESTED = 6
"""Most brackets around one place."""
MAX_FACTORIAL = 500
_DIGITS = 30
_MAX_PRECISION = 20_000
"""Most digits to which a constant is evaluated; MAX_EXPONENT keeps values below it."""

logging.getLogger("math_verify.parser").setLevel(logging.ERROR)  # that it runs without a timer
logging.getLogger("math_verify.grader").setLevel(logging.ERROR)

_CONFIG = LatexExtractionConfig(
    normalization_config=NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=False, nits=False, boxed="none"
    )
)
_FUNCTIONS = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp sqrt pi"
_KNOWN = frozenset(
    f"{_FUNCTIONS} frac cdot times div binom infty alpha beta gamma delta epsilon varepsilon "
    "theta lambda mu nu phi varphi psi rho sigma tau omega Delta Omega".split()
)
_BARE_FUNCTION = re.compile(rf"(?<![\\A-Za-z])({'|'.join(_FUNCTIONS.split())})(?![A-Za-z])")
_POINTS = [
    [sympy.Rational(top, 97) for top in tops]
    for tops in [
        (61, 154, 233, 312, 401, 83, 127, 191),
        (-73, 35, -118, 59, -203, 11, -41, 307),
        (173, -29, 67, -211, 13, -131, 251, -89),
        (-251, -167, 311, 113, 79, 223, -17, 43),
        (337, 271, -47, -37, -149, -61, 101, -7),
    ]
]


def same_formula(left: str, right: str) -> bool:
    """Return True if two formulas in cleaned LaTeX are the same; False if one cannot be read."""
    one, other = _expression(left), _expression(right)
    if one is None or other is None:
        return False
    try:
        agree = _agree(one, other)
        return bool(verify(one, other, timeout_seconds=None)) if agree is None else agree
    except (ArithmeticError, AttributeError, NotImplementedError, TypeError, ValueError):
        return False


def is_readable(formula: str) -> bool:
    r"""Return True if `formula` is short, has no words, and only values of a bounded size."""
    if len(formula) > MAX_CHARS or not re.search(r"[\w)]", formula) or r"\\" in formula:
        return False
    if _STRANGE.search(formula) or not set(re.findall(r"\\([A-Za-z]+)", formula)) <= _KNOWN:
        return False
    if any(len(run) > MAX_DIGITS for run in re.findall(r"\d+", formula)):
        return False
    limit = MAX_EXPONENT_IN_FUNCTION if _FUNCTION.search(formula) else MAX_EXPONENT
    return _growth(formula) <= limit and _nested(formula) <= MAX_NESTED


def _nested(formula: str) -> int:
    """Return the most brackets around one place; a bar counts as an opening one."""
    depths = itertools.accumulate((sign in "([{|") - (sign in ")]}") for sign in formula)
    return max(depths, default=0)


_STRANGE = re.compile(
    r"[^-\w\s\\{}()\[\]+*/^.|!,]"  # not a sign of a formula
    r"|(?<![\\A-Za-z])[A-Za-z]{4}|(?<![\\A-Za-z])[A-Za-z]{2,} |\d\s?_"  # words, bases of numerals
    r"|[A-Za-z)}\]!]\s?!|\^\s?-?\w+\s?!"  # factorials of what is not a number
    r"|\^\s?[({][^{}()]*[\^!]|\^\s?-?(?:\d+|[A-Za-z])\s?\^"  # powers in exponents
    r"|-\s?-|\\(?:exp|sinh|cosh).*\\(?:exp|sinh|cosh)"
)
_FUNCTION = re.compile(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc|exp|log|ln)h?(?![a-z])")
_POWER = re.compile(r"([A-Za-z])?\s?\^\s?(\{[^{}]*\}|\([^()]*\)|-?\d+|[A-Za-z]|\\[A-Za-z]+)")
_BINOMIAL = re.compile(r"\\binom\s?\{(\d+)\}\s?\{(\d+)\}")


def _growth(formula: str) -> float:
    """Return the largest exponent that powers within powers could make, or infinity."""
    chosen = _BINOMIAL.findall(formula)
    factorials = [*re.findall(r"(\d+)\s?!", formula), *(n for pair in chosen for n in pair)]
    powers = _POWER.findall(formula)
    if formula.count(r"\binom") != len(chosen) or formula.count("^") != len(powers):
        return math.inf
    if any(int(n) > MAX_FACTORIAL for n in factorials):
        return math.inf
    sizes = {True: [1], False: [1]}
    for letter, exponent in powers:
        sizes[bool(letter)].append(math.prod(int(n) for n in re.findall(r"[1-9]\d*", exponent)))
    return max(sizes[True]) * math.prod(sizes[False]) * (100 if factorials else 1)


@lru_cache(maxsize=1_024)
def _expression(formula: str) -> Any:
    """Return the expression that math-verify reads in `formula`, or None."""
    latex = _BARE_FUNCTION.sub(r"\\\1 ", formula.replace("*", r"\cdot "))
    latex = re.sub(r"\\sqrt\s?\(([^()]*)\)", r"\\sqrt{\1}", latex)
    latex = re.sub(r"\^\s?\(([^()]*)\)", r"^{\1}", latex)
    if not is_readable(latex):
        return None
    found = parse(f"${latex}$", [_CONFIG], fallback_mode="no_fallback", parsing_timeout=0)
    return found[0] if len(found) == 1 else None


def _agree(one: Any, other: Any) -> bool | None:
    """Return whether two expressions have the same values; None if they have none."""
    if not (isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr)):
        return None
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    if len(symbols) > len(_POINTS[0]):
        return None
    is_rounded = one.has(sympy.Float) or other.has(sympy.Float)
    known = 0
    points = _POINTS if symbols else _POINTS[:1]
    for point in points:
        same = _same_value(one, other, dict(zip(symbols, point, strict=False)), is_rounded)
        if same is False:
            return False
        known += same is True
    return True if known > len(points) // 2 else None


def _same_value(one: Any, other: Any, values: dict[Any, Any], is_rounded: bool) -> bool | None:
    """Compare two expressions at one point; None if one of them has no finite value there.

    Numbers are rounded ones throughout: exact ones would be factored to simplify their roots.
    """
    left, right = (each.evalf(_DIGITS, subs=values) for each in (one, other))
    if not (_is_finite(left) and _is_finite(right)):
        return None
    if not is_rounded and abs(left) > 10 ** (_DIGITS // 2):
        precision = min(_MAX_PRECISION, _DIGITS + int(sympy.log(abs(left), 10).evalf()))
        left, right = (each.evalf(precision, subs=values) for each in (one, other))
        return bool(abs(left - right) < sympy.Rational(1, 10**6))
    tolerance = 1e-6 if is_rounded else 1e-15
    return bool(abs(left - right) <= tolerance * max(abs(left), abs(right), sympy.Float(1e-9)))


def _is_finite(value: Any) -> bool:
    real, imaginary = value.as_real_imag()
    return bool(real.is_Float or real.is_Rational) and bool(
        imaginary.is_Float or imaginary.is_Rational
    )
