"""Tables of the configuration, the help of commands, a declaration: taken from the code.

MkDocs loads this file as a hook (mkdocs.yml).
"""

import contextlib
import datetime
import inspect
import io
import os
import re
import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from s2l_ray import cli
from s2l_ray.config.section import Section
from s2l_ray.config.sections import RunConfig
from s2l_ray.evaluation import declaration as evaluation_declaration

WIDTH = "96"
TABLES, HELP = "<!-- tables of all sections -->", "<!-- help of all commands -->"
DECLARATION = "<!-- declaration of a stage -->"
NAMES = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    datetime.date: "date",
    Any: "any value",
}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the marks of a page by what they stand for; MkDocs calls it."""
    written = {TABLES: configuration, HELP: commands, DECLARATION: declaration}
    for mark, write in written.items():
        if mark in markdown:
            markdown = markdown.replace(mark, write())
    return markdown


def configuration() -> str:
    """Return one table for each section of the run file."""
    return "\n".join(_sections(RunConfig, ""))


def _sections(section: type[Section], path: str) -> Iterator[str]:
    yield from (f"## {path or 'The run'}" if "." not in path else f"### {path}", "")
    yield from (" ".join((section.__doc__ or "").split()), "")
    yield from ("| key | type | default | result | meaning |", "|---|---|---|---|---|")
    nested = []
    for key, field in section.model_fields.items():
        name = f"{path}.{key}" if path else key
        below = [item for item in alternatives(field.annotation) if has_table(item)]
        nested += [(item, name) for item in below]
        result = "no" if key in section.operational else ""
        text = " ".join((field.description or "").split()).replace("|", "\\|")
        if below and not text:
            text = f"See [{name}](#{_anchor(name)})."
        yield f"| `{key}` | {_type(field)} | {_default(field)} | {result} | {text} |"
    yield ""
    for item, name in nested:
        yield from _sections(item, name)


def _anchor(name: str) -> str:
    return name.replace(".", "")


def _type(field: FieldInfo) -> str:
    """Return the words for a field's type, with its bounds."""
    words = [_words(item) for item in alternatives(field.annotation) if item is not type(None)]
    return " or ".join(words) + _bounds(field.metadata)


def _words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(arguments[0]) + _bounds(arguments[1:])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is list:
        return f"list of {_words(arguments[0])}"
    if origin is dict:
        return f"mapping of {_words(arguments[0])} to {_words(arguments[1])}"
    if _is_section(annotation):
        if has_table(annotation):
            return "section"
        return "{" + ", ".join(f"{key}: …" for key in annotation.model_fields) + "}"
    if origin in (Union, types.UnionType):
        return " or ".join(_words(item) for item in arguments)
    return NAMES[annotation]


def _bounds(metadata: Iterable[Any]) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    items = [part for item in metadata for part in getattr(item, "metadata", [item])]
    shown = [
        f"{sign} {getattr(item, name):,}"
        for item in items
        for name, sign in signs.items()
        if getattr(item, name, None) is not None
    ]
    return f" {', '.join(shown)}" if shown else ""


def alternatives(annotation: Any) -> list[Any]:
    """Return the alternatives of a union, or the type itself."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for item in get_args(annotation) for member in alternatives(item)]
    return [annotation]


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def has_table(annotation: Any) -> bool:
    """Tell sections of some length from those of one line, such as `{min: 1, max: 8}`."""
    return _is_section(annotation) and len(annotation.model_fields) > 2


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "**required**"
    if value is None or isinstance(value, Section):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:_}`" if isinstance(value, int) else f"`{value}`"


def commands() -> str:
    """Return the help of the program and of every command."""
    overview = _help([])
    names = re.findall(r"^ {2,}([a-z]+) {2,}\S", overview, re.MULTILINE)
    lines = []
    for words in ([], *([name] for name in names)):
        title = " ".join(["s2l", *words])
        lines += [f"## {title}", "", "```text", _help(words), "```", ""]
    return "\n".join(lines)


def _help(words: list[str]) -> str:
    printed = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            cli.main([*words, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    return printed.getvalue().strip()


def declaration() -> str:
    """Return the declaration of one stage, as its folder has it."""
    source = inspect.getsource(evaluation_declaration)
    return f"```python\n{source[source.index('EVALUATION = Stage(') :]}```"
