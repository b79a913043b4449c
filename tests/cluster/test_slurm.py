"""The Slurm script, with small programs in place of Slurm, Ray and ours."""

import os
import re
import subprocess
import time

import pytest

from tests.cluster.manifests import CLUSTER

PROGRAMS = {
    "getent": 'echo "127.0.1.1 STREAM $2"; echo "$KNOWN STREAM"',
    "hostname": 'echo "192.0.2.8 172.17.0.1"',
    "srun": """
echo "srun $* # $SRUN_CPUS_PER_TASK" >> "$LOG"
while [[ $1 == --* ]]; do shift; done
exec "$@"
""",
    "scontrol": 'echo "scontrol $*" >> "$LOG"',
    "ray": """
[[ $1 == health-check ]] && exit
token=$(stat -c %a "$RAY_AUTH_TOKEN_PATH"),$(wc -c < "$RAY_AUTH_TOKEN_PATH")
echo "ray $*; $RAY_AUTH_MODE,$token" >> "$LOG"  # in one piece: two of them write at once
echo $$ >> "$LOG.pids"
exec sleep 600
""",
    "python": """
echo "python $*; $RAY_ADDRESS" >> "$LOG"
until [[ -f $LOG.pids && $(grep -c "" "$LOG.pids") == "$STARTS" ]]; do sleep 0.05; done
[[ $ENDS == signal ]] && { kill -USR1 "$PPID"; exec sleep 600; }
exit "$ENDS"
""",
}


@pytest.fixture
def submit(tmp_path):
    """Run the script as a job of so many nodes; its exit code, and what its programs noted."""
    (tmp_path / "bin").mkdir()
    for name, text in PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def run(*arguments, nodes=1, ends="0", known="192.0.2.7"):
        log = tmp_path / "log"
        slurm = {"JOB_ID": 4711, "NNODES": nodes, "CPUS_PER_TASK": 7}
        environment = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "LOG": str(log),
            "ENDS": ends,
            "KNOWN": known,
            "STARTS": str(min(nodes, 2)),
            "SLURMD_NODENAME": "localhost",
            **{f"SLURM_{name}": str(value) for name, value in slurm.items()},
        }
        command = ["/bin/bash", str(CLUSTER / "slurm.sbatch"), *arguments]
        done = subprocess.run(command, env=environment, timeout=60, stderr=subprocess.PIPE)
        pids = log.with_suffix(".pids")
        started = pids.read_text().split() if pids.exists() else []
        return done, log.read_text() if log.exists() else "", started

    return run


def test_ray_starts_over_the_nodes_with_a_token_of_this_user_alone(submit, tmp_path):
    done, log, started = submit("run.yaml", "--set", "seed=1", nodes=4)
    assert done.returncode == 0, done.stderr
    assert "python -m s2l_ray run run.yaml --set seed=1; 192.0.2.7:24711\n" in log
    head, workers = (
        re.findall(rf"srun .*ray start {what}.*", log) for what in ("--head", "--addr")
    )
    assert "--nodes=1 --ntasks=1 --nodelist=localhost" in head[0]
    assert "--nodes=3 --ntasks=3 --exclude=localhost" in workers[0]
    assert head[0].endswith(" # 7") and workers[0].endswith(" # 7"), "CPUs of a task"
    assert log.count("; token,600,64\n") == len(started) == 2


def test_a_node_that_knows_its_name_as_loopback_alone_gives_its_own_address(submit):
    done, log, _ = submit("run.yaml", known="127.0.0.1")
    assert done.returncode == 0, done.stderr
    assert "--node-ip-address=192.0.2.8" in log and "; 192.0.2.8:24711\n" in log


@pytest.mark.parametrize("code", ["0", "1", "2"])
def test_the_job_ends_as_the_run_does_and_leaves_nothing(submit, tmp_path, code):
    done, log, started = submit("run.yaml", ends=code)
    assert done.returncode == int(code)
    assert "scontrol" not in log
    assert not list(tmp_path.glob(".s2l-*")), "the token is still there"
    assert started
    assert left_of(started) == []


def test_a_job_whose_time_is_up_goes_back_into_the_queue(submit, tmp_path):
    _, log, started = submit("run.yaml", ends="signal")
    assert "scontrol requeue 4711\n" in log
    assert not list(tmp_path.glob(".s2l-*"))
    assert left_of(started) == []


def test_a_job_without_a_configuration_says_how_it_is_submitted(submit):
    done, log, _ = submit()
    assert done.returncode != 0
    assert b"usage: sbatch cluster/slurm.sbatch RUN.yaml" in done.stderr
    assert log == ""


def left_of(started):
    """The processes that run on: they were told to end before the script did, and get a moment."""
    deadline = time.monotonic() + 20
    while (left := [pid for pid in started if is_alive(pid)]) and time.monotonic() < deadline:
        os.sched_yield()
    return left


def is_alive(pid):
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
