"""The trajectories stage on Ray against its scorer alone, on the same cores.

    python benchmarks/bench_stage.py [--parts 8] [--repeats 5] [--workers 2]

Alone: as many processes as workers, one thread each, call the scorer on their share of the parts,
with the model loaded and nothing read or written; from a common start to the end of the last.
On Ray: `runtime.map_units` as the stage uses it, reading parts and writing losses, on so many parts
and on three times as many; what the larger number takes longer is the warm speed, and the rest is
the start. They alternate, and medians count. Rows have the recorded lengths of bench_scoring.py;
the model is GPT-NeoX with random weights.
"""

import argparse
import json
import multiprocessing
import platform
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from bench_scoring import HERE, pool
from transformers import AutoConfig, AutoModelForCausalLM

from s2l_ray import resources, runtime
from s2l_ray.artifacts import Parts, part_name
from s2l_ray.config import TrajectoriesConfig
from s2l_ray.modelling import schedule
from s2l_ray.modelling.scoring import score
from s2l_ray.stages import trajectories
from s2l_ray.storage import Location

SHAPE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
SHAPE |= {"num_attention_heads": 4, "vocab_size": 8192}
STEP = 1
MORE = 3


def write_inputs(folder: Path, num_parts: int) -> int:
    """A checkpoint and the parts; tokens of one part."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_neox", **SHAPE))
    model.save_pretrained(folder / "step-000001")
    rows, num_prompt_N = pool(SHAPE["vocab_size"], 509)
    table = pa.table(
        {
            "example_id": [f"e{row}" for row in range(len(rows))],
            "stratum": [""] * len(rows),
            "input_ids": pa.array(rows, pa.list_(pa.int32())),
            "num_prompt_tokens": pa.array(num_prompt_N, pa.int32()),
        }
    )
    for part in range(num_parts):
        (Location.of(folder) / "prepared" / part_name(part)).write_table(table)
    return sum(map(len, rows))


def alone(folder: str, parts: list[int], config: TrajectoriesConfig, barrier: Any) -> None:
    """One process: everything is loaded before the barrier, and scored between two of them."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(Path(folder) / "step-000001").eval()
    files = Parts(Location.of(folder) / "prepared").files()
    tables = [files[part].read_table() for part in parts]
    rows = [trajectories.token_arrays(table) for table in tables]
    prompts = [table["num_prompt_tokens"].to_numpy() for table in tables]
    options = {"dtype": torch.float32, "device": torch.device("cpu")}
    options["tokens_per_batch"] = config.tokens_per_batch
    score(model, rows[0][:16], prompts[0][:16], **options)
    barrier.wait()
    for ids, num_prompt_N in zip(rows, prompts, strict=True):
        score(model, ids, num_prompt_N, **options)
    barrier.wait()


def seconds_alone(folder: Path, num_parts: int, workers: int, config: TrajectoriesConfig) -> float:
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(workers + 1)
    shares = [list(range(worker, num_parts, workers)) for worker in range(workers)]
    processes = [
        spawn.Process(target=alone, args=(str(folder), share, config, barrier)) for share in shares
    ]
    for process in processes:
        process.start()
    barrier.wait()
    started = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - started
    for process in processes:
        process.join()
    return seconds


def seconds_on_ray(folder: Path, num_parts: int, workers: int, config: TrajectoriesConfig) -> float:
    """From the first actor's start to the last result."""
    with tempfile.TemporaryDirectory() as out:
        place = Location.of(out)
        started = time.perf_counter()
        results = runtime.map_units(
            trajectories.Scorer,
            schedule.scoring_units(num_parts, 1, workers),
            resources.Workers("trajectories", workers, workers),
            place / "attempts",
            prepared=Parts(Location.of(folder) / "prepared"),
            checkpoints=[trajectories.Checkpoint(STEP, Location.of(folder) / "step-000001")],
            config=config,
            folder=place,
            gpus=0,
        )
        for _ in results:
            pass
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    config = TrajectoriesConfig(precision="fp32", tokens_per_batch=2048)
    shares, starts, rates = [], [], []
    with tempfile.TemporaryDirectory() as name, runtime.cluster(None):
        folder = Path(name)
        few, many = given.parts, MORE * given.parts
        tokens = write_inputs(folder, many)
        for _ in range(given.repeats):
            kernel = few * tokens / seconds_alone(folder, few, given.workers, config)
            short_s = seconds_on_ray(folder, few, given.workers, config)
            more_s = seconds_on_ray(folder, many, given.workers, config) - short_s
            rates.append((kernel, (many - few) * tokens / more_s))
            starts.append(short_s - few * tokens / rates[-1][1])
            shares.append(rates[-1][1] / kernel)
            print(
                f"alone {kernel:,.0f} tokens/s, Ray {rates[-1][1]:,.0f}, start {starts[-1]:.1f} s"
            )
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": platform.processor() or platform.machine(),
        **vars(given),
        "tokens_per_part": tokens,
        "alone_tokens_per_second": float(np.median([kernel for kernel, _ in rates])),
        "ray_tokens_per_second": float(np.median([ray for _, ray in rates])),
        "share": statistics.median(shares),
        "share_lowest": min(shares),
        "seconds_of_start": statistics.median(starts),
    }
    print(json.dumps(result, indent=1))
    (HERE / "results" / "stage-cpu-fp32.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
