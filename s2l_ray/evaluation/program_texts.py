"""Programs in completions, fenced or bare, and what is said beside them."""

import re
from typing import NamedTuple


class Program(NamedTuple):
    """Python code of a completion, and the words around it."""

    code: str
    words: str


_FENCED = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_STATEMENT = re.compile(
    r"^[ \t]*(?:import [A-Za-z_]|from [\w.]+ import |def \w+ ?\(|print ?\()", re.MULTILINE
)
_FIRST_LINE = re.compile(
    r"^(?:import [A-Za-z_]|from [\w.]+ import |def \w+ ?\(|print ?\(|#|[A-Za-z_]\w*(?:, ?\w+)* = )",
    re.MULTILINE,
)


def program(text: str) -> Program | None:
    """Return the program that a completion writes, or None for a text without one.

    A program has a line that imports, defines a function or prints. The code of several fences is
    one program.
    """
    fenced = [code for code in _FENCED.findall(text) if _STATEMENT.search(code)]
    if fenced:
        return Program("\n".join(fenced), _FENCED.sub("\n", text).strip())
    first = _FIRST_LINE.search(text)
    if first is None or not _STATEMENT.search(text, first.start()):
        return None
    return Program(text[first.start() :], text[: first.start()].strip())
