"""A disk under the run that is full in the middle of a stage: what is said, and what comes then."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests import handmade
from tests.namespaces import isolated, on_small_disk

ROOT = Path(__file__).parents[2]
NUM_ROWS = 4_000
FILLED = """
import json, os, sys
from pathlib import Path
from tests.program import called

disk, config, stage, until = Path(sys.argv[1]), *sys.argv[2:]
if until:
    done = called("run", config, "--until", until)
    assert done.returncode == 0, done.stderr
left = os.statvfs(disk)
with open(disk / "filler", "wb") as filler:  # all but some pages: the folders of the stage fit
    filler.write(bytes((left.f_bavail - 8) * left.f_frsize))
full = called("run", config, "--until", stage)
(disk / "filler").unlink()
again = called("run", config, "--until", stage)
print(json.dumps([full.returncode, full.stdout, full.stderr, again.returncode, again.stderr]))
"""


def brought(folder: Path) -> Path:
    """A configuration that brings its losses, so that no stage needs Ray."""
    losses = np.random.default_rng(0).normal(size=(NUM_ROWS, 3)).tolist()
    ids = [f"{number:032x}" for number in range(NUM_ROWS)]
    pq.write_table(pa.table({"example_id": ids, "loss_nats": losses}), folder / "t.parquet")
    tree = {
        "run_dir": str(folder / "disk" / "run"),
        "trajectories": {"path": str(folder / "t.parquet")},
        "clusters": {"num_clusters": 2},
        "selection": {"budget": 2_000},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    return folder / "run.yaml"


def pool(folder: Path) -> Path:
    """A configuration with rows to prepare."""
    tree = handmade.changed(handmade.inputs(folder), "data.rows_per_part", 500)
    tree["run_dir"] = str(folder / "disk" / "run")
    rows = [{"instruction": f"{number:032x}", "output": "x"} for number in range(NUM_ROWS)]
    (folder / "pool.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    return folder / "run.yaml"


@pytest.mark.parametrize(
    ("inputs", "stage", "until"),
    [
        (pool, "prepare", ""),
        (brought, "trajectories", ""),
        (brought, "clusters", "trajectories"),
        (brought, "selection", "clusters"),
    ],
)
def test_the_message_names_the_file_and_the_same_command_goes_on(tmp_path, inputs, stage, until):
    config = inputs(tmp_path)
    (disk := tmp_path / "disk").mkdir()
    words = [sys.executable, "-c", FILLED, disk, config, stage, until]
    done = subprocess.run(
        [*isolated("--mount"), *on_small_disk(disk, "4m"), *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    code, shown, error, code_again, error_again = json.loads(done.stdout.splitlines()[-1])
    assert (code, code_again) == (2, 0), error + error_again
    (message,) = [line for line in error.splitlines() if line.startswith("s2l: ")]
    assert message.startswith(f"s2l: cannot write {disk}/run/"), message
    assert message.endswith(
        "no space left. Free some, then run the same command again: it goes on from here."
    )
    assert "Traceback" not in shown + error
