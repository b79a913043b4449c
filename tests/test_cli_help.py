"""What `--help` shows: every command and method, and examples that are understood."""

import pytest

from s2l_ray import cli
from s2l_ray.selection.methods import METHODS
from s2l_ray.stages import NAMES

COMMANDS = ("demo", "plan", "run", "select", "extend", "report")


def test_every_method_has_its_line_in_the_help(capsys):
    with pytest.raises(SystemExit):
        cli.main(["select", "--help"])
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    for name, method in METHODS.items():
        assert [name, *method.description.split()] in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(capsys, command):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"example: s2l {command} " in " ".join(shown.split())


def test_help_lists_the_commands_and_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(f"\n    {command} " in shown for command in COMMANDS)
    assert "examples:\n  s2l demo" in shown


def test_help_of_run_lists_the_stages_in_order(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    assert ", ".join(NAMES) in " ".join(capsys.readouterr().out.split())


def test_the_examples_of_help_are_valid(capsys, monkeypatch):
    """Everything that help shows as an example is understood, apart from running it."""
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    lines = [line.split("   ")[0].split() for line in shown.splitlines() if line[:6] == "  s2l "]
    assert len(lines) >= 3
    for _, *arguments in lines:
        assert cli._parser().parse_args(arguments).command
