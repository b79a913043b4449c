"""What threads of tokenizers cost two workers of `prepare` that share a machine.

    python benchmarks/bench_tokenizer_threads.py POOL.jsonl --tokenizer configs/tokenizers/math-4k

Two processes at a time, as Ray's actors are, each do the pool with bench_collector's workers,
libraries outside the garbage collector; CPU seconds of each. Tokenizers on all cores, on one thread
(`RAYON_NUM_THREADS=1`), and without threads (`TOKENIZERS_PARALLELISM=false`).
"""

import argparse
import multiprocessing
import os

from bench_collector import measured

ENVIRONMENTS = ({}, {"RAYON_NUM_THREADS": "1"}, {"TOKENIZERS_PARALLELISM": "false"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pool")
    parser.add_argument("--tokenizer", required=True)
    given = parser.parse_args()
    for environment in ENVIRONMENTS:
        os.environ.update(environment)
        with multiprocessing.get_context("spawn").Pool(2) as processes:
            work = [("libraries frozen", given.pool, given.tokenizer)] * 2
            found = processes.starmap(measured, work, chunksize=1)
        for name in environment:
            del os.environ[name]
        print(environment or "all cores", *(f"{seconds:.2f}" for seconds in found), flush=True)


if __name__ == "__main__":
    main()
