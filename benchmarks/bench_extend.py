"""A large run extended by a tenth of its rows: seconds, CPU seconds and memory of each stage.

    python benchmarks/bench_extend.py [--rows 1000000 10000000] [--share 0.1] [--folder /tmp]

A run of short rows is written as its stages would leave it, with synthetic trajectories of 12
checkpoints (those of bench_kmeans.py); its clusters and its ranking are made by `s2l run`. Then new
rows are added as `s2l extend` does, but for their scoring: no model is there, and the losses of the
new rows are synthetic, too. So the rows are read, compared with all rows of the run, tokenised,
assigned to clusters and ranked with the old ones, and the subset is written. Megabytes are those of
bench_clusters.py. Ten million rows take 4 GB of disk.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from bench_clusters import ByStage
from bench_kmeans import synthetic
from bench_pipeline import watched
from bench_scoring import record

from s2l_ray.artifacts.manifest import open_run
from s2l_ray.artifacts.tables import (
    part_name,
    rows_name,
    trajectory_table,
    typed_rows_table,
)
from s2l_ray.config.load import from_tree
from s2l_ray.models.tokenizers import train_tokenizer
from s2l_ray.pipeline import steps
from s2l_ray.storage.location import Location

CHECKPOINTS, ROWS_PER_PART = 12, 4096
STAGES = ("prepared", "trajectories", "clusters", "selection")
"""Folders of an extension."""


def configured(folder: Path, clusters: int) -> dict[str, Any]:
    """The configuration of the run; its files of data and of the tokenizer are written."""
    (folder / "pool.jsonl").write_text('{"id": "0", "instruction": "", "output": ""}\n')
    texts = [f"{question} {answer}" for _, question, answer in rows(range(1000))]
    train_tokenizer(texts, 300).save_pretrained(str(folder / "tokenizer"))
    shape = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    architecture = {"model_type": "gpt_neox", **shape}
    model = {"architecture": architecture, "tokenizer": str(folder / "tokenizer")}
    return {
        "run_dir": str(folder / "run"),
        "data": {"train": [str(folder / "pool.jsonl")], "rows_per_part": ROWS_PER_PART},
        "reference": {"model": model, "checkpoints": CHECKPOINTS, "max_steps": CHECKPOINTS},
        "trajectories": {},
        "clusters": {"num_clusters": clusters, "per_stratum": False},
        "selection": {"budget": 0.11},
    }


def rows(numbers: range) -> Iterator[tuple[str, str, str]]:
    """Ids, questions and answers."""
    for number in numbers:
        yield f"example-{number:09d}", f"{number} plus {number % 97}", str(number + number % 97)


def ranges(num_rows: int) -> Iterator[tuple[int, range]]:
    """Numbers of parts and of their rows."""
    for part, start in enumerate(range(0, num_rows, ROWS_PER_PART)):
        yield part, range(start, min(start + ROWS_PER_PART, num_rows))


def write_prepared(folder: Location, num_rows: int) -> dict[str, Any]:
    for part, numbers in ranges(num_rows):
        ids, questions, answers = map(list, zip(*rows(numbers), strict=True))
        own = pa.table({"id": ids, "instruction": questions, "output": answers})
        (folder / rows_name(part)).write_table(typed_rows_table(own, ids, "pool.jsonl", numbers))
        counts = {"num_tokens": 12, "num_prompt_tokens": 8}
        columns = {name: pa.array([n] * len(ids), pa.int32()) for name, n in counts.items()}
        strata = [""] * len(ids)
        table = pa.table({"example_id": ids, "stratum": strata, **columns})
        (folder / part_name(part)).write_table(table)
    per_part = [len(numbers) for _, numbers in ranges(num_rows)]
    counts = {"rows": num_rows, "kept": num_rows, "tokens": 12 * num_rows, "duplicates": 0}
    return {**counts, "strata": {"": num_rows}, "rows_per_part": per_part, "rejected": {}}


def write_losses(folder: Location, prepared: Location, first_seed: int) -> None:
    """Write a trajectory for each prepared row."""
    names = [name for name in prepared.names() if name.startswith("part-")]
    for name in names:
        seed = first_seed + int(name[5:11])
        table = (prepared / name).read_table(["example_id", "stratum"])
        loss_NT = synthetic(table.num_rows, CHECKPOINTS, seed=seed)
        losses = trajectory_table(table["example_id"], table["stratum"], loss_NT)
        (folder / name).write_table(losses)


def write_run(folder: Path, num_rows: int, clusters: int) -> Location:
    """Write a run whose stages are finished up to its trajectories."""
    tree = configured(folder, clusters)
    run = Location.of(tree["run_dir"])
    open_run(run)
    for step in steps.plan(from_tree(tree, "bench"), run).through("trajectories"):
        step.out.begin()
        place, summary = step.out.location, dict[str, Any]()
        if step.stage == "prepare":
            summary = write_prepared(place, num_rows) | {"tokenizer": str(folder / "tokenizer")}
        elif step.stage == "reference":
            numbers = list(range(1, CHECKPOINTS + 1))
            names = [f"step-{number:06d}" for number in numbers]
            summary = {"path": None, "steps": numbers, "names": names}
            for name in names:
                (place / name / "config.json").write_json({})
        else:
            write_losses(place, run / "prepared", 0)
            summary = {"steps": numbers, "rows": num_rows, "precision": "fp32"}
        step.out.finish(summary, 1.0)
    (folder / "run.yaml").write_text(json.dumps(tree))
    return run


def extend(run: Location, data: str) -> None:
    """Do what `s2l extend` does, with synthetic losses in the place of scoring."""
    from s2l_ray.extend import plan as extending
    from s2l_ray.pipeline import run as pipeline

    def scored(step: Any) -> Any:
        prepared = step.out.location.parent / "prepared"

        def work(_: Any) -> dict[str, Any]:
            write_losses(step.out.location, prepared, 1 << 20)
            return {"precision": "fp32"}

        return replace(step, work=work) if step.stage == "trajectories" else step

    base, files = extending.load_base_run(run), extending.input_files.expand([data])
    given = extending.extension_of(run, extending.cached_contents(run).file_hashes(files))
    todo = [scored(step) for step in extending.plan(base, given, files)]
    with pipeline.connected(todo, base.config, None, print):
        extending.carry_out(base, todo, given, print)


def measured(num_rows: int, given: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder, num_new = Path(name), int(num_rows * given.share)
        run = write_run(folder, num_rows, given.clusters)
        program = [sys.executable, "-m", "s2l_ray", "run", str(folder / "run.yaml")]
        watched([*program, "--until", "selection"])
        new = folder / "new.jsonl"
        with new.open("w") as file:
            for names in rows(range(num_rows, num_rows + num_new)):
                row = dict(zip(("id", "instruction", "output"), names, strict=True))
                file.write(json.dumps(row) + "\n")
        return {"rows": num_rows, "new_rows": num_new, **extended(run, str(new))}


def extended(run: Location, data: str) -> dict[str, Any]:
    from s2l_ray.extend import plan as extending

    hashes = extending.cached_contents(run).file_hashes(extending.input_files.expand([data]))
    place = Path(extending.extension_of(run, hashes).location.uri)
    by_stage = ByStage(folders=[place / stage for stage in STAGES])
    command = [sys.executable, __file__, "--extend", run.uri, data]
    seconds, memory = watched(command, by_stage)
    manifests = {
        stage: json.loads((place / stage / "_manifest.json").read_text()) for stage in STAGES
    }
    return {
        "seconds": round(seconds, 1),
        **{
            stage: {"seconds": round(manifest["seconds"], 1), **by_stage.stages.get(stage, {})}
            for stage, manifest in manifests.items()
        },
        "largest_process_mb": memory.largest_process >> 20,
        "all_processes_mb": memory.all_processes >> 20,
        "selected": manifests["selection"]["summary"]["selected"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--share", type=float, default=0.1, help="new rows for one of the run")
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--folder", help="where the run is written for a while")
    parser.add_argument("--extend", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.extend:
        extend(Location.of(given.extend[0]), given.extend[1])
        return
    del given.extend
    record(given, "extend.json", measured, given.rows)


if __name__ == "__main__":
    main()
