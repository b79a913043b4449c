"""Clusters and ranking of a large pool through the command: seconds, memory, the same bytes.

    python benchmarks/bench_clusters.py [--rows 10000000] [--clusters 100] [--workers 2 1]
        [--strata 1]

Synthetic trajectories (those of bench_kmeans.py) are written as parquet files, brought to a run by
`trajectories.path`, clustered and ranked, once for every number of workers: over all, or inside
each of several strata, whose sizes fall like 1/rank. Seconds are those of the manifests, and of the
whole program with the start of Ray.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench_kmeans import synthetic
from bench_pipeline import watched
from bench_scoring import record

ROWS_PER_FILE = 500_000


def write_pool(num_rows: int, num_strata: int, folder: Path) -> None:
    share_S = 1 / np.arange(1, num_strata + 1)
    share_S /= share_S.sum()
    for number, start in enumerate(range(0, num_rows, ROWS_PER_FILE)):
        size = min(ROWS_PER_FILE, num_rows - start)
        loss_NT = synthetic(size, 12, seed=number)
        ids = pa.array(np.char.mod("example-%09d", np.arange(start, start + size)))
        losses = pa.FixedSizeListArray.from_arrays(pa.array(loss_NT.ravel()), 12)
        stratum_N = np.random.default_rng(number).choice(num_strata, size, p=share_S)
        strata = pa.array(np.char.mod("stratum-%02d", stratum_N))
        table = pa.table({"example_id": ids, "stratum": strata, "loss_nats": losses})
        pq.write_table(table, folder / f"{number:04}.parquet")


def digest(run: Path) -> str:
    """Of the centroids and the ranking."""
    total = hashlib.sha256((run / "clusters" / "_centroids.npy").read_bytes())
    ranking = pq.ParquetFile(run / "selection" / "ranking.parquet")
    for batch in ranking.iter_batches(columns=["example_id", "cluster"]):
        total.update("".join(batch["example_id"].to_pylist()).encode())
        total.update(batch["cluster"].to_numpy().tobytes())
    return total.hexdigest()


def measured(folder: Path, workers: int, given: argparse.Namespace) -> dict[str, Any]:
    run = folder / f"run-{workers}"
    tree = {
        "run_dir": str(run),
        "trajectories": {"path": f"{folder}/*.parquet", "workers": workers},
        "clusters": {
            "num_clusters": given.clusters,
            "per_stratum": given.strata > 1,
            "workers": workers,
        },
        "selection": {"budget": 0.11},
    }
    file = folder / "run.yaml"
    file.write_text(json.dumps(tree))
    seconds, memory = watched(
        [sys.executable, "-m", "s2l_ray", "run", str(file), "--until", "selection"]
    )
    manifests = {
        stage: json.loads((run / stage / "_manifest.json").read_text())
        for stage in ("trajectories", "clusters", "selection")
    }
    return {
        "workers": workers,
        "seconds": round(seconds, 1),
        **{stage: round(manifest["seconds"], 1) for stage, manifest in manifests.items()},
        "largest_process_mb": memory.largest_process >> 20,
        "all_processes_mb": memory.all_processes >> 20,
        "inertia": manifests["clusters"]["summary"]["inertia"],
        "digest": digest(run),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--strata", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_pool(given.rows, given.strata, Path(folder))
        name = f"clusters-{given.rows}" + (f"x{given.strata}" if given.strata > 1 else "")
        record(given, f"{name}.json", partial(measured, Path(folder)), given.workers)


if __name__ == "__main__":
    main()
