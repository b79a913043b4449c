"""Rows that repeat an earlier one, found by their digests: CPU seconds and peak memory of it.

    python benchmarks/bench_repeats.py [--rows 1000000 10000000] [--repeated 0 0.02] [--folder F]

Digests are random, in parts of 10,000 rows; `--repeated` is the share of rows whose digest is drawn
from half as many. Each line is measured in a process of its own, above what it held before.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import pyarrow as pa
from bench_scoring import record

ROWS_PER_PART = 10_000


def one(num_rows: int, share: float, folder: str | None) -> dict[str, Any]:
    """Measure in this process."""
    from s2l_ray.data import duplicates
    from s2l_ray.data.raw_parts import RawPart
    from s2l_ray.storage.location import Location

    rng, repeated = np.random.default_rng(0), round(share * ROWS_PER_PART)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        staged, parts = Location.of(scratch), []
        for start in range(0, num_rows, ROWS_PER_PART):
            digest_P2 = rng.integers(0, 2**63, (ROWS_PER_PART, 2), np.uint64)
            drawn = rng.integers(0, max(repeated * num_rows // ROWS_PER_PART // 2, 1), repeated)
            digest_P2[:repeated] = drawn[:, None]
            column = pa.array([row.tobytes() for row in digest_P2], pa.binary())
            parts.append(RawPart(0, f"rows-{start:012}.parquet", ROWS_PER_PART, start))
            (staged / parts[-1].name).write_table(pa.table({"digest": column}))
        duplicates.repeats(staged, parts[:2])  # loads what it needs
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
        found = duplicates.repeats(staged, parts)
        seconds, after = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF)
        return {
            "rows": num_rows,
            "repeated": sum(map(len, found)),
            "cpu_seconds": round(seconds, 1),
            "megabytes": round((after.ru_maxrss - before.ru_maxrss) / 1e3),
        }


def measured(subject: tuple[int, float], given: argparse.Namespace) -> dict[str, Any]:
    words = [sys.executable, __file__, "--one", "--rows", str(subject[0])]
    words += ["--repeated", str(subject[1]), *(["--folder", given.folder] if given.folder else [])]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10**6, 10**7])
    parser.add_argument("--repeated", type=float, nargs="+", default=[0, 0.02])
    parser.add_argument("--folder", help="for the digests; the temporary folder by default")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.rows[0], given.repeated[0], given.folder)))
        return
    subjects = [(rows, share) for rows in given.rows for share in given.repeated]
    record(given, "repeats.json", measured, subjects)


if __name__ == "__main__":
    main()
