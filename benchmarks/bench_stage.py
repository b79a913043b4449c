"""The trajectories stage on Ray against its scorer alone, on the same cores or the same GPU.

    python benchmarks/bench_stage.py [--parts 12] [--repeats 5] [--workers 2]
    python benchmarks/bench_stage.py --device cuda --precision bf16 --model smollm2-135m \
        --rows 4072 --tokens-per-batch 16384 --workers 1 --parts 24

Alone: as many processes as workers, one thread each, call the scorer on their share of the parts,
with the model loaded and nothing read or written; from a common start to the end of the last.
On Ray: `map_units` as the stage uses it, reading parts and writing losses. Its speed is the
slope of the number of written parts over time, without the first two for each worker, when models
are loaded and, on a GPU, compiled. What comes before the first part is written, less the time of a
part, is the start. They alternate, and medians count. Parts are alike, with the recorded lengths of
bench_scoring.py, and weights random.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_scoring import HERE, SHAPES, machine, pool
from transformers import AutoConfig, AutoModelForCausalLM

from s2l_ray.artifacts.tables import Parts, part_name
from s2l_ray.artifacts.token_tables import rows_of_tokens, token_table
from s2l_ray.config.sections import TrajectoriesConfig
from s2l_ray.distributed import resources, session
from s2l_ray.distributed.map_units import map_units
from s2l_ray.models.checkpoints import DTYPES, load_model
from s2l_ray.models.scoring import Scorer
from s2l_ray.storage.location import Location
from s2l_ray.training import schedule
from s2l_ray.trajectories.part_scorer import Checkpoint, PartScorer

SHAPES = SHAPES | {
    "small": {
        "model_type": "gpt_neox",
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
        "vocab_size": 8192,
    }
}
STEP = 1


def write_inputs(folder: Path, given: argparse.Namespace) -> int:
    """A checkpoint and the parts; tokens of one part."""
    torch.manual_seed(0)
    shape = dict(SHAPES[given.model])
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "step-000001")
    rows, num_prompt_N = pool(config.vocab_size, given.rows)
    table = token_table(
        [f"e{row}" for row in range(len(rows))],
        [""] * len(rows),
        rows,
        [[(int(num_prompt), len(ids))] for ids, num_prompt in zip(rows, num_prompt_N, strict=True)],
    )
    for part in range(num_parts(given)):
        (Location.of(folder) / "prepared" / part_name(part)).write_table(table)
    return sum(map(len, rows))


def alone(folder: str, count: int, given: argparse.Namespace, barrier: Any) -> None:
    """One process: everything is loaded before the barrier, and scored between two of them."""
    torch.set_num_threads(1)
    device, dtype = torch.device(given.device), DTYPES[given.precision]
    model = load_model(str(Path(folder) / "step-000001"), dtype=dtype).to(device)
    files = Parts(Location.of(folder) / "prepared").files()
    tables = [file.read_table() for file in files[:count]]
    parts = [rows_of_tokens(table) for table in tables]
    scorer = Scorer(
        model,
        dtype=dtype,
        device=device,
        tokens_per_batch=given.tokens_per_batch,
        compiled=device.type == "cuda",
    )
    scorer.score(*parts[0])
    barrier.wait()
    for part in parts:
        scorer.score(*part)
    barrier.wait()


def seconds_alone(folder: Path, given: argparse.Namespace) -> float:
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(given.workers + 1)
    arguments = (str(folder), given.parts // given.workers, given, barrier)
    processes = [spawn.Process(target=alone, args=arguments) for _ in range(given.workers)]
    for process in processes:
        process.start()
    barrier.wait()
    started = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - started
    for process in processes:
        process.join()
    return seconds


def on_ray(folder: Path, given: argparse.Namespace) -> tuple[float, float]:
    """Parts per second, and seconds until the first one is written."""
    gpus = int(given.device == "cuda")
    with tempfile.TemporaryDirectory() as out:
        place = Location.of(out)
        started = time.time()
        results = map_units(
            PartScorer,
            schedule.scoring_units(num_parts(given), 1, given.workers),
            resources.Workers("trajectories", given.workers, given.workers, gpus=gpus),
            place / "attempts",
            prepared=Parts(Location.of(folder) / "prepared"),
            checkpoints=[Checkpoint(STEP, Location.of(folder) / "step-000001")],
            config=TrajectoriesConfig(
                precision=given.precision, tokens_per_batch=given.tokens_per_batch
            ),
            folder=place,
            gpus=gpus,
        )
        assert len(list(results)) == num_parts(given)
        written = sorted(file.stat().st_mtime for file in Path(out).glob("part-*.parquet"))
    warm = written[2 * given.workers :]
    return float(np.polyfit(warm, range(len(warm)), 1)[0]), written[0] - started


def num_parts(given: argparse.Namespace) -> int:
    return int(given.parts + 2 * given.workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--model", default="small", choices=SHAPES)
    parser.add_argument("--rows", type=int, default=509, help="of a part")
    parser.add_argument("--tokens-per-batch", type=int, default=2048)
    parser.add_argument("--parts", type=int, default=12, help="a multiple of --workers")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    if given.parts < 4 * given.workers or given.parts % given.workers:
        parser.error("--parts must be a multiple of --workers, four or more of it")
    shares, starts, rates = [], [], []
    with tempfile.TemporaryDirectory() as name, session.cluster(None):
        folder = Path(name)
        tokens = write_inputs(folder, given)
        for _ in range(given.repeats):
            kernel = given.parts * tokens / seconds_alone(folder, given)
            parts_per_second, first_s = on_ray(folder, given)
            rates.append((kernel, parts_per_second * tokens))
            starts.append(first_s - given.workers / parts_per_second)
            shares.append(rates[-1][1] / kernel)
            print(
                f"alone {kernel:,.0f} tokens/s, Ray {rates[-1][1]:,.0f}, start {starts[-1]:.1f} s"
            )
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(given.device),
        "torch": torch.__version__,
        **vars(given),
        "tokens_per_part": tokens,
        "alone_tokens_per_second": statistics.median(kernel for kernel, _ in rates),
        "ray_tokens_per_second": statistics.median(ray for _, ray in rates),
        "shares": shares,
        "share": statistics.median(shares),
        "seconds_of_start": statistics.median(starts),
    }
    print(json.dumps(result, indent=1))
    name = f"stage-{given.device}-{given.precision}.json"
    (HERE / "results" / name).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
