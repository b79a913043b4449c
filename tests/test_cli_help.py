"""What `--help` shows: every command and method, and examples that are understood."""

import subprocess
import sys

import pytest
import typer

from s2l_ray import cli, commands
from s2l_ray.selection.methods import METHODS
from s2l_ray.stages import NAMES

COMMANDS = ("demo", "init", "plan", "run", "compare", "select", "export", "extend", "status")
COMMANDS += ("report", "keys")


@pytest.fixture
def shown(capsys):
    """`shown("run")`: what `s2l run --help` prints."""

    def help_of(*arguments: str) -> str:
        assert cli.main([*arguments, "--help"]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out

    return help_of


def test_every_method_has_its_line_in_the_help(shown):
    words = " ".join(shown("select").split())
    for name, method in METHODS.items():
        assert f" {name} {method.description} " in words


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(shown, command):
    assert f"example: s2l {command} " in " ".join(shown(command).split())


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_plain_and_fits_eighty_columns(shown, command):
    text = shown(*filter(None, [command]))
    assert text.isascii() and "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_help_lists_the_commands_and_examples(shown):
    text = shown()
    assert all(f"\n  {command} " in text for command in COMMANDS)
    assert "examples:\n    s2l demo" in text


def test_help_of_run_lists_the_stages_in_order(shown):
    assert ", ".join(NAMES) in " ".join(shown("run").split())


def test_the_examples_of_help_are_valid(shown):
    """Everything that help shows as an example is understood, apart from running it."""
    program = typer.main.get_command(commands.app)
    lines = [
        line.split("  ")[0].split()
        for line in map(str.strip, shown().splitlines())
        if line.startswith("s2l ")
    ]
    assert len(lines) >= 3
    for _, command, *arguments in lines:
        assert program.commands[command].make_context(command, arguments).params


def test_help_takes_neither_torch_nor_ray():
    code = (
        "import sys; from s2l_ray import cli; code = cli.main(['run', '--help'])\n"
        "heavy = {'torch', 'ray', 'transformers', 'numba', 'vl_convert', 'datasets', 'pandas'}\n"
        "sys.exit(code or ' '.join(sorted(heavy & sys.modules.keys())) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
