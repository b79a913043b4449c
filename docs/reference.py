"""Tables of the configuration, the help of commands, a declaration: taken from the code.

MkDocs loads this file as a hook (mkdocs.yml).
"""

import contextlib
import inspect
import io
import os
import re
from collections.abc import Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from s2l_ray import cli
from s2l_ray.config.keys import keys_of, meaning_of
from s2l_ray.config.section import Section
from s2l_ray.config.sections import RunConfig
from s2l_ray.evaluation import declaration as evaluation_declaration

WIDTH = "96"
TABLES, HELP = "<!-- tables of all sections -->", "<!-- help of all commands -->"
DECLARATION = "<!-- declaration of a stage -->"


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
    yield from (meaning_of(section), "")
    yield from ("| key | type | default | result | meaning |", "|---|---|---|---|---|")
    keys = keys_of(section, path)
    for key in keys:
        name, result = key.path.rpartition(".")[2], "" if key.changes_results else "no"
        default = "**required**" if key.default is None else key.default and f"`{key.default}`"
        text = key.meaning.replace("|", "\\|")
        if key.sections and not text:
            text = f"See [{key.path}](#{key.path.replace('.', '')})."
        yield f"| `{name}` | {key.kind} | {default} | {result} | {text} |"
    yield ""
    for key in keys:
        for below in key.sections:
            yield from _sections(below, key.path)


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
