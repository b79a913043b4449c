"""Seconds of one core for what the stage `prepare` compares, beside its own work.

    .venv/bin/python benchmarks/bench_clean_pool.py POOL.jsonl --eval gsm8k=EVAL.jsonl

Prints a line for each work: CPU seconds of this process and rows per second; for the join of made
signatures (one row of twenty repeats an earlier one) also the memory at its peak, beyond the arrays
that it is given.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from s2l_ray.config.data import DataConfig, FieldNames
from s2l_ray.data import near_duplicates, prepare
from s2l_ray.data.contamination import PromptIndex
from s2l_ray.data.examples import Example, read_example
from s2l_ray.data.held_out import read_prompts
from s2l_ray.data.part_tokeniser import PartTokeniser
from s2l_ray.data.raw_parts import FileCutter
from s2l_ray.data.sources import read_rows
from s2l_ray.data.words import words
from s2l_ray.storage.input_files import expand
from s2l_ray.storage.location import Location

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests import tiny


def timed(name: str, num_rows: int, work: Callable[[], Any]) -> Any:
    started = time.process_time()
    result = work()
    seconds = time.process_time() - started
    print(f"{name:<44}{seconds:8.2f} s {num_rows / seconds:>12,.0f} rows/s", flush=True)
    return result


def prepared(path: str, folder: Path) -> None:
    """Cut and tokenise a file in this process, with one token for each byte."""
    tiny.tokenizer().save_pretrained(folder / "tokenizer")
    config = DataConfig(train=[path])
    files, out = expand([path]), Location.of(folder / "prepared")
    cut = FileCutter(out / "staged", config.fields, config.rows_per_part)
    parts = prepare.raw_parts([cut(unit) for unit in prepare.cutting_units(files)])
    tokeniser = PartTokeniser(out, config, str(folder / "tokenizer"))
    for unit in prepare.tokenising_units(files, parts, out / "staged", None):
        tokeniser(unit)


def examples_of(path: str) -> list[Example]:
    (file,) = expand([path])
    return [read_example(row.fields, FieldNames()) for row in read_rows(file) if row.fields]


def texts_of(examples: Sequence[Example]) -> list[list[str]]:
    return [words("\n".join(m.content for m in example.messages)) for example in examples]


def made_signatures(num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Bands (B, N) and sketches (N, S) at random; every twentieth row is that of the one before."""
    random = np.random.default_rng(1)
    bands = random.integers(0, 2**62, (near_duplicates.NUM_BANDS, num_rows), np.int64)
    sketches = random.integers(0, 256, (num_rows, near_duplicates.NUM_SLOTS), np.uint8)
    bands[:, 19::20] = bands[:, 18::20][:, : len(bands[0, 19::20])]
    sketches[19::20] = sketches[18::20][: len(sketches[19::20])]
    return bands, sketches


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pool")
    parser.add_argument("--eval", nargs="*", default=[], metavar="NAME=FILE")
    parser.add_argument("--rows", type=int, default=1_000_000, help="made signatures")
    arguments = parser.parse_args()
    # The first call compiles, or loads what was compiled.
    near_duplicates.repeats(*made_signatures(100))

    bands, sketches = made_signatures(arguments.rows)
    before = peak_bytes()
    join = partial(near_duplicates.repeats, bands, sketches)
    found = timed(f"join of {arguments.rows:,} made signatures", arguments.rows, join)
    beyond = (peak_bytes() - before) / arguments.rows
    print(f"  {len(found.row_D):,} repeat another; {beyond:.0f} bytes per row beyond the arrays")

    examples, path = examples_of(arguments.pool), arguments.pool
    n = len(examples)
    with tempfile.TemporaryDirectory() as folder:
        work = partial(prepared, path, Path(folder))
        timed("prepare without comparisons, byte tokenizer", n, work)
    sets = {name: expand([file]) for name, file in (s.split("=", 1) for s in arguments.eval)}
    prompts, _ = read_prompts(sets, FieldNames())
    if len(prompts):
        look = partial(PromptIndex(prompts).matches, examples)
        timed(f"looking for {len(prompts):,} prompts", n, look)
    texts = timed("words", n, partial(texts_of, examples))
    signed = timed("signatures of words", n, partial(near_duplicates.signatures, range(n), texts))
    bands = np.ascontiguousarray(signed["bands"].T)
    join = partial(near_duplicates.repeats, bands, signed["sketch"])
    timed("join of the pool's signatures", n, join)


if __name__ == "__main__":
    main()
