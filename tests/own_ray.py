"""A Ray cluster of its own, with tokens as Ray has them, beside whatever else runs here.

It gets a home of its own, so that its token is not the user's, and free ports.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "node-manager-port",
    "object-manager-port",
    "ray-client-server-port",
    "metrics-export-port",
)
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

    def call(self, *command: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment next to the head node."""
        program, *arguments = command
        return subprocess.run(
            [BIN / str(program), *map(str, arguments)],
            env=self.environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


@contextlib.contextmanager
def head_node(*options: str, port: int | None = None, **variables: str) -> Iterator[Head]:
    """`ray start --head` with these options and environment variables, until the block ends.

    A short folder under /tmp, because the paths of Ray's sockets may have 107 characters.
    """
    home = Path(tempfile.mkdtemp(prefix="s2l-", dir="/tmp"))
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    ports["port"] = port or ports["port"]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment = kept | {
        "HOME": str(home),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports['dashboard-port']}",
        "RAY_AUTH_MODE": "token",  # `ray start` sees by itself that there is a token; jobs do not
        "RAY_USAGE_STATS_ENABLED": "0",
        **variables,
    }
    environment.pop("PYTHONPATH", None)  # a job has what its working directory holds
    found = Head(home, ports["port"], environment)
    token = found.call("ray", "get-auth-token", "--generate").stdout.strip()
    assert token and (home / ".ray" / "auth_token").read_text().strip() == token
    named = [f"--{name}={number}" for name, number in ports.items()]
    named += [f"--temp-dir={home}/r", "--node-ip-address=127.0.0.1", *options]
    head = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--block", *named],
        env=environment,
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    assert head.stdout is not None
    try:
        said = []
        for line in head.stdout:
            said.append(line)
            if STARTED in line:
                break
        assert STARTED in "".join(said), said
        yield found
    finally:
        # Its daemons are of its group, and workers do not outlive the raylet. Asked politely, a
        # raylet waits half a minute for what detached actors are left.
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(home, ignore_errors=True)
