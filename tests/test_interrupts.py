"""Signals: what waits without hearing them ends all the same, with one message."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DEAF = """
import signal, sys, threading
from s2l_ray import interrupts
interrupts.GRACE_SECONDS = dict.fromkeys(interrupts.GRACE_SECONDS, float(sys.argv[1]))
signal.signal(signal.SIGINT, signal.default_int_handler)
with interrupts.ended_by_signals(lambda number: f"ended by {number}"):
    # As Ray Train does during a training.
    signal.signal(signal.SIGINT, lambda *_: print("heard", flush=True))
    signal.signal(signal.SIGTERM, lambda *_: print("heard", flush=True))
    signal.signal(signal.SIGHUP, lambda *_: print("heard", flush=True))
    print("ready", flush=True)
    while True:
        threading.Event().wait()
"""
"""A process that lets every signal pass."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(("grace_seconds", "signals"), [(0, 1), (1e6, 2)])
def test_one_signal_ends_it_after_the_time_to_leave_and_a_second_one_at_once(
    number, grace_seconds, signals
):
    with subprocess.Popen(
        [sys.executable, "-c", DEAF, str(grace_seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for sent in range(signals):
            process.send_signal(number)
            if sent + 1 < signals:
                assert process.stdout.readline() == "heard\n"
        _, said = process.communicate()

    assert process.returncode == 128 + number
    assert said == f"ended by {number}\n"


SAVES = """
import signal, sys, threading
from s2l_ray import interrupts
interrupts.GRACE_SECONDS = dict.fromkeys(interrupts.GRACE_SECONDS, 0.0)
signal.signal(signal.SIGINT, signal.default_int_handler)
with interrupts.ended_by_signals(lambda number: f"ended by {number}"):
    signal.signal(signal.SIGINT, lambda *_: print("heard", flush=True))
    interrupts.takes_time.set()
    print("ready", flush=True)
    sys.stdin.readline()
    print("saved", flush=True)
    interrupts.takes_time.clear()
    while True:
        threading.Event().wait()
"""


def test_while_work_is_saved_the_time_to_leave_does_not_run():
    with subprocess.Popen(
        [sys.executable, "-c", SAVES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "heard\n"
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "saved\n"
        _, said = process.communicate()

    assert process.returncode == 130
    assert said == f"ended by {signal.SIGINT}\n"


FORKS = """
import os, sys
from s2l_ray import interrupts
with interrupts.ended_by_signals(str):
    if not (child := os.fork()):
        sys.stdin.read()
        os._exit(0)
print("left", flush=True)
os.waitpid(child, 0)
"""
"""A process whose child has all open that it has, and outlives the block."""


def test_a_child_that_lives_on_does_not_keep_the_program_from_leaving():
    with subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        try:
            assert process.stdout.readline() == "left\n"
        finally:
            process.stdin.close()  # the child ends
    assert process.returncode == 0


LOADS = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "s2l_ray.config.sections":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
from s2l_ray import cli
sys.exit(cli.main(["plan", "missing.yaml"]))
"""
"""The program, interrupted while it loads its commands."""


def test_an_interrupt_while_the_program_loads_is_one_message():
    done = subprocess.run([sys.executable, "-c", LOADS], capture_output=True, text=True)

    assert done.returncode == 130
    assert done.stderr == "\ns2l: interrupted; the same command goes on from what is saved\n"


ENDLESS_EXIT = """
import atexit, os, signal, sys, threading
number = int(sys.argv[1])
atexit.register(threading.Event().wait)
signal.signal(signal.SIGINT, signal.default_int_handler)
os.mkfifo("endless.yaml")  # reading it waits for whoever writes it

def interrupt():
    with open("endless.yaml", "wb"):
        os.kill(os.getpid(), number)

threading.Thread(target=interrupt).start()
from s2l_ray.cli import program
sys.argv[1:] = ["plan", "endless.yaml"]
program()
"""
"""The program, with a library whose handler at exit never returns."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_handlers_at_exit_do_not_keep_a_process_that_a_signal_has_ended(tmp_path, number):
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS_EXIT, str(int(number))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 128 + number
    assert done.stderr.endswith("the same command goes on from what is saved\n")


REPLACED = """
import os, signal, sys
from s2l_ray import interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with interrupts.ended_by_signals(str):
        try:
            os.kill(os.getpid(), int(sys.argv[1]))
        except KeyboardInterrupt:
            raise eval(sys.argv[2]) from None
except interrupts.Interrupted as interrupted:
    print(int(interrupted.number))
"""


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (signal.SIGINT, "KeyboardInterrupt"),  # as calls of Ray do
        (signal.SIGTERM, "KeyboardInterrupt"),
        (signal.SIGTERM, "SystemExit(15)"),  # as Ray's own handler does
    ],
)
def test_a_library_that_replaces_the_error_does_not_hide_the_signal(number, error):
    words = [sys.executable, "-c", REPLACED, str(int(number)), error]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == f"{int(number)}\n"
