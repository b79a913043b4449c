"""The program, called in this process: what it prints, and its exit code."""

import contextlib
import io
import subprocess
import traceback

from s2l_ray import cli
from s2l_ray.interrupts import EXIT_CODE


def called(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Call the program with these arguments, as a process of its own would be started."""
    out, error = io.StringIO(), io.StringIO()
    words = [str(word) for word in arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            code = cli.main(words)
        except SystemExit as ended:
            code = ended.code
        except Exception:  # a bug of the program: Python shows it and ends with 1
            traceback.print_exc()
            code = 1
    if code in EXIT_CODE.values():
        raise KeyboardInterrupt  # whoever runs the tests meant them
    return subprocess.CompletedProcess(words, code, out.getvalue(), error.getvalue())
