"""Programs of a model run here: without network, files, environment, or other processes.

A program sees Python and its packages to read, and an empty folder of its own that vanishes with
it. It runs in Linux namespaces (sandbox_launcher.py), or in bubblewrap where only that may make
them. Both are refused where the kernel does not allow either: limits alone do not keep a program
from the network or from files.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Literal

from s2l_ray.errors import ConfigError
from s2l_ray.evaluation import sandbox_launcher

SECONDS = 10
"""Most CPU time of a program; twice as much on the clock."""
MEGABYTES = 1_024
"""Most memory of a program."""
MEGABYTES_ON_DISK = 16
BYTES_OF_OUTPUT = 64 * 1_024
Outcome = Literal["ran", "failed", "too long"]


@dataclass(frozen=True)
class Result:
    """What a program printed, and how it ended."""

    output: str
    outcome: Outcome


def check() -> None:
    """Return if programs can be run apart from this machine.

    Raises:
        ConfigError: neither namespaces nor bubblewrap work here.
    """
    _sandbox()


def run(program: str, seconds: int = SECONDS) -> Result:
    """Run a Python program and return what it printed, at most BYTES_OF_OUTPUT.

    The outcome is `too long` where it took more than `seconds` of CPU time, twice that on the
    clock, or printed more; and `failed` where it ended with an error.

    Raises:
        ConfigError: programs cannot be run apart from this machine.
    """
    return _run(_sandbox(), program, seconds)


_TRIAL = """
import os
try:
    os.fork()
except OSError:
    print("alone")
"""
"""Limits of processes do not bind root, so that they are tried, too."""


@cache
def _sandbox() -> str:
    """Return `namespaces` or `bubblewrap`, whichever works."""
    reasons = []
    for name in ("namespaces", "bubblewrap"):
        try:
            result = _run(name, _TRIAL, SECONDS)
        except OSError as error:
            reasons.append(f"{name}: {error.strerror}")
            continue
        if result == Result("alone\n", "ran"):
            return name
        reasons.append(f"{name}: the kernel does not allow them, or Python does not start in them")
    raise ConfigError(
        "evaluation.run_programs: programs cannot be run apart from this machine "
        f"({'; '.join(reasons)}). Allow user namespaces (sysctl user.max_user_namespaces), install "
        "bubblewrap, run as root with CAP_SYS_ADMIN, or leave run_programs out."
    )


def _run(sandbox: str, program: str, seconds: int) -> Result:
    with tempfile.TemporaryDirectory(prefix="s2l-program-") as folder:
        os.chmod(folder, 0o755)  # noqa: S103 (it stays empty: the sandbox is mounted over it)
        process = subprocess.Popen(  # noqa: S603 (no shell)
            _command(sandbox, folder, seconds),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,
        )
        try:
            return _watched(process, program.encode(errors="replace"), seconds)
        finally:
            _kill(process)


def _watched(process: subprocess.Popen[bytes], program: bytes, seconds: int) -> Result:
    """Feed `program` to a process and read what it prints, until it ends or reaches a limit."""
    assert process.stdin is not None and process.stdout is not None
    deadline = time.monotonic() + 2 * seconds
    output = bytearray()
    waiting = select.poll()
    os.set_blocking(process.stdin.fileno(), False)
    waiting.register(process.stdin, select.POLLOUT)
    waiting.register(process.stdout, select.POLLIN)
    while len(output) <= BYTES_OF_OUTPUT and time.monotonic() < deadline:
        for descriptor, _ in waiting.poll(1_000 * max(0, deadline - time.monotonic())):
            if descriptor == process.stdout.fileno():
                read = os.read(descriptor, 65_536)
                output += read
                if not read:
                    return _ended(process, bytes(output), deadline)
            else:
                program = _written(process.stdin, program)
                if not program:
                    waiting.unregister(process.stdin)
                    process.stdin.close()
    return Result(_text(bytes(output)), "too long")


def _written(pipe: IO[bytes], program: bytes) -> bytes:
    """Write what a pipe takes of `program`; return the rest, or nothing if nobody reads it."""
    try:
        return program[os.write(pipe.fileno(), program[:65_536]) :] if program else b""
    except BrokenPipeError:
        return b""


def _ended(process: subprocess.Popen[bytes], output: bytes, deadline: float) -> Result:
    try:
        status = process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return Result(_text(output), "too long")
    if status in (128 + signal.SIGXCPU, 128 + signal.SIGKILL, -signal.SIGXCPU, -signal.SIGKILL):
        return Result(_text(output), "too long")
    return Result(_text(output), "ran" if status == 0 else "failed")


def _text(output: bytes) -> str:
    return output[:BYTES_OF_OUTPUT].decode(errors="replace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started: they end with the first one of their namespace."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None and not pipe.closed:
            pipe.close()


def _command(sandbox: str, folder: str, seconds: int) -> list[str]:
    python, launcher = os.path.abspath(sys.executable), sandbox_launcher.__file__
    readable = _readable()
    settings = {
        "python": python,
        "root": folder if sandbox == "namespaces" else "",
        "readable": readable,
        "megabytes": MEGABYTES_ON_DISK,
        "limits": _limits(seconds),
        "environment": {
            "HOME": "/tmp",  # noqa: S108 (of the sandbox alone)
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            **dict.fromkeys(["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"], "1"),
        },
    }
    command = [python, "-I", "-S", launcher, json.dumps(settings)]
    if sandbox == "namespaces":
        return command
    return [*_bubblewrap([*readable, launcher]), "--", *command]


def _bubblewrap(readable: list[str]) -> list[str]:
    found = shutil.which("bwrap", path="/usr/bin:/usr/local/bin:/bin")
    if found is None:
        raise FileNotFoundError(2, "not installed")
    shown = [part for path in readable for part in ("--ro-bind", path, path)]
    devices = ["--dev-bind", "/dev/null", "/dev/null", "--dev-bind", "/dev/urandom", "/dev/urandom"]
    own = ["--size", str(MEGABYTES_ON_DISK << 20), "--tmpfs", "/tmp"]  # noqa: S108
    apart = ["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    ids = ["--uid", str(sandbox_launcher.NOBODY), "--gid", str(sandbox_launcher.NOBODY)]
    last = ["--remount-ro", "/", "--chdir", "/tmp"]  # noqa: S108
    return [found, *apart, *ids, *own, *shown, *devices, *last]


def _limits(seconds: int) -> dict[str, int]:
    return {
        "RLIMIT_CPU": seconds,
        "RLIMIT_AS": MEGABYTES << 20,
        "RLIMIT_FSIZE": MEGABYTES_ON_DISK << 20,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_NPROC": 1,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
    }


@cache
def _readable() -> list[str]:
    """Return the folders that Python needs to start and to import packages."""
    system = ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache"]
    python = [sys.prefix, sys.base_prefix, os.path.realpath(sys.executable)]
    paths = [path for path in dict.fromkeys([*system, *python]) if os.path.lexists(path)]
    return [
        path
        for path in paths
        if not any(other != path and Path(path).is_relative_to(other) for other in paths)
    ]
