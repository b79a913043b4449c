"""The stage `prepare` by threads of the program against processes beside it, for small pools.

    python benchmarks/bench_small_prepare.py POOL.jsonl --tokenizer configs/tokenizers/math-4k

Whole commands (`s2l run --until prepare`), from start to end, in turns: seconds, and CPU seconds of
all processes. With `--files N` the rows lie in as many files.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from bench_prepare import commands, write_pool
from cpu_time import measured

SIDES = {"threads": 1 << 40, "processes": -1}
PROGRAM = """
import sys
from s2l_ray import cli
from s2l_ray.data import input_sizes
input_sizes.MOST_BYTES_IN_THREADS = int(sys.argv.pop(1))
sys.exit(cli.main())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pool", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[160, 15_000, 30_000, 60_000])
    parser.add_argument("--files", type=int, default=1)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    for num_rows in given.rows:
        with tempfile.TemporaryDirectory() as name:
            folder, pool = Path(name), Path(name) / "pool.jsonl"
            write_pool(given.pool, num_rows, pool)
            size = pool.stat().st_size
            _, *arguments = commands(folder, str(Path(given.tokenizer).resolve()))["prepare"]
            if given.files > 1:
                divide(pool, given.files)
                arguments += ["--set", f"data.train=[{pool}]"]
            for _ in range(given.repeats):
                for side, most in SIDES.items():
                    found = measured([sys.executable, "-c", PROGRAM, str(most), *arguments])
                    seconds, cpu_seconds = (round(value, 1) for value in found)
                    shutil.rmtree(folder / "run")
                    print(
                        f"{num_rows:>8,} rows {size / 1e6:>7.1f} MB {given.files:>6} files "
                        f"{side:>9} {seconds:>7} s {cpu_seconds:>7} CPU s",
                        flush=True,
                    )


def divide(pool: Path, num_files: int) -> None:
    """Put a folder of files with its lines in the place of a file."""
    lines = pool.read_text(encoding="utf-8").splitlines(keepends=True)
    pool.unlink()
    pool.mkdir()
    for number in range(num_files):
        rows = lines[number * len(lines) // num_files : (number + 1) * len(lines) // num_files]
        (pool / f"{number:06}.jsonl").write_text("".join(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
