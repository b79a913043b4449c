"""What Python's garbage collector costs the workers of `prepare`, in one process.

    python benchmarks/bench_collector.py POOL.jsonl --tokenizer configs/tokenizers/math-4k

The workers of the stage, called one after the other: read, check and cut; then templates, tokens
and parts. As they are, with their libraries outside the collector (as Ray's workers have them), and
without a collector. Each in a process of its own, CPU seconds, tokenisers on one thread.
"""

import argparse
import gc
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

MODES = ("as they are", "libraries frozen", "no collector")


def measured(mode: str, pool: str, tokenizer: str) -> float:
    """Return the CPU seconds of the stage's workers without those of loading."""
    from s2l_ray.config.data import DataConfig
    from s2l_ray.data import prepare
    from s2l_ray.data.part_tokeniser import PartTokeniser
    from s2l_ray.data.raw_parts import FileCutter
    from s2l_ray.storage.input_files import expand
    from s2l_ray.storage.location import Location

    config, files = DataConfig(train=[pool], template="alpaca", max_tokens=512), expand([pool])
    with tempfile.TemporaryDirectory() as folder:
        out = Location.of(Path(folder) / "prepared")
        tokeniser = PartTokeniser(out, config, tokenizer)
        if mode == "no collector":
            gc.disable()
        elif mode == "libraries frozen":
            gc.freeze()
        started = time.process_time()
        cut = FileCutter(out / "staged", config.fields, config.rows_per_part)
        parts = prepare.raw_parts([cut(unit) for unit in prepare.cutting_units(files)])
        for unit in prepare.tokenising_units(files, parts, out / "staged", None):
            tokeniser(unit)
        return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pool")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # A new process for each: what is frozen stays so.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as processes:
        for _ in range(given.repeats):
            for mode in MODES:
                seconds = processes.apply(measured, (mode, given.pool, given.tokenizer))
                print(f"{mode:<20}{seconds:8.1f} s", flush=True)


if __name__ == "__main__":
    main()
