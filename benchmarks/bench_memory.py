"""Peak memory of a scoring worker against the size of the pool.

    python benchmarks/bench_memory.py [--rows 10000 100000 1000000]

One worker of the trajectories stage scores pools of so many short rows, in parts of 4,096, at two
checkpoints of a tiny model; each pool is scored by a new worker. Its peak is the largest resident
set that the kernel has seen; beside it stands what it was after the first part, when everything is
loaded. The driver's peak is of all pools so far, in the order given.
"""

import argparse
import resource
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from bench_scoring import record
from transformers import AutoConfig, AutoModelForCausalLM

from s2l_ray.artifacts.tables import Parts, part_name
from s2l_ray.config.sections import TrajectoriesConfig
from s2l_ray.distributed import resources, session
from s2l_ray.distributed.map_units import map_units
from s2l_ray.storage.location import Location
from s2l_ray.training import schedule
from s2l_ray.trajectories.part_scorer import Checkpoint, PartScorer

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
SHAPE |= {"num_attention_heads": 2, "vocab_size": 512}
STEPS = (1, 2)
ROWS_PER_PART = 4096
LENGTHS = (8, 25)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Watched(PartScorer):
    """Says with every unit how much memory its process has had."""

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        return super().__call__(unit) | {"peak_mb": peak_mb()}


def write_checkpoints(folder: Path) -> list[Checkpoint]:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_neox", **SHAPE))
    for step in STEPS:
        model.save_pretrained(folder / f"step-{step}")
    return [Checkpoint(step, Location.of(folder) / f"step-{step}") for step in STEPS]


def write_pool(folder: Path, num_rows: int) -> None:
    rng = np.random.default_rng(0)
    for part, first in enumerate(range(0, num_rows, ROWS_PER_PART)):
        lengths = rng.integers(*LENGTHS, min(ROWS_PER_PART, num_rows - first))
        ids = rng.integers(0, SHAPE["vocab_size"], lengths.sum(), dtype=np.int32)
        offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
        table = pa.table(
            {
                "example_id": [f"{first + row:032d}" for row in range(len(lengths))],
                "stratum": [""] * len(lengths),
                "input_ids": pa.ListArray.from_arrays(offsets, ids),
                "num_prompt_tokens": pa.array(lengths // 2, pa.int32()),
            }
        )
        (Location.of(folder) / part_name(part)).write_table(table)


def measured(rows: int, given: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pool(folder / "prepared", rows)
        prepared = Parts(Location.of(folder / "prepared"))
        units: Sequence[dict[str, Any]] = schedule.scoring_units(
            len(prepared.files()), len(STEPS), 1
        )
        results = map_units(
            Watched,
            units,
            resources.Workers("trajectories", 1, 1),
            Location.of(folder) / "attempts",
            prepared=prepared,
            checkpoints=write_checkpoints(folder),
            config=TrajectoriesConfig(precision="fp32"),
            folder=Location.of(folder) / "trajectories",
            gpus=0,
        )
        peaks, num_parts = [result["peak_mb"] for result in results], len(prepared.files())
    return {
        "rows": rows,
        "parts": num_parts,
        "worker_mb_after_first_unit": round(peaks[0]),
        "worker_peak_mb": round(max(peaks)),
        "driver_peak_mb": round(peak_mb()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    given = parser.parse_args()
    torch.manual_seed(0)
    with session.cluster(None):
        record(given, "memory-cpu.json", measured, given.rows)


if __name__ == "__main__":
    main()
