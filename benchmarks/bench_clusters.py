"""Clusters and ranking of a large pool through the command: seconds, memory, the same bytes.

    python benchmarks/bench_clusters.py [--rows 10000000] [--clusters 100] [--workers 2 1]
        [--strata 1] [--rows-per-file 500000] [--folder /tmp]
    python benchmarks/bench_clusters.py --rows 1000000 10000000 100000000 --workers 2

Synthetic trajectories (those of bench_kmeans.py) are written as parquet files, one after the other,
brought to a run by `trajectories.path`, clustered and ranked, once for every number of workers:
over all, or inside each of several strata, whose sizes fall like 1/rank. For each stage there are
the seconds of its manifest, CPU seconds, and peaks of memory: of the program itself ("driver"), of
the largest process, and of all with shared pages counted once. A hundred million rows take 7 GB of
disk, and their run 5 GB more.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from bench_kmeans import synthetic
from bench_pipeline import Memory, watched
from bench_scoring import record

STAGES = ("trajectories", "clusters", "selection")


def write_pool(num_rows: int, num_strata: int, rows_per_file: int, folder: Path) -> None:
    share_S = 1 / np.arange(1, num_strata + 1)
    share_S /= share_S.sum()
    for number, start in enumerate(range(0, num_rows, rows_per_file)):
        size = min(rows_per_file, num_rows - start)
        loss_NT = synthetic(size, 12, seed=number)
        ids = pa.array(np.char.mod("example-%09d", np.arange(start, start + size)))
        losses = pa.FixedSizeListArray.from_arrays(pa.array(loss_NT.ravel()), 12)
        stratum_N = np.random.default_rng(number).choice(num_strata, size, p=share_S)
        strata = pa.array(np.char.mod("stratum-%02d", stratum_N))
        table = pa.table({"example_id": ids, "stratum": strata, "loss_nats": losses})
        pq.write_table(table, folder / f"{number:04}.parquet")


@dataclass
class ByStage(Memory):
    """Peaks in megabytes and CPU seconds of each stage: the first of them that has no manifest."""

    folders: Sequence[Path] = ()
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    cpu_by_process: dict[int, float] = field(default_factory=dict)

    def sample(self, root: psutil.Process) -> None:
        before, resident, shared_once = sum(self.cpu_by_process.values()), [0], 0
        for process in [root, *root.children(recursive=True)]:
            try:
                memory, times = process.memory_full_info(), process.cpu_times()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            resident.append(memory.rss)
            shared_once += memory.pss
            self.cpu_by_process[process.pid] = times.user + times.system
        self.largest_process = max(self.largest_process, *resident)
        self.all_processes = max(self.all_processes, shared_once)
        left = [folder for folder in self.folders if not (folder / "_manifest.json").exists()]
        if left:
            self._add(left[0].name, before, resident, shared_once)

    def _add(self, stage: str, before: float, resident: list[int], shared_once: int) -> None:
        seen = self.stages.setdefault(stage, {})
        cpu = sum(self.cpu_by_process.values()) - before
        seen["cpu_seconds"] = round(seen.get("cpu_seconds", 0.0) + cpu, 1)
        peaks = {
            "driver_mb": [*resident, 0][1] >> 20,
            "largest_process_mb": max(resident) >> 20,
            "all_processes_mb": shared_once >> 20,
        }
        for name, peak in peaks.items():
            seen[name] = max(seen.get(name, 0), peak)


def digest(run: Path) -> str:
    """Of the centroids and the ranking."""
    total = hashlib.sha256((run / "clusters" / "_centroids.npy").read_bytes())
    ranking = pq.ParquetFile(run / "selection" / "ranking.parquet")
    for batch in ranking.iter_batches(columns=["example_id", "cluster"]):
        total.update("".join(batch["example_id"].to_pylist()).encode())
        total.update(batch["cluster"].to_numpy().tobytes())
    return total.hexdigest()


def measured(subject: tuple[int, int], given: argparse.Namespace) -> dict[str, Any]:
    """Rows and workers."""
    num_rows, workers = subject
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        write_pool(num_rows, given.strata, given.rows_per_file, Path(folder))
        return {"rows": num_rows, **ranked(Path(folder), workers, given)}


def ranked(folder: Path, workers: int, given: argparse.Namespace) -> dict[str, Any]:
    run = folder / "run"
    tree = {
        "run_dir": str(run),
        "trajectories": {"path": f"{folder}/*.parquet"},
        "clusters": {
            "num_clusters": given.clusters,
            "per_stratum": given.strata > 1,
            "workers": workers,
        },
        "selection": {"budget": 0.11},
    }
    file = folder / "run.yaml"
    file.write_text(json.dumps(tree))
    by_stage = ByStage(folders=[run / stage for stage in STAGES])
    seconds, memory = watched(
        [sys.executable, "-m", "s2l_ray", "run", str(file), "--until", "selection"], by_stage
    )
    manifests = {
        stage: json.loads((run / stage / "_manifest.json").read_text()) for stage in STAGES
    }
    return {
        "workers": workers,
        "seconds": round(seconds, 1),
        **{
            stage: {"seconds": round(manifest["seconds"], 1), **by_stage.stages.get(stage, {})}
            for stage, manifest in manifests.items()
        },
        "largest_process_mb": memory.largest_process >> 20,
        "all_processes_mb": memory.all_processes >> 20,
        "inertia": manifests["clusters"]["summary"]["inertia"],
        "digest": digest(run),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000_000])
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--strata", type=int, default=1)
    parser.add_argument("--rows-per-file", type=int, default=500_000)
    parser.add_argument("--folder", help="where the pool and the run are written for a while")
    given = parser.parse_args()
    name = f"clusters-{max(given.rows)}" + (f"x{given.strata}" if given.strata > 1 else "")
    subjects = [(num_rows, workers) for num_rows in given.rows for workers in given.workers]
    record(given, f"{name}.json", measured, subjects)


if __name__ == "__main__":
    main()
