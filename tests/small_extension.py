"""New data for the small run, and how tests look at what an extension leaves of it."""

import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.interrupted import end_in
from tests.small_run import rows, stages_done, state, write_rows

KNOWN = rows()[5:15]
RENAMED = [row | {"id": f"again-{place}"} for place, row in enumerate(rows()[20:30])]
"""Rows of the run under another id: they are scored once more."""
SPELT = [
    {"instruction": f"spell c{i}", "output": " ".join(f"c{i}"), "source": "spell", "notes": []}
    for i in range(7)
]
NEW = rows(first=100)[::2] + RENAMED + SPELT
STAGES = {"prepare", "trajectories", "clusters", "selection"}


def write_data(folder: Path) -> str:
    return write_rows(folder / "new.jsonl", KNOWN + NEW, bad="{not JSON\n")


def extended_copy(
    finished: Path, data: str, s2l: Callable[..., subprocess.CompletedProcess[str]], place: Path
) -> Path:
    """A copy of the small run with these rows, made without interruption."""
    run = place / "run"
    shutil.copytree(finished, run)
    before = state(run)
    done = s2l("extend", run, data)
    assert done.returncode == 0, done.stdout + done.stderr
    assert stages_done(done.stdout) == STAGES
    assert "new rows  47 of 58; 10 already in the pool, 1 rejected" in done.stdout
    assert "new strata: 1 (first: spell), each clustered by itself; 3 new clusters" in done.stdout
    assert re.search(r"^fit       \S.* rows", done.stdout, re.MULTILINE)
    assert f"selected  {folder(run)}/subset/selected.jsonl" in done.stdout
    assert {path: found for path, found in state(run).items() if path in before} == before
    return run


def folder(run: Path, number: int = 1) -> Path:
    (found,) = (run / "extensions").glob(f"{number:03d}-*")
    return found


def content(run: Path) -> dict[str, bytes]:
    """Everything that extensions leave, but for the times in manifests."""
    files = [path for path in (run / "extensions").rglob("*") if path.is_file()]
    results = [path for path in files if path.suffix in (".parquet", ".npy", ".jsonl")]
    return {str(path.relative_to(run)): path.read_bytes() for path in results}


STAGE_OF_FOLDER = {"prepared": "prepare"}


def kill_at(
    beginning: str, run: Path, data: str, environment: dict[str, str], *options: str
) -> None:
    """Start extending; end the whole program once a file of the extension begins so."""
    stage = beginning.split("/")[0]
    if beginning == "clusters/_manifest":
        stage = "selection"  # the one after it
    code, _ = end_in(
        STAGE_OF_FOLDER.get(stage, stage),
        lambda: any(run.glob(f"extensions/*/{beginning}*")),
        ["extend", str(run), data, *options],
        environment,
    )
    assert code == -signal.SIGKILL
    assert not (folder(run) / "selection" / "_manifest.json").exists()
