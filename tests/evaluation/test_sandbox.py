"""Programs that mean no good, and those that do, in the sandbox of this machine."""

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from s2l_ray.errors import ConfigError
from s2l_ray.evaluation import sandbox
from s2l_ray.evaluation.programs import Reading, readings
from s2l_ray.evaluation.sandbox import Result, run


@pytest.fixture(autouse=True)
def _needs_a_sandbox():
    try:
        sandbox.check()
    except ConfigError as error:
        pytest.skip(str(error))


def test_a_program_prints_its_answer():
    assert run("import math\nprint(math.gcd(84, 36))") == Result("12\n", "ran")


def test_a_program_may_use_sympy_and_numpy():
    program = (
        "import numpy, sympy\nx = sympy.Symbol('x')\nprint(sympy.solve(x - numpy.int64(3).item()))"
    )

    assert run(program) == Result("[3]\n", "ran")


@pytest.mark.parametrize("program", ["print(1 / 0)", "raise SystemExit(3)", "print(", "input()"])
def test_a_program_that_fails_has_failed(program):
    assert run(program).outcome == "failed"


def test_what_a_program_prints_is_its_answer_and_of_others_the_words_are_read():
    texts = ["a = 7\nprint(2 * a)", "The answer is 3.\n```python\nprint(1 / 0)\n```", "4"]

    assert readings(texts, run=True, at_once=2) == [
        Reading("14", "ran"),
        Reading("3", "failed"),
        Reading("4", None),
    ]


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("while True:\n    pass", id="an infinite loop"),
        pytest.param("while True:\n    print('x' * 9999, flush=True)", id="endless output"),
        pytest.param("import time\ntime.sleep(60)", id="sleep"),
        pytest.param(
            "import signal\nfor n in range(1, 30):\n    try: signal.signal(n, signal.SIG_IGN)\n"
            "    except OSError: pass\nwhile True: pass",
            id="no signal is heard",
        ),
    ],
)
def test_a_program_ends_at_its_limits(program):
    start = time.monotonic()

    assert run(program, seconds=1).outcome == "too long"
    assert time.monotonic() - start < 20


def test_a_program_has_no_more_memory_than_its_limit():
    assert run(f"x = bytearray({2 * sandbox.MEGABYTES} << 20)\nprint(len(x))").outcome == "failed"


@pytest.mark.parametrize(
    "start",
    [
        "import os\nos.fork()",
        "import threading\nthreading.Thread(target=print).start()",
        "import subprocess\nsubprocess.run(['/bin/ls'])",
    ],
)
def test_a_program_starts_no_process_or_thread(start):
    assert run(f"{start}\nprint('started')").output == ""


def test_a_program_reaches_no_network_not_even_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}))\nprint('in')")

    assert result == Result("", "failed")


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/etc/hostname", "/proc/self/environ", "/proc/1/cmdline", __file__]
)
def test_a_program_reads_no_files_of_this_machine(path):
    assert run(f"print(open({path!r}).read())") == Result("", "failed")


def test_a_program_sees_only_python_and_the_system():
    top = run("import os\nprint(*sorted(os.listdir('/')))").output.split()
    python = {Path(path).parts[1] for path in (sys.prefix, sys.base_prefix, sys.executable)}

    assert set(top) <= {"bin", "dev", "etc", "lib", "lib64", "tmp", "usr", *python}


def test_a_program_finds_nothing_in_the_home_directory(tmp_path, monkeypatch):
    home = Path.home()

    result = run(f"import os\nprint(os.path.exists({str(home)!r}) and os.listdir({str(home)!r}))")

    shown = {
        Path(path).relative_to(home).parts[0]
        for path in sandbox._readable()
        if Path(path).is_relative_to(home)
    }
    assert result.output.strip() in ("False", str(sorted(shown)))


def test_a_program_has_an_empty_environment(monkeypatch):
    monkeypatch.setenv("SECRET", "hush")

    names = run("import os\nprint(*os.environ)").output.split()

    assert set(names) <= {
        "HOME",
        "PYTHONHASHSEED",
        "PYTHONDONTWRITEBYTECODE",
        "OPENBLAS_NUM_THREADS",
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "LC_CTYPE",
    }


@pytest.mark.parametrize("folder", ["/", "/usr", "/usr/lib", "/etc", "/dev", sys.prefix])
def test_a_program_writes_nowhere_but_in_its_own_folder(folder):
    result = run(f"open({folder!r} + '/left-by-a-program', 'w').write('x')\nprint('left')")

    assert not Path(folder, "left-by-a-program").exists()
    assert result.output == "" or folder == "/"  # the root is its own, and vanishes


def test_the_folder_of_a_program_is_its_own_and_vanishes(tmp_path):
    # Python's own folder is also there, if it lies in that of temporary files.
    seen = "print('left' in os.listdir('.'))"
    program = f"import os\n{seen}\nopen('left', 'w').write('x')\n{seen}"

    assert run(program).output == run(program).output == "False\nTrue\n"


def test_a_program_cannot_fill_the_disk():
    program = "for n in range(99):\n    open(str(n), 'w').write('x' * (4 << 20))\nprint('full')"

    assert run(program).output == ""


def test_a_program_kills_nobody():
    program = f"""import os, signal
for pid in (os.getppid(), {os.getpid()}, {os.getppid()}):
    try:
        os.kill(pid, signal.SIGKILL) if pid > 1 else print('nobody above')
    except ProcessLookupError:
        print('nobody')
"""
    assert run(program) == Result("nobody above\nnobody\nnobody\n", "ran")


def test_a_program_has_no_privileges():
    program = "import os\nprint(os.getuid())\nos.setuid(0)\nprint('root')"

    assert run(program) == Result("65534\n", "failed")


def test_a_program_inherits_no_open_files(tmp_path):
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        program = f"import os\nos.write({file.fileno()}, b'x')\nprint('written')"

        assert run(program) == Result("", "failed")


def test_bubblewrap_gives_the_same_where_it_is_installed():
    if os.getuid() == 0:
        pytest.skip("in bubblewrap a program that root starts may start further ones")
    try:
        result = sandbox._run("bubblewrap", "import os\nprint(os.getuid(), *os.listdir('.'))", 5)
    except FileNotFoundError:
        pytest.skip("bubblewrap is not installed")

    assert result == Result("65534\n", "ran")


def test_a_machine_that_cannot_keep_programs_apart_is_refused(monkeypatch):
    monkeypatch.setattr(sandbox.sandbox_launcher, "__file__", "/nowhere")
    sandbox._sandbox.cache_clear()
    try:
        with pytest.raises(ConfigError, match="run_programs: programs cannot be run apart"):
            sandbox.check()
    finally:
        sandbox._sandbox.cache_clear()
