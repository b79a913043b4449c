r"""Answers in one notation: LaTeX without layout, and plain text without LaTeX.

`cleaned` leaves what has a meaning in LaTeX, such as \frac{1}{2}; `plain` spells it out, as 1/2.
"""

import re

MAX_DEPTH = 4
"""Passes over nested braces, the innermost first. What is nested deeper stays as it is written."""

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2013\u2014", "-"),
        **{
            "\u00d7": r"\times ",
            "÷": "/",
            "·": r"\cdot ",
            "π": r"\pi ",
            "∞": r"\infty ",
            "±": r"\pm ",
        },
        **{
            "≤": r"\le ",
            "≥": r"\ge ",
            "≠": r"\ne ",
            "≈": r"\approx ",
            "\u222a": r"\cup ",
            "∈": r"\in ",
        },
        **{
            "²": "^2",
            "³": "^3",
            "\u00a0": " ",
            "\u2009": " ",
            "\u202f": " ",
            "\u2032": "'",
            "\u2019": "'",
        },
        **{"“": '"', "”": '"', "√": r"\sqrt ", "∅": r"\emptyset "},
    }
)
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅛": "1/8"}
_CLEANING = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\\\(?:\[\w+\])?", r"\\cr "),  # a new row, which is no space
        (r"(?<=\d)([½⅓⅔¼¾⅕⅛])", r" \1"),
        (r"\{,\}", ","),
        (r"(?<=\d)(?:\\[,:; ]|~)(?=\d{3}(?!\d))", ","),
        (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits)(?![A-Za-z])", ""),
        (r"\\[!,;:]", ""),
        (r"\\[()\[\]]", ""),
        (r"\\(?:quad|qquad|hspace\{[^{}]*\})(?![A-Za-z])|\\ |~", " "),
        (r"\^\s?\{?\s?\\circ\s?\}?|\\degrees?(?![A-Za-z])|°", ""),
        (r"(?<![A-Za-z])(?:US|CA|AU|HK)\s?(?=\\?\$)|(?<![A-Za-z])Rs\.?\s?(?=\d)", ""),
        (r"\\?\$|[£€¥₹]|\\(?:pounds|euro)(?![A-Za-z])", ""),
        (r"\\%", "%"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\leqs?(?:lant)?(?![A-Za-z])", r"\\le"),
        (r"\\geqs?(?:lant)?(?![A-Za-z])", r"\\ge"),
        (r"\\neq(?![A-Za-z])", r"\\ne"),
        (r"<=|=<", r"\\le "),
        (r">=", r"\\ge "),
        (r"\\(?:lt)(?![A-Za-z])", "<"),
        (r"\\(?:gt)(?![A-Za-z])", ">"),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"(?<=[\w)}])\s?\*\*\s?(?=[\w({-])", "^"),
        (r"\\(?:lbrace)(?![A-Za-z])", r"\\{"),
        (r"\\(?:rbrace)(?![A-Za-z])", r"\\}"),
        (r"\\l?vert(?![A-Za-z])|\\rvert(?![A-Za-z])", "|"),
    ]
]
_WORDS = re.compile(
    r"\\(?:text|mathrm|mbox|textbf|textit|mathbf|operatorname|textrm|mathit|textsf|emph)"
    r"\s?\{([^{}]*)\}"
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s?\{([^{}]*)\}")
_BRACELESS = [
    (re.compile(r"\\frac\s?([0-9A-Za-z])\s?(?=[0-9A-Za-z{\\])"), r"\\frac{\1}"),
    (re.compile(r"(\\frac\s?\{[^{}]*\})\s?([0-9A-Za-z])"), r"\1{\2}"),
    (re.compile(r"\\sqrt\s{0,3}([0-9A-Za-z])"), r"\\sqrt{\1}"),
]


def cleaned(text: str) -> str:
    r"""Return `text` without what has no meaning: layout, dollars, currencies and boxes."""
    text = text.translate(_CHARACTERS)
    for pattern, replacement in _CLEANING:
        text = pattern.sub(replacement, text)
    for character, fraction in _VULGAR.items():
        text = text.replace(character, fraction)
    for _ in range(MAX_DEPTH):
        text = _BOX.sub(r"\1", _WORDS.sub(r" \1 ", text))
    for pattern, replacement in _BRACELESS:
        text = pattern.sub(replacement, text)
    return re.sub(r"\s+", " ", text).strip(" ").strip("\"`*'").strip(" ").rstrip(" .,;:")


_SPELT_OUT = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\sqrt\s?(\[[^][{}]*\])?\s?\{([^{}]*)\}", r"sqrt\1(\2)"),
        (r"([_^])\s?\{([0-9A-Za-z])\}", r"\1\2"),
        (r"([_^])\s?\{([^{}]*)\}", r"\1(\2)"),
    ]
]
_FRACTION = re.compile(r"\\frac\s?\{([^{}]*)\}\s?\{([^{}]*)\}")
_ATOM = re.compile(r"[+-]?[\w.\\]*(?:\([^()]*\))?")
_SIGNS = {
    r"\le": "<=",
    r"\ge": ">=",
    r"\ne": "!=",
    r"\cdot": "*",
    r"\times": "*",
    r"\infty": "infinity",
}


def plain(text: str) -> str:
    """Return cleaned `text` with its LaTeX spelt out; spaces between words stay."""
    for _ in range(MAX_DEPTH):
        for pattern, replacement in _SPELT_OUT:
            text = pattern.sub(replacement, text)
        text = _FRACTION.sub(lambda m: f" {_grouped(m[1])}/{_grouped(m[2])}", text)
    text = re.sub(r"\\[A-Za-z]+", lambda m: _SIGNS.get(m[0], m[0][1:]), text)
    text = text.replace("\\{", "{").replace("\\}", "}").replace("+infinity", "infinity")
    text = re.sub(r"\s+", " ", text).replace(" ^", "^")
    return re.sub(r"(?<=\d) ?: ?(?=\d)", ":", text).strip(" ")


def _grouped(text: str) -> str:
    text = text.strip()
    return text if _ATOM.fullmatch(text) else f"({text})"
