"""A job on a cluster loses its working directory, and the package in it, with its connection."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import extended_by_hand, handmade

ROOT = Path(__file__).parents[1]
LOSES_IT = """
import os, shutil, sys
from s2l_ray import cli
from s2l_ray.extend import plan as extending
from s2l_ray.pipeline import run as pipeline

def losing(work):
    def lost(*given, **named):
        done = work(*given, **named)
        shutil.rmtree(os.getcwd())
        return done
    return lost

pipeline.run, extending.extend = losing(pipeline.run), losing(extending.extend)
sys.exit(cli.main(sys.argv[1:]))
"""
"""The program, whose working directory is removed as soon as the connection would be left."""


@pytest.fixture
def sent(tmp_path) -> Path:
    """What is sent with a job: the package."""
    folder = tmp_path / "sent"
    shutil.copytree(ROOT / "s2l_ray", folder / "s2l_ray", ignore=lambda *_: {"__pycache__"})
    return folder


def summary(sent: Path, *arguments: str) -> str:
    """What the program prints, after it has lost the folder `sent`."""
    done = subprocess.run(
        [sys.executable, "-c", LOSES_IT, *arguments],
        cwd=sent,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not sent.exists()
    return done.stdout


def test_a_run_says_what_it_has_made(sent, tmp_path):
    tree = handmade.inputs(tmp_path)
    run = handmade.finish(tree, until="clusters")
    (sent / "run.yaml").write_text(yaml.safe_dump(tree))

    shown = summary(sent, "run", "run.yaml", "--until", "selection")

    assert f"selected  {run}/subset/selected.jsonl" in shown and "took " in shown


def test_an_extension_says_what_it_has_made(sent, tmp_path):
    run = extended_by_hand.finished_run(extended_by_hand.inputs(tmp_path), tmp_path)
    new = extended_by_hand.data(tmp_path)
    extended_by_hand.given(run, new)

    shown = summary(sent, "extend", str(run), new)

    assert f"selected  {run}" in shown and "took " in shown
