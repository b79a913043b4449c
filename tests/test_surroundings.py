"""Surroundings that fail the program: streams that take nothing, no working directory, no home."""

import os
import subprocess
import sys

import pytest

PROGRAM = [sys.executable, "-m", "s2l_ray"]
UNWRITABLE = "s2l: what is printed cannot be written to where standard output or error lead: "


def called(words: list[str], redirected: str, *, unbuffered: bool) -> subprocess.CompletedProcess:
    """The program with streams redirected by a shell, as whoever starts it may."""
    return subprocess.run(
        ["/bin/sh", "-c", f'"$@" {redirected}', "sh", *PROGRAM, *words],
        env={**os.environ, "PYTHONUNBUFFERED": "1" if unbuffered else ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("unbuffered", [True, False])
@pytest.mark.parametrize("words", [["keys"], ["--help"], ["keys", "seed"]])
def test_a_full_disk_behind_standard_output_is_one_message(words, unbuffered):
    done = called(words, ">/dev/full", unbuffered=unbuffered)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(UNWRITABLE) and "No space left" in done.stderr


@pytest.mark.parametrize("unbuffered", [True, False])
@pytest.mark.parametrize("redirected", ["2>/dev/full", "2>&-", "2>&- >&- <&-"])
def test_what_cannot_be_shown_changes_no_exit_code(redirected, unbuffered, tmp_path):
    refused = called(["status", str(tmp_path)], redirected, unbuffered=unbuffered)
    assert (refused.returncode, refused.stderr) == (2, "")
    assert called(["keys"], redirected, unbuffered=unbuffered).returncode == 0


@pytest.mark.parametrize("words", [["status", "run"], ["init", "rows.jsonl"], ["report", "run"]])
def test_a_working_directory_that_is_gone_is_one_message(words, tmp_path):
    program = "import os, sys; os.rmdir(os.getcwd()); from s2l_ray.cli import program; program()"
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "s2l: the working directory is gone: change to one that is there, and call again"
    )
    assert "Traceback" not in done.stderr


def test_a_home_that_is_not_known_is_one_message():
    done = called(["status", "~nobody-here/run"], "", unbuffered=True)
    assert done.returncode == 2
    assert done.stderr.startswith("s2l: ~nobody-here/run: the home directory that ~ stands for is")
