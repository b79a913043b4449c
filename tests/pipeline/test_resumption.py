"""A run on an object store whose whole program is killed in one stage after the other.

The store breaks one request of twenty all the while.
"""

import signal
import subprocess
import sys
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ray.storage.location import Location
from tests.interrupted import end_in
from tests.small_run import refusal, sets
from tests.unreliable_store import KINDS, unreliable

pytestmark = [pytest.mark.ray, pytest.mark.cluster]

STOPPED_AT = {
    "prepare": "staged/tokenised-",
    "trajectories": "units/losses-",
    "target": "resume/*/checkpoint_manager_snapshot.json",
}
"""What each stage, on its way, leaves first of what a restart goes on from.

The reference restarts as the target does, by Ray Train.
"""
STOPPED_BY = {"trajectories": signal.SIGTERM, "target": signal.SIGINT}
"""How each stage is ended, where not by SIGKILL.

Ray's core answers SIGTERM with a stack, and Ray Train has a handler of its own for Ctrl-C.
"""
FOLDERS = {"prepare": "prepared"}
OF_ONE_RUN = ("logs/", "run.json", "config.json", "contents.json", "_manifest.json")
"""What begins or ends the names of files that hold times, or the address of the run."""
LATER = ("arms/", "evaluation/", "report/")
"""What the run that was not killed has besides."""


def stop_in(stage: str, run: Location, arguments: list[str], environment: dict[str, str]) -> None:
    """Start the program; end it when `stage` has something to go on from.

    Ctrl-C is sent twice, so that nothing more is saved.
    """
    folder, by = run / FOLDERS.get(stage, stage), STOPPED_BY.get(stage, signal.SIGKILL)
    code, shown = end_in(
        stage, lambda: begun(folder, STOPPED_AT[stage]), arguments, environment, by=by
    )
    if by is signal.SIGKILL:
        assert code == -by
    else:
        what = "interrupted" if by is signal.SIGINT else "ended by SIGTERM"
        assert f"\ns2l: {what}; the same command goes on from what is saved\n" in shown, shown
        assert code == 128 + by
        assert "***" not in shown and "Traceback" not in shown, shown
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


def results(names: Iterable[str]) -> set[str]:
    kept = (name for name in names if not name.startswith((*OF_ONE_RUN, *LATER)))
    return {name for name in kept if not name.endswith(OF_ONE_RUN) and name != ".lock"}


def without_address(content: bytes) -> pa.Table:
    """Original rows, without the file that they come from."""
    return pq.read_table(pa.BufferReader(content)).drop_columns("file")


@pytest.fixture
def way(s3_endpoint):
    """The only way to the store that the program and its workers know."""
    with unreliable(s3_endpoint) as found:
        yield found


def test_a_run_killed_in_every_stage_on_an_unreliable_store_ends_as_one_that_was_not(
    finished, config, s3_environment, s3_bucket, s3_endpoint, way
):
    run, data = Location.of(f"{s3_bucket}/run"), Location.of(f"{s3_bucket}/train.jsonl")
    data.write_bytes((config.parent / "train.jsonl").read_bytes())
    environment = {
        name: value.replace(s3_endpoint, way.address) for name, value in s3_environment.items()
    }
    arguments = ["run", str(config), "--until", "target"]
    arguments += sets(run_dir=run, data__train=f"[{data}]", selection__baselines="[]")

    def program() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "s2l_ray", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    # Ray Train takes in a saved state twice a second, and a training ends when it has all of them:
    # the target's 29 keep it from ending for a quarter of a minute after the first is seen.
    often = sets(target__resume_every=1)
    for stage in STOPPED_AT:
        stop_in(stage, run, [*arguments, *often], environment)
        if stage == "prepare":
            assert "is in use by another run (a lease for" in refusal(program())
        lapse(run)
    done = program()
    assert done.returncode == 0, done.stdout + done.stderr

    names = results(name for name, _, _ in run.files())
    assert names == results(name for name, _, _ in Location.of(finished).files())
    for name in sorted(names):
        found, expected = (run / name).read_bytes(), (finished / name).read_bytes()
        if name.startswith(("prepared/rows-", "prepared/rejected")):
            assert without_address(found) == without_address(expected), name
        else:
            assert found == expected, name
    left = {"unfinished.json", "staged", "units", "resume", "attempts", "tokens", "lease.json"}
    assert not [name for name, _, _ in run.files() if left & set(name.split("/"))]
    assert way.broken.total() > 0.04 * way.requests.total()
    assert min(way.broken[kind] for kind in KINDS) >= 3, way.broken
