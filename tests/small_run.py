"""One small run of the whole program: its inputs, and how tests look at what it leaves."""

import json
import re
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests import tiny

NOBODY = "127.0.0.1:1"
"""An address without a cluster: a command that exits with 0 there has not needed Ray."""
ARM = "random-0.4-7"
NUM_ROWS = {"add": 33, "copy": 18, "shout": 9}
NUM_SELECTED = 24
SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
SHAPE |= {"model_type": "gpt_neox", "num_attention_heads": 2, "max_position_embeddings": 128}


def rows(first: int = 0) -> list[dict]:
    """Sixty rows in three strata, each with a list that no column type describes."""
    texts = {
        "add": lambda i: (f"add {i} and 1", f"The answer is {i + 1}."),
        "copy": lambda i: (f"say w{i}", f"w{i}"),
        "shout": lambda i: (f"shout b{i}", f"B{i}"),
    }
    found = []
    for stratum, number in NUM_ROWS.items():
        for i in range(first, first + number):
            prompt, response = texts[stratum](i)
            found.append(
                {"instruction": prompt, "output": response, "source": stratum, "notes": [i, "x"]}
            )
    return found


def write_rows(path: Path, items: list[dict], *, bad: str = "") -> str:
    path.write_text("".join(json.dumps(item) + "\n" for item in items) + bad)
    return str(path)


def write_inputs(folder: Path) -> Path:
    """The configuration of the run, with its pool, held-out set, tokenizer and template."""
    tiny.tokenizer().save_pretrained(folder / "tokenizer")
    (folder / "template.txt").write_text("Q: {prompt} A: ")
    model = {"architecture": SHAPE, "tokenizer": str(folder / "tokenizer")}
    training = {"model": model, "micro_batch_size": 4, "precision": "fp32", "workers": 2}
    tree = {
        "run_dir": str(folder / "run"),
        "seed": 7,
        "data": {
            "train": [write_rows(folder / "train.jsonl", rows(), bad="{not JSON\n")],
            "eval": {"held": write_rows(folder / "held.jsonl", rows(first=50)[30:36])},
            "template": str(folder / "template.txt"),
            "max_tokens": 64,
            "max_rejected": 0.05,
            "rows_per_part": 4,
        },
        "reference": {
            **training,
            "max_steps": 80,
            "batch_size": 15,
            "learning_rate": 1e-3,
            "checkpoints": 4,
            "resume_every": 20,
        },
        "trajectories": {
            "precision": "fp32",
            "tokens_per_batch": 512,
            "embeddings": True,
            "error_norms": True,
            "queries": [str(folder / "held.jsonl")],
        },
        "clusters": {"num_clusters": 3, "rows_per_cluster": 1},
        "selection": {"budget": 0.4, "baselines": ["random"]},
        "target": {
            **training,
            "max_steps": 30,
            "batch_size": 8,
            "zero_stage": 2,
            "resume_every": 10,
            "evaluate_every": 12,
        },
        "evaluation": {"sets": ["held"], "max_new_tokens": 4, "precision": "fp32"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    return folder / "run.yaml"


def sets(**overrides: object) -> list[str]:
    """`--set` for each; a double underscore stands for the dot."""
    given = {key.replace("__", "."): value for key, value in overrides.items()}
    return [word for key, value in given.items() for word in ("--set", f"{key}={value}")]


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and date of every file, without the lock and the logs."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    results = (path for path in files if path.parent != folder / "logs")
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in results}


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one message of a command that failed in a way that the user can mend."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("s2l: ")]
    assert len(lines) == 1, done.stderr
    return done.stderr[done.stderr.index("s2l: ") :]


def stages_done(output: str) -> set[str]:
    """The stages that a run says it has done."""
    return set(re.findall(r"^  (\w+) .* [0-9:]+   ", output, re.MULTILINE))


def manifest(folder: Path) -> dict:
    return json.loads((folder / "_manifest.json").read_text())


def table(folder: Path, pattern: str = "part-*.parquet") -> pa.Table:
    files = sorted(folder.glob(pattern))
    return pa.concat_tables(map(pq.read_table, files), promote_options="default")


def schema(found: pa.Table) -> dict[str, str]:
    return {field.name: str(field.type) for field in found.schema}
