"""Seconds and peak memory of ranking a pool: read, rank and write, in one process without Ray.

    python benchmarks/bench_selection.py --rows 1000000 4000000
    python benchmarks/bench_selection.py --rows 100000 200000 --method facility-location

writes synthetic cluster parts (ids of 32 hexadecimal digits, 18 strata of 100 clusters each, sizes
falling like 1/rank) and trajectories of 12 losses to a temporary directory, and runs the selection
on them in a fresh process for each size. Methods that compare embeddings get some of --components,
normal around a center for each cluster, and of --queries. It prints a table; the same numbers go to
benchmarks/results/selection-METHOD.json. Memory is the largest resident size of that process, and
what that is above its size before it began. CPU seconds are all of its threads'; they say more than
the clock where other work runs beside it.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from s2l_ray.artifacts.manifest import EMBEDDINGS, QUERIES, StageDir
from s2l_ray.artifacts.tables import Parts, embedding_table, part_name, trajectory_table
from s2l_ray.config.sections import SelectionConfig
from s2l_ray.selection import stage as selection
from s2l_ray.selection.methods import METHODS
from s2l_ray.storage.location import Location

RESULTS = Path(__file__).parent / "results"
ROWS_PER_PART = 4_096
NUM_STRATA, NUM_CLUSTERS, NUM_CHECKPOINTS = 18, 100, 12


def write_parts(folder: Location, num_rows: int, width: int, num_queries: int) -> None:
    """Parts in `folder`/clusters and `folder`/trajectories; embeddings if `width` is above zero."""
    rng = np.random.default_rng(0)
    losses_folder = folder / "trajectories"
    center_KH = rng.normal(size=(NUM_STRATA * NUM_CLUSTERS, width)).astype(np.float32)
    names = np.array([f"data/source-{number:02}.json" for number in range(NUM_STRATA)])
    for part, start in enumerate(range(0, num_rows, ROWS_PER_PART)):
        size = min(ROWS_PER_PART, num_rows - start)
        stratum_N = falling(NUM_STRATA, size, rng)
        cluster_N = stratum_N * NUM_CLUSTERS + falling(NUM_CLUSTERS, size, rng)
        table = {
            "example_id": [rng.bytes(16).hex() for _ in range(size)],
            "stratum": names[stratum_N].tolist(),
            "cluster": pa.array(cluster_N, pa.int32()),
            "sqdist": pa.array(rng.random(size, np.float32)),
        }
        (folder / "clusters" / part_name(part)).write_table(pa.table(table))
        loss_NT = rng.gamma(2.0, size=(size, NUM_CHECKPOINTS)).astype(np.float32)
        losses = trajectory_table(
            pa.array(table["example_id"]), pa.array(table["stratum"]), loss_NT
        )
        (losses_folder / part_name(part)).write_table(losses)
        if width:
            ids = pa.array(table["example_id"])
            vectors = embedding_table(ids, around(center_KH[cluster_N], rng))
            (losses_folder / part_name(part, EMBEDDINGS)).write_table(vectors)
    if width:
        asked_QH = around(center_KH[rng.integers(0, len(center_KH), num_queries)], rng)
        asked = embedding_table(pa.array([""] * num_queries), asked_QH)
        (losses_folder / QUERIES / part_name(0, EMBEDDINGS)).write_table(asked)


def around(center_NH: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float16 vectors of length one."""
    drawn_NH = center_NH + rng.normal(size=center_NH.shape).astype(np.float32)
    return (drawn_NH / np.linalg.norm(drawn_NH, axis=1, keepdims=True)).astype(np.float16)


def falling(num_groups: int, size: int, rng: np.random.Generator) -> np.ndarray:
    share = 1 / np.arange(1, num_groups + 1)
    return rng.choice(num_groups, size, p=share / share.sum())


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(place: Location, method: str, within: str) -> dict[str, Any]:
    """The selection of a tenth in this process, which has done nothing before."""
    before, started, cpu_started = megabytes(), time.monotonic(), time.process_time()
    config = SelectionConfig(method=method, budget=0.1, within=within)
    stage = StageDir(place / "selection", "selection", {})
    clusters, losses = Parts(place / "clusters"), Parts(place / "trajectories")
    summary = selection.run(config, selection.Sources(clusters, losses), stage, seed=42)
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu_started
    peak = megabytes()
    return {
        "rows": summary["rows"],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "peak_mb": round(peak),
        "bytes_per_row": round((peak - before) * 2**20 / summary["rows"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 4_000_000])
    parser.add_argument("--method", default="s2l")
    parser.add_argument("--within", default="random")
    parser.add_argument("--components", type=int, default=576)
    parser.add_argument("--queries", type=int, default=200)
    arguments = parser.parse_args()
    found = []
    columns = ("rows", "seconds", "cpu_seconds", "peak_mb", "bytes_per_row")
    print("".join(f"{name.replace('_', ' '):>14}" for name in columns))
    for num_rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            place = Location.of(folder)
            width = arguments.components if METHODS[arguments.method].vectors else 0
            write_parts(place, num_rows, width, arguments.queries)
            fresh = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=fresh) as process:
                asked = (arguments.method, arguments.within)
                row = process.submit(measured, place, *asked).result()
        found.append(row)
        print("".join(f"{row[name]:>14,}" for name in columns))
    result = {
        "command": " ".join(["python", "benchmarks/bench_selection.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "method": arguments.method,
        "within": arguments.within,
        "sizes": found,
    }
    RESULTS.mkdir(exist_ok=True)
    place = RESULTS / f"selection-{arguments.method}.json"
    place.write_text(json.dumps(result, indent=1) + "\n")
    print(place)


if __name__ == "__main__":
    main()
