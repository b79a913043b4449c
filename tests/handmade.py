"""A small run on disk whose first stages are finished, made without Ray and without models."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from s2l_ray.artifacts.manifest import EMBEDDINGS, NORMS, QUERIES, open_run
from s2l_ray.artifacts.stage import Step
from s2l_ray.artifacts.tables import (
    embedding_table,
    norm_table,
    part_name,
    rows_name,
    rows_table,
    trajectory_table,
)
from s2l_ray.config.load import from_tree
from s2l_ray.config.paths import stored_tree
from s2l_ray.pipeline import run as pipeline
from s2l_ray.pipeline import steps
from s2l_ray.pipeline.subset import choose_subset
from s2l_ray.storage.location import Location

NUM_ROWS, NUM_CLUSTERS = 30, 5
IDS = [f"e{number}" for number in range(NUM_ROWS)]
STRATA = ["math" if number % 3 else "code" for number in range(NUM_ROWS)]
ROWS = [
    {"id": IDS[number], "instruction": f"add {number}", "output": "x", "source": STRATA[number]}
    for number in range(NUM_ROWS)
]
ROWS_PER_PART = 10
NUM_TOKENS = [42 if number < 4 else 41 for number in range(NUM_ROWS)]
NUM_PROMPT_TOKENS = [25 if number < 14 else 24 for number in range(NUM_ROWS)]

TOKENIZER = {
    "version": "1.0",
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"?": 0, "</s>": 1}, "unk_token": "?"},
}
TOKENIZER_CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
"""Of a tokenizer that knows no word."""


def inputs(folder: Path) -> dict[str, Any]:
    """Files for a whole pipeline in `folder`, and the configuration that names them, as a tree."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pool.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    (folder / "held.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    (folder / "template.txt").write_text("Q: {prompt} A: ")
    (folder / "tokenizer").mkdir(exist_ok=True)
    (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    shape = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = {
        "architecture": {"model_type": "gpt_neox", **shape},
        "tokenizer": str(folder / "tokenizer"),
    }
    return {
        "run_dir": str(folder / "run"),
        "data": {
            "train": [str(folder / "pool.jsonl")],
            "eval": {"held": str(folder / "held.jsonl")},
            "template": str(folder / "template.txt"),
            "rows_per_part": ROWS_PER_PART,
        },
        "reference": {"model": model, "checkpoints": 3, "max_steps": 6, "batch_size": 8},
        "trajectories": {},
        "clusters": {"num_clusters": 3, "rows_per_cluster": 1},
        "selection": {"budget": 6},
        "target": {"model": model, "max_steps": 5, "batch_size": 4},
        "evaluation": {"sets": ["held"]},
    }


def changed(tree: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """`tree` with `section.key` set; None takes a whole section out."""
    section, _, name = key.partition(".")
    if not name:
        return {k: v for k, v in {**tree, section: value}.items() if v is not None}
    return {**tree, section: {**tree.get(section, {}), name: value}}


def planned(tree: dict[str, Any]) -> list[Step]:
    loaded = from_tree(tree, "test")
    return steps.plan(loaded, Location.of(loaded.run_dir)).steps


def run(tree: dict[str, Any], **options: Any) -> list[str]:
    """The labels of the steps that ran, in this process: stages that need Ray must be finished."""
    loaded = from_tree(tree, "test")
    done = pipeline.run(loaded, say=lambda line: None, **options)
    return [step.label for step in done]


def finish(tree: dict[str, Any], until: str = "report") -> Location:
    """Mark every step through `until` finished with the inputs of `tree`; the run.

    What `prepare`, `trajectories` and `clusters` leave for others is there.
    """
    run = Location.of(tree["run_dir"])
    open_run(run)
    loaded = from_tree(tree, "test")
    (run / "config.json").write_json(stored_tree(loaded))
    for step in steps.plan(loaded, run).through(until):
        step.out.begin()
        summary: dict[str, Any] = {"rows": NUM_ROWS}
        if step.stage == "prepare":
            summary |= write_rows(step.out.location)
        if step.stage == "trajectories":
            summary["steps"] = [2, 4, 6]
            write_losses(step.out.location)
        if step.stage == "clusters":
            summary |= write_clusters(step.out.location)
        if step.stage == "selection":
            summary |= {"selected": 0, "strata": {}, "selected_of_cluster": []}
        step.out.finish(summary, 3661.0)
    return run


def write_rows(folder: Location) -> dict[str, Any]:
    for part in range(NUM_ROWS // ROWS_PER_PART):
        rows = slice(part * ROWS_PER_PART, (part + 1) * ROWS_PER_PART)
        table = rows_table(ROWS[rows], IDS[rows], "pool.jsonl", range(rows.start, rows.stop))
        (folder / rows_name(part)).write_table(table)
        counts = {"num_tokens": NUM_TOKENS, "num_prompt_tokens": NUM_PROMPT_TOKENS}
        columns = {name: pa.array(count[rows], pa.int32()) for name, count in counts.items()}
        (folder / part_name(part)).write_table(pa.table({"example_id": IDS[rows], **columns}))
    return {
        "kept": NUM_ROWS,
        "tokens": sum(NUM_TOKENS),
        "prompt_tokens": sum(NUM_PROMPT_TOKENS),
        "rejected": {},
        "duplicates": 0,
        "strata": {},
        "rows_per_part": [ROWS_PER_PART] * (NUM_ROWS // ROWS_PER_PART),
    }


def write_losses(folder: Location) -> None:
    loss_NT = np.random.default_rng(0).gamma(2.0, size=(NUM_ROWS, 3)).astype(np.float32)
    vector_NH = np.random.default_rng(1).normal(size=(NUM_ROWS, 4)).astype(np.float16)
    for part in range(NUM_ROWS // ROWS_PER_PART):
        rows = slice(part * ROWS_PER_PART, (part + 1) * ROWS_PER_PART)
        table = trajectory_table(
            pa.array(IDS[rows]), pa.array(STRATA[rows]), loss_NT[rows], loss_NT[rows, 1]
        )
        (folder / part_name(part)).write_table(table)
        vectors = embedding_table(pa.array(IDS[rows]), vector_NH[rows])
        (folder / part_name(part, EMBEDDINGS)).write_table(vectors)
        norms = norm_table(pa.array(IDS[rows]), loss_NT[rows, 0])
        (folder / part_name(part, NORMS)).write_table(norms)
    asked = embedding_table(pa.array(["q0", "q1"]), vector_NH[3:5] + np.float16(0.5))
    (folder / QUERIES / part_name(0, EMBEDDINGS)).write_table(asked)


def write_clusters(folder: Location) -> dict[str, Any]:
    cluster_N = [number % NUM_CLUSTERS for number in range(NUM_ROWS)]
    for part in range(NUM_ROWS // ROWS_PER_PART):
        rows = slice(part * ROWS_PER_PART, (part + 1) * ROWS_PER_PART)
        table = pa.table(
            {
                "example_id": IDS[rows],
                "stratum": STRATA[rows],
                "cluster": pa.array(cluster_N[rows], pa.int32()),
                "sqdist": pa.array([0.1] * ROWS_PER_PART, pa.float32()),
            }
        )
        (folder / part_name(part)).write_table(table)
    (folder / "_centroids.npy").write_npy(np.ones((NUM_CLUSTERS, 3), np.float32))
    return {
        "num_clusters": NUM_CLUSTERS,
        "stratum_of_cluster": [""] * NUM_CLUSTERS,
        "shrunk_strata": {},
        "size_of_cluster": [cluster_N.count(number) for number in range(NUM_CLUSTERS)],
    }


def write_subset(
    run: Location, budget: Any, method: str | None, seed: int | None, out: Location | None, **more
) -> tuple[Location, int]:
    """Write another subset; where it is, and how many examples it has."""
    subset = choose_subset(run, budget, method, seed, **more)
    return Location.of(subset.write(out)), len(subset)
