"""Code and commands that a page of the documentation shows."""

import contextlib
import io
import re
import shlex

from s2l_ray import cli

UNKNOWN = "--no-such-option"
PROGRAMS = ("s2l ", "$ s2l ", "python -m s2l_ray ", "ray job submit ")


def blocks(text, *languages):
    """The content of every fenced block in one of the languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [content for language, content in found if language in languages]


def commands(text):
    """Every command of this program that is shown, in a block or in a line of text."""
    shown = "\n".join(blocks(text, "", "text", "bash")).replace("\\\n", " ").splitlines()
    shown += re.findall(r"`([^`\n]+)`", text)
    lines = [line.partition("  #")[0] for line in shown if line.startswith(PROGRAMS)]
    lines = [re.sub(r"^(.*-- )?python -m s2l_ray ", "s2l ", line) for line in lines]
    lines = [line.removeprefix("$ ").strip() for line in lines]
    # `s2l COMMAND ...` is about commands, and none.
    return sorted({line for line in lines if "..." not in line and line.startswith("s2l ")})


def complaint(command):
    """What the program does not understand of a command; nothing is run.

    With an option that nobody knows, parsing ends at it, unless something before it is wrong.
    """
    _, *words = shlex.split(command)
    if words == ["--version"]:
        return ""
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
        code = _exit_code([*words, UNKNOWN])
        understood = code == 2 and UNKNOWN in printed.getvalue()
        before = printed.getvalue()
        _exit_code([words[0], "--help"])
    offered = printed.getvalue()[len(before) :]
    strange = [word for word in words if word.startswith("--") and word not in offered]
    return "" if understood and not strange else f"{before}{strange}"


def _exit_code(words):
    try:
        return cli.main(words)
    except SystemExit as ended:
        return ended.code
