"""Jobs on a cluster of its own: `ray start --head`, then `ray job submit`, tokens as Ray has them.

The cluster gets a home of its own, so that its token is not the user's, and free ports.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parent.parent
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

Command = Callable[..., subprocess.CompletedProcess[str]]


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]


@pytest.fixture(scope="module")
def ray_command() -> Iterator[Command]:
    """`ray_command("job", ...)`: Ray's own program, next to a running head node.

    A short folder under /tmp, because the paths of Ray's sockets may have 107 characters.
    """
    home = Path(tempfile.mkdtemp(prefix="s2l-", dir="/tmp"))
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment = kept | {
        "HOME": str(home),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports['dashboard-port']}",
        "RAY_AUTH_MODE": "token",  # `ray start` sees by itself that there is a token; jobs do not
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment.pop("PYTHONPATH", None)  # a job has what its working directory holds

    def call(*arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / "ray", *map(str, arguments)],
            env=environment,
            cwd=home,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    token = call("get-auth-token", "--generate").stdout.strip()
    assert token and (home / ".ray" / "auth_token").read_text().strip() == token
    options = [f"--{name}={port}" for name, port in ports.items()]
    options += [f"--temp-dir={home}/r", "--num-cpus=2", "--node-ip-address=127.0.0.1"]
    head = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--block", *options],
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
        yield call
    finally:
        # Ends the processes of this head node, and no other Ray's.
        head.terminate()
        try:
            head.wait(60)
        finally:
            if head.poll() is None:
                os.killpg(head.pid, signal.SIGKILL)
            shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def working_dir(tmp_path) -> Path:
    """What is sent with a job: the package and a configuration that brings its trajectories."""
    folder = tmp_path / "sent"
    shutil.copytree(ROOT / "s2l_ray", folder / "s2l_ray", ignore=lambda *_: {"__pycache__"})
    losses = [[float(i % 5), float(i % 3)] for i in range(40)]
    pool = pa.table({"example_id": [f"e{i}" for i in range(40)], "loss_nats": losses})
    pq.write_table(pool, tmp_path / "trajectories.parquet")
    tree = {
        "run_dir": "runs/small",
        "trajectories": {"path": str(tmp_path / "trajectories.parquet")},
        "clusters": {"num_clusters": 4},
        "selection": {"budget": 10},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(tree))
    return folder


def submit(ray_command: Command, working_dir: Path, *arguments: object) -> tuple[str, str, int]:
    """The id of a job that runs the program, its output and the exit code of `ray job submit`."""
    program = ["python", "-m", "s2l_ray", "run", "small.yaml", *arguments]
    done = ray_command("job", "submit", "--working-dir", working_dir, "--", *program)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    found = re.search(r"raysubmit_\w+", shown)
    assert found, shown
    return found.group(), shown, done.returncode


def test_jobs_run_on_a_cluster_that_outlives_them(ray_command, working_dir, tmp_path):
    good, shown, code = submit(ray_command, working_dir, "--set", f"run_dir={tmp_path / 'run'}")
    assert code == 0, shown
    assert "joining the cluster" in shown
    assert pq.read_table(tmp_path / "run" / "selection" / "ranking.parquet").num_rows == 40
    assert (tmp_path / "run" / "report" / "index.html").exists()

    bad, shown, code = submit(ray_command, working_dir)
    assert code == 1
    assert "run_dir: 'runs/small' is relative" in shown and "Traceback" not in shown
    assert "such as s3://bucket/" in shown

    for job, status in ((good, "succeeded"), (bad, "failed")):
        answer = ray_command("job", "status", job)
        assert answer.returncode == 0 and status in answer.stdout.lower()
