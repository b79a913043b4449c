"""A Ray cluster of its own, with tokens as Ray has them, beside whatever else runs here.

It gets a home of its own, so that its token is not the user's, and ports that are free.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.reporting import HOOK

BIN = Path(sys.executable).parent
CHOSEN_PORTS = ("port", "dashboard-port", "ray-client-server-port")
FREE_PORTS = (
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "node-manager-port",
    "object-manager-port",
    "metrics-export-port",
    "min-worker-port",
    "max-worker-port",
)
"""Those for which Ray itself takes what is free when it is given 0."""
MAX_STARTS = 5
STARTED = "Ray runtime started"


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]


@dataclass(frozen=True)
class Head:
    """A running head node, and how programs find it."""

    home: Path
    port: int
    environment: dict[str, str]

    def call(self, *command: object) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment next to the head node."""
        program, *arguments = command
        return subprocess.run(
            [BIN / str(program), *map(str, arguments)],
            env=self.environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
        )


@contextlib.contextmanager
def head_node(
    *options: str, before: Callable[[int], None] = lambda port: None, **variables: str
) -> Iterator[Head]:
    """`ray start --head` with these options and environment variables, until the block ends.

    A short folder under /tmp, because the paths of Ray's sockets may have 107 characters.

    Args:
        before: called with the port of the head node, before it is started there.
    """
    home = Path(tempfile.mkdtemp(prefix="s2l-", dir="/tmp"))
    left = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment = left | {
        "HOME": str(home),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(HOOK),  # a job has what its working directory holds
        "RAY_AUTH_MODE": "token",  # `ray start` sees by itself that there is a token; jobs do not
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        **variables,
    }
    head = Head(home, 0, environment)
    token = head.call("ray", "get-auth-token", "--generate").stdout.strip()
    assert token and (home / ".ray" / "auth_token").read_text().strip() == token
    process, head = _started(head, options, before)
    try:
        yield head
    finally:
        _end(process)
        shutil.rmtree(home, ignore_errors=True)


def _started(
    head: Head, options: Sequence[str], before: Callable[[int], None]
) -> tuple[subprocess.Popen[str], Head]:
    """Start the head node, on other ports when another program has taken one meanwhile."""
    failed = []
    for _ in range(MAX_STARTS):
        ports = dict(zip(CHOSEN_PORTS, free_ports(len(CHOSEN_PORTS)), strict=True))
        before(ports["port"])
        named = [f"--{name}={number}" for name, number in ports.items()]
        named += [f"--{name}=0" for name in FREE_PORTS]
        named += [f"--temp-dir={head.home}/r", "--node-ip-address=127.0.0.1", *options]
        process = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", *named],
            env=head.environment,
            cwd=head.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if STARTED in line:
                server = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports['dashboard-port']}"}
                return process, Head(head.home, ports["port"], head.environment | server)
        _end(process)
        failed.append("".join(lines))
    raise AssertionError("\n".join(failed))


def _end(head: subprocess.Popen[str]) -> None:
    """End the head node with its daemons, which are of its group; its workers end with them.

    Asked politely, it would wait half a minute for what detached actors are left.
    """
    os.killpg(head.pid, signal.SIGKILL)
    head.wait()
