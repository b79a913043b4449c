"""Executions of Ray Data that hang: the program ends with its own message and exit code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import handmade
from tests.small_run import refusal

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
NEVER_ENDS = """
import contextlib, time
from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback
from s2l_ray import cli
from s2l_ray.distributed import executions
from s2l_ray.errors import UserError

class Late(ExecutionCallback):
    def on_execution_step(self, executor):
        import ray
        executions.give_up(UserError("prepare: there is no hope"))
        while True:
            time.sleep(0.01)
            with contextlib.suppress(Exception):
                ray.put(1)

DataContext.get_current().custom_execution_callback_classes.append(Late)
cli.program()
"""
"""The program, with a loop of Ray Data that goes on to call Ray when its step has ended."""


def test_a_loop_that_never_ends_changes_neither_message_nor_exit_code(tmp_path, s2l_environment):
    (tmp_path / "run.yaml").write_text(json.dumps(handmade.inputs(tmp_path)))
    words = [sys.executable, "-c", NEVER_ENDS, "run", tmp_path / "run.yaml", "--until", "prepare"]
    done = subprocess.run(
        words, env=s2l_environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert refusal(done) == "s2l: prepare: there is no hope\n"
