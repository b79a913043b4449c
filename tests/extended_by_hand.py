"""A run made by hand that can be extended, and extensions of it, without Ray."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from s2l_ray.artifacts import extensions
from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import part_name, rows_name, rows_table
from s2l_ray.config.load import from_tree
from s2l_ray.extend import plan as extending
from s2l_ray.extend.base_run import load_base_run
from s2l_ray.pipeline import run as pipeline
from s2l_ray.storage.location import Location
from tests import handmade
from tests.handmade import changed, finish, planned

NUM_NEW = 6


def inputs(folder: Path) -> dict:
    """Return the configuration of a run without a target."""
    tree = handmade.inputs(folder)
    return changed(changed(tree, "target", None), "evaluation", None)


def finished_run(tree: dict, folder: Path) -> Location:
    """Finish a run up to its selection, with the summaries that extending needs."""
    run = finish(tree, until="clusters")
    more = {
        "prepare": {
            "tokenizer": str(folder / "tokenizer"),
            "strata": dict(Counter(handmade.STRATA)),
        },
        "reference": {"path": None, "steps": [2], "names": ["step-000002"]},
        "trajectories": {"precision": "fp32"},
    }
    for step in planned(tree):
        if step.stage in more:
            manifest = step.out.manifest()
            step.out.finish({**manifest.summary, **more[step.stage]}, manifest.seconds)
    (run / "reference" / "step-000002" / "config.json").write_bytes(b"{}")
    pipeline.run(from_tree(tree, "test"), until="selection", say=lambda line: None)
    return run


def new_rows(start: int, stratum: str = "math") -> list[dict]:
    return [
        {"id": f"n{n}", "instruction": f"new {n}", "output": "x", "source": stratum}
        for n in range(start, start + NUM_NEW)
    ]


def data(folder: Path, start: int = 0, name: str = "new") -> str:
    place = folder / f"{name}-{start}.jsonl"
    place.write_text("".join(f"{json.dumps(row)}\n" for row in new_rows(start)))
    return str(place)


def given(
    run: Location, path: str, *, moving: bool = False, stratum: str = "math"
) -> extensions.Extension:
    """Return the extension of a file, with its first three steps made without Ray.

    Args:
        moving: whether it moves the centroids; every old row then moves to the next cluster.
    """
    base = load_base_run(run)
    files = extending.input_files.expand([path])
    extension = extending.extension_of(run, (extending.cached_contents(run).file_hash(files[0]),))
    start = int(Path(path).stem.rpartition("-")[2])
    earlier = [item for item in extensions.list_prepared(run) if item.number < extension.number]
    old = extensions.pool(run, earlier).clusters.files()
    if moving:
        extension.keep_moving()
    for step in extending.plan(base, extension, files):
        if step.out.is_current() or step.stage == "selection":
            continue
        step.out.begin()
        summary = {"prepare": prepared, "trajectories": scored, "clusters": placed}[step.stage]
        facts = summary(step.out.location, new_rows(start, stratum))
        if moving and step.stage == "clusters":
            facts = moved_on(step.out.location, old)
        step.out.finish(facts, 1.0)
    return extension


def moved_on(folder: Location, old: list[Location]) -> dict:
    """Write the parts of all old rows in the next cluster, and after them that of the new rows."""
    tables = []
    for table in (file.read_table() for file in old):
        further_N = (table["cluster"].to_numpy() + 1) % handmade.NUM_CLUSTERS
        place = table.column_names.index("cluster")
        tables.append(table.set_column(place, "cluster", pa.array(further_N, pa.int32())))
    tables.append((folder / part_name(0)).read_table())
    for part, table in enumerate(tables):
        (folder / part_name(part)).write_table(table)
    cluster_N = np.concatenate([table["cluster"].to_numpy() for table in tables])
    sizes = np.bincount(cluster_N, minlength=handmade.NUM_CLUSTERS).tolist()
    return {**placed_summary(), "size_of_cluster": sizes, "rows": len(cluster_N)}


def prepared(folder: Location, rows: list[dict]) -> dict:
    ids = [row["id"] for row in rows]
    (folder / rows_name(0)).write_table(rows_table(rows, ids, "new.jsonl", range(len(rows))))
    counts = {"kept": len(rows), "known": 2, "rejected": {"empty field": 1}, "tokens": 9}
    strata = dict(Counter(row["source"] for row in rows))
    return {"rows": len(rows) + 3, **counts, "strata": strata}


def scored(folder: Location, rows: list[dict]) -> dict:
    return {"rows": len(rows)}


def placed(folder: Location, rows: list[dict]) -> dict:
    cluster_N = [number % handmade.NUM_CLUSTERS for number in range(len(rows))]
    table = {
        "example_id": [row["id"] for row in rows],
        "stratum": [row["source"] for row in rows],
        "cluster": pa.array(cluster_N, pa.int32()),
        "sqdist": pa.array([0.1] * len(rows), pa.float32()),
    }
    (folder / part_name(0)).write_table(pa.table(table))
    sizes = [cluster_N.count(k) for k in range(handmade.NUM_CLUSTERS)]
    return {**placed_summary(), "size_of_cluster": sizes}


def placed_summary() -> dict:
    return {
        "num_clusters": handmade.NUM_CLUSTERS,
        "stratum_of_cluster": [""] * handmade.NUM_CLUSTERS,
        "new_strata": {},
        "fit": {"rows": 0},
    }


def redo(step, **inputs):
    """Finish a step as if it had had other inputs; return its fingerprint."""
    manifest = step.out.manifest()
    out = StageDir(step.out.location, step.stage, {**manifest.inputs, **inputs})
    out.finish(manifest.summary, 1.0)
    return out.fingerprint


def extend(run, *paths, **options):
    return extending.extend(run, paths, say=lambda line: None, **options)


def content(run: Location) -> dict[str, bytes]:
    """All that is in a run but its lock and its logs."""
    files = [path for path in Path(run.uri).rglob("*") if path.is_file() and path.name != ".lock"]
    results = [path for path in files if path.parent != Path(run.uri) / "logs"]
    return {str(path): path.read_bytes() for path in results}


def ids(place: Location) -> list[str]:
    return [json.loads(line)["example_id"] for line in place.read_bytes().splitlines()]
