"""Displays say lines, and never leave a user without a word for ten seconds."""

import contextlib
import io
import json
import os
import pty
import subprocess
import sys

import pytest
import typer

from s2l_ray import cli, display, events
from s2l_ray.commands import app
from s2l_ray.display import Display, JsonLines, with_display
from s2l_ray.progress import Progress
from tests.clock import Clock


@pytest.fixture
def clock(monkeypatch) -> Clock:
    fixed = Clock()
    monkeypatch.setattr(display, "time", fixed)
    return fixed


def test_a_line_of_progress_comes_after_silence_and_not_before(clock):
    said: list[str] = []
    shown = Display(said.append)
    with Progress("reference") as step:
        step.doing("loading the model")
        looks = []
        for _ in range(40):
            clock.now += 0.5
            before = len(said)
            shown.look()
            looks += [clock.now - 100] if len(said) > before else []

    assert looks == [9, 18]
    assert "reference" in said[0] and "loading the model" in said[0]


def test_a_line_that_was_said_is_no_silence(clock):
    said: list[str] = []
    shown = Display(said.append)
    with Progress("reference"):
        for _ in range(10):
            clock.now += 4
            shown("a line")
            shown.look()

    assert said == ["a line"] * 10


def test_nothing_is_said_while_nothing_is_done(clock):
    said: list[str] = []
    shown = Display(said.append)
    clock.now += 100
    shown.look()

    assert said == []


def test_notices_are_said_only_while_the_display_is_open():
    said: list[str] = []
    with Display(said.append).open():
        events.tell("notice", text="stopping")
    events.tell("notice", text="too late")

    assert said == ["stopping"]


def test_a_line_is_told_once_to_the_logs():
    told: list[events.Event] = []
    with events.heard_by(told.append), Display(lambda line: None).open() as say:
        say("hello")

    assert [(event["event"], event["text"]) for event in told] == [("line", "hello")]


def test_every_line_of_the_json_format_is_an_object(clock):
    stream = io.StringIO()
    shown = JsonLines(stream)
    with events.heard_by(shown._hear), Progress("prepare") as step:
        shown("two\nlines, ünd more")
        step.start(9)
        events.tell("metrics", stage="prepare", step=1)
        clock.now += 10
        shown.look()

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["begin", "line", "progress", "end"]
    assert lines[1]["text"] == "two\nlines, ünd more"
    assert (lines[2]["stage"], lines[2]["total"]) == ("prepare", 9)
    assert all("time" in line for line in lines)


def test_a_function_gets_a_display_and_keeps_one_that_it_is_given(capsys):
    @with_display
    def run(config: str, *, say: display.Say = print) -> str:
        assert isinstance(say, Display)
        say(config)
        return config

    said: list[str] = []
    with Display(said.append).open() as outer:
        assert run("one", say=outer) == "one"
        assert run("two", say=said.append) == "two"
    assert said == ["one", "two"]

    assert run("three") == "three"
    assert capsys.readouterr().out == "three\n"


ON_A_TERMINAL = """
from s2l_ray import display
from s2l_ray.progress import Progress
with display.for_commands().open() as say, Progress("reference") as step:
    step.doing("loading the model")
    say("a line")
    input()
print("the end")
"""


def test_on_a_terminal_the_step_is_shown_at_once():
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL], stdin=its, stdout=its, stderr=its
    )
    os.close(its)
    shown = b""
    while b"loading the model" not in shown:  # or the test's time is over
        shown += os.read(ours, 1 << 16)
    os.write(ours, b"\n")
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while chunk := os.read(ours, 1 << 16):
            shown += chunk
    os.close(ours)

    assert process.wait() == 0 and b"the end" in shown
    assert b"reference" in shown and b"a line" in shown


AT_WORK = """
from s2l_ray import display
with display.at_work("plan"):
    input()
print("the result")
"""


def test_a_command_with_a_result_shows_its_work_on_the_terminal_and_the_result_alone_in_a_file():
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", AT_WORK], stdin=its, stdout=subprocess.PIPE, stderr=its
    )
    os.close(its)
    shown = b""
    while b"plan" not in shown:  # or the test's time is over
        shown += os.read(ours, 1 << 16)
    os.write(ours, b"\n")
    result, _ = process.communicate()
    os.close(ours)

    assert (process.returncode, result) == (0, b"the result\n")


def test_work_without_a_terminal_is_said_on_standard_error(capsys):
    with display.at_work("plan"):
        events.tell("notice", text="it takes a while")

    assert capsys.readouterr() == ("", "it takes a while\n")


ARGUMENTS = {
    "init": ["missing.jsonl"],
    "plan": ["missing.yaml"],
    "preview": ["missing.yaml"],
    "select": ["missing", "--budget", "3"],
    "export": ["missing", "out", "--to", "trl"],
    "report": ["missing"],
    "status": ["missing"],
}
"""Commands whose standard output is their result, with arguments that come to nothing."""


@pytest.mark.parametrize("command", ARGUMENTS)
def test_a_command_with_a_result_is_at_work_from_its_first_second(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told: list[events.Event] = []
    with events.heard_by(told.append):
        assert cli.main([command, *ARGUMENTS[command]]) == 2

    steps = [event["event"] for event in told if event.get("stage") == command]
    assert steps == ["begin", "failed"]


def test_every_other_command_shows_its_stages_or_reads_nothing():
    commands = typer.main.get_command(app).commands
    assert commands.keys() - ARGUMENTS.keys() == {"demo", "run", "compare", "extend", "keys"}
