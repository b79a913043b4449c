"""A run on an object store whose whole program is killed in one stage after the other."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from s2l_ray.storage.location import Location
from tests.small_run import refusal, sets

pytestmark = pytest.mark.ray

KILLED_AT = {
    "prepared": "staged/done-",
    "trajectories": "units/losses-",
    "target": "resume/*/checkpoint_manager_snapshot.json",
}
"""What each stage, on its way, leaves first of what a restart goes on from.

The reference restarts as the target does, by Ray Train.
"""
SAME = {
    "prepared": ["part-000003.parquet", "rows-000003.parquet", "rejected.parquet"],
    "reference": ["step-000020/model.safetensors", "step-000080/model.safetensors"],
    "trajectories": [
        "part-000000.parquet",
        "part-000014.parquet",
    ],
    "embeddings": ["embeddings-000014.parquet"],
    "error_norms": ["error_norms-000014.parquet"],
    "queries": ["embeddings/embeddings-000000.parquet"],
    "clusters": ["part-000003.parquet", "_centroids.npy"],
    "selection": ["ranking.parquet"],
    "subset": ["selected.jsonl"],
    "target": ["model/model.safetensors"],
}


def kill_in(stage: str, run: Location, arguments: list[str], environment: dict[str, str]) -> None:
    """Start the program; end it when `stage` has something to go on from.

    By SIGKILL, and in the target by Ctrl-C, for which Ray Train has a handler of its own.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "s2l_ray", *arguments],
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 240
    folder = run / stage
    while not begun(folder, KILLED_AT[stage]):
        assert time.monotonic() < deadline, stage
        assert process.poll() is None, f"{stage}: {process.communicate()[0]}"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.3)  # each look is requests of the store
    if stage == "target":
        process.send_signal(signal.SIGINT)
        said = process.communicate()[0]
        assert "\ns2l: interrupted; the same command goes on from what is saved\n" in said, said
        assert process.returncode == 130
    else:
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (folder / "_manifest.json").exists()


def begun(folder: Location, beginning: str) -> bool:
    """Whether a path below `folder` begins so; `*` is the only child of its parent."""
    *parents, name = beginning.split("/")
    for parent in parents:
        (only,) = folder.names() if parent == "*" and folder.names() else [parent]
        folder = folder / only
    return any(found.startswith(name) for found in folder.names())


def lapse(run: Location) -> None:
    """The minute goes by for which a killed program still holds its run on an object store."""
    lease = run / "lease.json"
    if not lease.exists():
        return  # given back, as by Ctrl-C
    lease.write_json(lease.read_json() | {"until": 0})


@pytest.mark.timeout(900)  # four runs of the whole program, one after the other
def test_a_run_killed_in_every_stage_ends_as_one_that_was_not(
    finished, config, s3_environment, s3_bucket
):
    run = Location.of(f"{s3_bucket}/run")
    arguments = ["run", str(config), "--until", "target"]
    arguments += sets(run_dir=run, selection__baselines="[]")

    def program() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "s2l_ray", *arguments]
        return subprocess.run(
            command, env=s3_environment, capture_output=True, text=True, timeout=240, check=False
        )

    # Ray Train takes in a saved state twice a second, and a training ends when it has all of them:
    # the target's 29 keep it from ending for a quarter of a minute after the first is seen.
    often = sets(target__resume_every=1)
    for stage in KILLED_AT:
        kill_in(stage, run, [*arguments, *often], s3_environment)
        if stage == "prepared":
            assert "is in use by another run (a lease for" in refusal(program())
        lapse(run)
    done = program()
    assert done.returncode == 0, done.stdout + done.stderr

    for stage, names in SAME.items():
        for name in names:
            expected = (Path(finished) / stage / name).read_bytes()
            assert (run / stage / name).read_bytes() == expected, f"{stage}/{name}"
    left = {"unfinished.json", "staged", "units", "resume", "attempts", "tokens", "lease.json"}
    assert not [name for name, _, _ in run.files() if left & set(name.split("/"))]
