"""The program in a process of its own, ended in the middle of a stage."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

NEVER_FINISHES = """
import sys
import threading
from pathlib import Path
from s2l_ray import cli
from s2l_ray.artifacts.manifest import StageDir
stage, at_its_end, *arguments = sys.argv[1:]
finish = StageDir.finish
def wait(folder, *given, **named):
    if folder.stage == stage:
        Path(at_its_end).touch()
        threading.Event().wait()
    return finish(folder, *given, **named)
StageDir.finish = wait
sys.exit(cli.main(arguments))
"""
"""The program, which does all the work of one stage and then waits: it cannot be ended too late."""
SECONDS_PER_LOOK = 0.1


def end_in(
    stage: str,
    begun: Callable[[], bool],
    arguments: list[str],
    environment: dict[str, str],
    *,
    by: signal.Signals = signal.SIGKILL,
) -> tuple[int, str]:
    """Start the program; end it once `stage` has `begun`, at the latest before it is finished.

    SIGINT is sent a second time when the program says that it will save: that ends it at once.

    Returns:
        the exit code, and what was printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        at_its_end = Path(folder) / "at-its-end"
        process = subprocess.Popen(
            [sys.executable, "-c", NEVER_FINISHES, stage, str(at_its_end), *arguments],
            env=environment,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        before = ""
        try:
            while not (begun() or at_its_end.exists()):
                assert process.poll() is None, f"{stage}: {process.communicate()[0]}"
                time.sleep(SECONDS_PER_LOOK)
            if by is signal.SIGINT:  # as a terminal sends it, to the program alone
                process.send_signal(by)
                for line in iter(process.stdout.readline, ""):
                    before += line
                    if "stopping" in line:
                        process.send_signal(by)
            else:
                os.killpg(process.pid, by)
            shown = before + process.communicate()[0]
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return process.returncode, shown
