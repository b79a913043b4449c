"""A run on an object store is extended there, with data from there, as it is on a disk."""

import subprocess
import sys
from pathlib import Path

import pytest

from s2l_ray.storage.location import Location
from tests.small_extension import STAGES, content
from tests.small_run import manifest, stages_done

pytestmark = [pytest.mark.ray, pytest.mark.cluster]


def extend(environment: dict[str, str], *arguments: object) -> str:
    """Return the output of the program."""
    command = [sys.executable, "-m", "s2l_ray", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def results(run: Location) -> dict[str, bytes]:
    """Return the results of extensions, without original rows, which name their file."""
    kinds = (".parquet", ".npy", ".jsonl")
    names = [name for name, _, _ in (run / "extensions").files() if name.endswith(kinds)]
    found = {f"extensions/{name}": (run / "extensions" / name).read_bytes() for name in names}
    return {name: read for name, read in found.items() if not named_by_file(name)}


def named_by_file(name: str) -> bool:
    return Path(name).name.startswith(("rows-", "rejected"))


def test_a_run_on_an_object_store_is_extended_there(
    finished, extended, new_data, s3_environment, s3_bucket
):
    run, data = Location.of(f"{s3_bucket}/run"), Location.of(f"{s3_bucket}/may.jsonl")
    run.upload(finished)
    data.write_bytes(Path(new_data).read_bytes())
    before = run.files()

    said = extend(s3_environment, "extend", run, data)
    assert stages_done(said) == STAGES
    assert "new rows  47 of 58; 10 already in the pool, 1 rejected" in said
    assert f"selected  {run}/extensions/001-" in said
    expected = content(extended)
    assert results(run) == {n: read for n, read in expected.items() if not named_by_file(n)}

    assert "nothing to do" in extend(s3_environment, "extend", run, data)
    said = extend(s3_environment, "extend", run, "--update-centroids")
    assert stages_done(said) == {"clusters", "selection"}
    assert "of 60 old rows changed their cluster" in said
    kept = {file for file in before if not file[0].startswith("logs/")}
    assert kept <= set(run.files())
    left = {"unfinished.json", "staged", "units", "attempts", "lease.json"}
    assert not [name for name, _, _ in run.files() if left & set(name.split("/"))]

    out = Location.of(f"{s3_bucket}/subset.jsonl")
    said = extend(s3_environment, "select", run, "--budget", 0.4, "--out", out)
    assert "the run with 1 extension(s)" in said
    (name,) = [name for name in (run / "extensions").names() if name.startswith("001-")]
    selected = run / "extensions" / name / "subset" / "selected.jsonl"
    assert out.read_bytes() == selected.read_bytes()
    size = manifest(finished / "prepared")["summary"]["kept"]
    assert len(out.read_bytes().splitlines()) == int(0.4 * (size + 47))
