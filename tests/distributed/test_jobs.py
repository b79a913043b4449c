"""Jobs on a cluster of its own: `ray start --head`, then `ray job submit`."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests import handmade
from tests.own_ray import BIN, FREE_PORTS, STARTED, Head, head_node
from tests.small_extension import STAGES, content
from tests.small_run import refusal, stages_done

pytestmark = [pytest.mark.ray, pytest.mark.cluster]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with head_node("--num-cpus=2") as found:
        yield found


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
        "clusters": {"num_clusters": 4, "rows_per_cluster": 1},
        "selection": {"budget": 10},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(tree))
    return folder


def submit(
    head: Head, working_dir: Path, *arguments: object, command: str = "run"
) -> tuple[str, str, int]:
    """The id of a job that runs the program, its output and the exit code of `ray job submit`.

    `ray job submit` may end before it has shown the last lines, so the job's own log is read too.
    """
    configuration = ["small.yaml"] if command == "run" else []
    program = ["python", "-m", "s2l_ray", command, *configuration, *arguments]
    done = head.call("ray", "job", "submit", "--working-dir", working_dir, "--", *program)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    found = re.search(r"raysubmit_\w+", shown)
    assert found, shown
    log = head.home / "r" / "session_latest" / "logs" / f"job-driver-{found.group()}.log"
    return found.group(), shown + log.read_text(), done.returncode


def test_jobs_run_on_a_cluster_that_outlives_them(head, working_dir, tmp_path):
    good, shown, code = submit(head, working_dir, "--set", f"run_dir={tmp_path / 'run'}")
    assert code == 0, shown
    assert "joining the cluster" in shown
    assert pq.read_table(tmp_path / "run" / "selection" / "ranking.parquet").num_rows == 40
    assert (tmp_path / "run" / "report" / "index.html").exists()

    bad, shown, code = submit(head, working_dir)
    assert code == 1
    assert "run_dir: 'runs/small' is relative" in shown and "Traceback" not in shown
    assert "such as s3://bucket/" in shown

    for job, status in ((good, "succeeded"), (bad, "failed")):
        answer = head.call("ray", "job", "status", job)
        assert answer.returncode == 0 and status in answer.stdout.lower()


@contextlib.contextmanager
def node_with_its_own(folder: Path, head: Head) -> Iterator[None]:
    """A further node of the cluster, which has a folder of its own under the name `folder`."""
    script = f'mount -t tmpfs none {folder} && exec "$@"'
    ports = [f"--{name}=0" for name in FREE_PORTS]
    with subprocess.Popen(
        [
            *("unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh"),
            *(BIN / "ray", "start", "--block", f"--address=127.0.0.1:{head.port}", "--num-cpus=1"),
            *ports,
        ],
        env=head.environment,
        cwd=head.home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    ) as node:
        assert node.stdout is not None
        assert any(STARTED in line for line in node.stdout)
        yield
        os.killpg(node.pid, signal.SIGKILL)


def test_a_folder_that_a_node_does_not_share_is_refused_before_any_work(
    head, working_dir, tmp_path
):
    run = tmp_path / "run"
    run.mkdir()
    with node_with_its_own(run, head):
        _, shown, code = submit(head, working_dir, "--set", f"run_dir={run}")
    assert code == 1 and "Traceback" not in shown
    assert f"run_dir: 1 node(s) of the cluster do not see {run} as the node of this" in shown
    assert "s3://bucket/" in shown
    assert {path.name for path in run.iterdir() if path.is_dir()} <= {"logs"}


def test_trials_that_are_all_that_is_left_to_do_are_refused_as_well(head, tmp_path):
    tree = handmade.inputs(tmp_path)
    tree["comparison"] = {"methods": ["random"], "budgets": [6], "seeds": [1]}
    run = Path(handmade.finish(tree, until="clusters").uri)
    (tmp_path / "compared.yaml").write_text(yaml.safe_dump(tree))
    command = ("python", "-m", "s2l_ray", "compare", tmp_path / "compared.yaml")
    paths = os.pathsep.join([str(ROOT), head.environment["PYTHONPATH"]])
    driver = replace(head, environment=head.environment | {"PYTHONPATH": paths})
    with node_with_its_own(run, head):
        done = driver.call(*command, "--address", f"127.0.0.1:{head.port}")
    assert f"run_dir: 1 node(s) of the cluster do not see {run} as the node" in refusal(done)
    assert not (run / "comparison" / "trials").exists()


def test_a_job_extends_a_run(head, working_dir, copied, extended, new_data):
    run = copied()
    _, shown, code = submit(head, working_dir, run, new_data, command="extend")
    assert code == 0, shown
    assert "joining the cluster" in shown and stages_done(shown) == STAGES
    assert content(run) == content(extended)

    _, shown, code = submit(head, working_dir, run, "new.jsonl", command="extend")
    assert code == 1 and "DATA: 'new.jsonl' is relative" in shown and "Traceback" not in shown
