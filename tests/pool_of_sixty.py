"""Sixty clustered examples with their rows, token counts and losses, and the stage run on them."""

import json
from typing import Any

import numpy as np
import pyarrow as pa

from s2l_ray.artifacts.manifest import EMBEDDINGS, NORMS, QUERIES
from s2l_ray.artifacts.tables import (
    Parts,
    embedding_table,
    norm_table,
    part_name,
    rows_name,
    rows_table,
    trajectory_table,
)
from s2l_ray.config.sections import SelectionConfig
from s2l_ray.selection import stage as selection
from s2l_ray.selection.declaration import SELECTION
from s2l_ray.storage.location import Location

NUM_ROWS = 60
IDS = [f"e{number}" for number in range(NUM_ROWS)]
STRATA = ["math" if number % 4 else "code" for number in range(NUM_ROWS)]
CLUSTERS = [number * number % 7 for number in range(NUM_ROWS)]
TOKENS = [5 + number * 7 % 11 for number in range(NUM_ROWS)]
RESPONSE_TOKENS = [1 + number * 3 % 4 for number in range(NUM_ROWS)]
SQDIST = [number * 5 % 13 / 2 for number in range(NUM_ROWS)]
LOSSES = np.random.default_rng(5).gamma(2.0, size=(NUM_ROWS, 4)).astype(np.float32)
NORM = np.random.default_rng(8).uniform(0.0, 1.4, NUM_ROWS).astype(np.float32)
WITHOUT_PROMPT = np.random.default_rng(9).gamma(2.0, size=NUM_ROWS).astype(np.float32)
ASKED = np.random.default_rng(7).normal(size=(3, 5)).astype(np.float16)
EMBEDDED = np.random.default_rng(6).normal(size=(NUM_ROWS, 5)).astype(np.float16)
ROWS: list[dict[str, Any]] = [
    {
        "instruction": f"add {number} and 1",
        "output": str(number + 1),
        "notes": [{"é": number}],
        "quality": number * 7 % 13,
    }
    | ({"input": f"only row {number}"} if number == 55 else {})
    for number in range(NUM_ROWS)
]


def write_clusters(folder: Location, parts, ids=IDS, strata=STRATA) -> Parts:
    """Each part holds the examples that it lists, in that order."""
    for number, rows in enumerate(parts):
        table = pa.table(
            {
                "example_id": pa.array([ids[row] for row in rows], pa.string()),
                "stratum": pa.array([strata[row] for row in rows], pa.string()),
                "cluster": pa.array([CLUSTERS[row] for row in rows], pa.int32()),
                "sqdist": pa.array([SQDIST[row] for row in rows], pa.float32()),
            }
        )
        (folder / part_name(number)).write_table(table)
    return Parts(folder)


def write_rows(folder: Location, parts, rows=ROWS) -> Parts:
    for number, part in enumerate(parts):
        own = [rows[row] for row in part]
        ids = [IDS[row] for row in part]
        (folder / rows_name(number)).write_table(rows_table(own, ids, "f", list(part)))
        table = pa.table(
            {
                "example_id": ids,
                "num_tokens": pa.array([TOKENS[row] for row in part], pa.int32()),
                "num_prompt_tokens": pa.array(
                    [TOKENS[row] - RESPONSE_TOKENS[row] for row in part], pa.int32()
                ),
            }
        )
        (folder / part_name(number)).write_table(table)
    return Parts(folder, "rows")


def write_trajectories(folder: Location, parts) -> Parts:
    for number, part in enumerate(parts):
        ids, strata = ([values[row] for row in part] for values in (IDS, STRATA))
        table = trajectory_table(
            pa.array(ids), pa.array(strata), LOSSES[list(part)], WITHOUT_PROMPT[list(part)]
        )
        (folder / part_name(number)).write_table(table)
        vectors = embedding_table(pa.array(ids), EMBEDDED[list(part)])
        (folder / part_name(number, EMBEDDINGS)).write_table(vectors)
        norms = norm_table(pa.array(ids), NORM[list(part)])
        (folder / part_name(number, NORMS)).write_table(norms)
    for number, asked in enumerate(np.array_split(ASKED, 2)):
        vectors = embedding_table(pa.array(["q"] * len(asked)), asked)
        (folder / QUERIES / part_name(number, EMBEDDINGS)).write_table(vectors)
    return Parts(folder)


def in_order(num_parts: int) -> list[list[int]]:
    return [part.tolist() for part in np.array_split(np.arange(NUM_ROWS), num_parts)]


def selected(folder: Location, parts=None, rows: Parts | None = None, seed: int = 1, **changes):
    """The stage's summary and folder."""
    out = SELECTION.directory(folder)
    scored = (
        {"score": "quality"} if "score" in (changes.get("method"), changes.get("within")) else {}
    )
    config = SelectionConfig(**{"budget": 12, **scored, **changes})
    clusters = parts or write_clusters(folder / "clusters", in_order(4))
    losses = write_trajectories(Location.of(f"{folder}-losses"), in_order(7))
    sources = selection.Sources(clusters, losses, rows)
    return selection.run(config, sources, out, seed=seed), out.location


def ranking(folder: Location) -> pa.Table:
    return (folder / "ranking.parquet").read_table()


def jsonl(folder: Location) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (folder.parent / "subset" / "selected.jsonl").read_bytes().splitlines()
    ]


def order_of(folder: Location) -> list[int]:
    """The examples' numbers in order of rank."""
    return [IDS.index(example_id) for example_id in ranking(folder)["example_id"].to_pylist()]
