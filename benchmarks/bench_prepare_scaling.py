"""The stage `prepare` with one core and with two, of one large file and of many.

    python benchmarks/bench_prepare_scaling.py POOL.jsonl --rows 120000 \\
        --tokenizer configs/tokenizers/math-4k

Whole commands (`s2l run --until prepare`), from start to end, in turns; there is a worker for each
core that the command may use. Seconds are right only where nothing else runs. CPU seconds are those
of all processes of a command. Medians count. Every result is the same bytes.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from bench_prepare import commands, write_pool
from bench_scoring import HERE, machine
from bench_small_prepare import divide
from cpu_time import measured


def digest(folder: Path) -> str:
    """Return a hash of the tokens and ids of all rows."""
    found = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.glob("part-*.parquet")):
        found.update(path.read_bytes())
    return found.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pool", type=Path)
    parser.add_argument("--rows", type=int, default=120_000)
    parser.add_argument("--files", type=int, nargs="+", default=[1, 30])
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    cores, lines = sorted(os.sched_getaffinity(0)), []
    for num_files in given.files:
        with tempfile.TemporaryDirectory() as name:
            folder, pool = Path(name), Path(name) / "pool.jsonl"
            write_pool(given.pool, given.rows, pool)
            command = commands(folder, str(Path(given.tokenizer).resolve()))["prepare"]
            if num_files > 1:
                divide(pool, num_files)
                command += ["--set", f"data.train=[{pool}]"]
            found: dict[int, list[tuple[float, float]]] = {}
            digests = set()
            for _ in range(given.repeats):
                for count in given.cores:
                    os.sched_setaffinity(0, cores[:count])
                    found.setdefault(count, []).append(measured(command))
                    os.sched_setaffinity(0, cores)
                    digests.add(digest(folder / "run" / "prepared"))
                    shutil.rmtree(folder / "run")
            assert len(digests) == 1, "the bytes depend on the number of workers"
            for count, all_runs in found.items():
                seconds, cpu = (statistics.median(values) for values in zip(*all_runs, strict=True))
                line = {"files": num_files, "cores": count, "seconds": seconds, "cpu_seconds": cpu}
                print(json.dumps(line), flush=True)
                lines.append({**line, "all": all_runs})
    when = datetime.now(UTC).isoformat(timespec="seconds")
    result = {"when": when, "machine": machine("cpu"), "rows": given.rows, "lines": lines}
    out = HERE / "results" / f"prepare-scaling-{given.rows}.json"
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
