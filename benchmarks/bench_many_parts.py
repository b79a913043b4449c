"""The driver of a run with a million parts, without data or models: CPU seconds and memory.

    python benchmarks/bench_many_parts.py [--parts 100000 1000000] [--folder /dev/shm]

Each subject is a thing that the driver does with a list of all parts, in a process of its own:
`listing` lists the parts of a stage, `sizes` lists them with sizes and dates, `places` writes and
reads the list of losses that stay where they lie, `units` makes units of work and hands them to
threads, `in order` looks at results that come in any order, `shares` deals parts out to a thousand
workers, and `repeats` finds rows that repeat an earlier one (ten rows a part; parts are read, so it
is done for a hundredth of the parts). `data set` gives units to Ray Data, a hundredth of them too.
"""

import argparse
import json
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench_scoring import record

WORKERS = 1000
ROWS_OF_REPEATS = 10


def files_of(folder: Path, num_parts: int) -> None:
    """Empty files with the names of parts."""
    from s2l_ray.artifacts.tables import part_name

    for part in range(num_parts):
        (folder / part_name(part)).touch()


def listing(folder: Path, num_parts: int) -> Callable[[], Any]:
    from s2l_ray.artifacts.tables import Parts
    from s2l_ray.storage.location import Location

    files_of(folder, num_parts)
    return lambda: len(Parts(Location.of(folder)).files())


def sizes(folder: Path, num_parts: int) -> Callable[[], Any]:
    from s2l_ray.artifacts.tables import Parts
    from s2l_ray.storage.location import Location

    files_of(folder, num_parts)
    return lambda: len(Parts(Location.of(folder)).stored())


def places(folder: Path, num_parts: int) -> Callable[[], Any]:
    from s2l_ray.storage import row_groups
    from s2l_ray.storage.location import Location
    from s2l_ray.storage.row_groups import RowGroups

    found = [
        RowGroups(f"s3://pool/losses/{part // 100:06}.parquet", part % 100, part % 100 + 1, 1, 1)
        for part in range(num_parts)
    ]
    file = Location.of(folder) / "_places.json"

    def work() -> int:
        file.write_json(row_groups.as_json(found))
        return len(row_groups.of_json(file.read_json()))

    return work


class Runner:
    """Does nothing with a row."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"number": row["number"], "result": row["unit"]}


def units(folder: Path, num_parts: int) -> Callable[[], Any]:
    from s2l_ray.distributed import resources, threads

    wanted = resources.Workers("trajectories", 1, 2, here=True)

    def work() -> int:
        made = [
            {"uri": f"{folder}/{part}", "first_part": part, "rows": [0, 1]}
            for part in range(num_parts)
        ]
        rows = [{"number": number, "unit": json.dumps(unit)} for number, unit in enumerate(made)]
        return sum(1 for row in threads.finished(Runner, rows, wanted, {}) if row["result"])

    return work


def data_set(folder: Path, num_parts: int) -> Callable[[], Any]:
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    import ray.data

    rows = [{"number": n, "unit": f'{{"uri": "{folder}/{n}"}}'} for n in range(num_parts // 100)]
    return lambda: ray.data.from_items(rows, override_num_blocks=len(rows)).num_blocks()


def in_order(folder: Path, num_parts: int) -> Callable[[], Any]:
    from s2l_ray.progress import Progress
    from s2l_ray.trajectories import import_existing

    made = [{"uri": f"{folder}/{part}", "rows": [0, 1]} for part in range(num_parts)]
    results = (
        {"uri": unit["uri"], "first_row": 0, "rows": 1, "checkpoints": 12, "refused": None}
        for unit in reversed(made)
    )
    return lambda: import_existing.checked_length(made, results, Progress("trajectories"))


def shares(folder: Path, num_parts: int) -> Callable[[], Any]:
    from s2l_ray.artifacts.tables import part_name
    from s2l_ray.storage.location import Location

    files = [Location.of(folder) / part_name(part) for part in range(num_parts)]

    def work() -> int:
        dealt = [
            {part: files[part] for part in range(index, len(files), WORKERS)}
            for index in range(WORKERS)
        ]
        return sum(len(pickle.dumps(share)) for share in dealt)

    return work


def repeats(folder: Path, num_parts: int) -> Callable[[], Any]:
    import pyarrow as pa

    from s2l_ray.data import duplicates
    from s2l_ray.data.raw_parts import RawPart
    from s2l_ray.storage.location import Location

    rng, staged = np.random.default_rng(0), Location.of(folder)
    parts = [RawPart(0, f"raw-{n:06}.parquet", ROWS_OF_REPEATS, 0) for n in range(num_parts // 100)]
    for part in parts:
        (staged / part.name).write_table(
            pa.table({"digest": [rng.bytes(16) for _ in range(part.num_rows)]})
        )
    return lambda: len(duplicates.repeats(staged, parts))


SUBJECTS = {
    "places": places,
    "units": units,
    "in order": in_order,
    "shares": shares,
    "listing": listing,
    "sizes": sizes,
    "repeats": repeats,
    "data set": data_set,
}


def one(name: str, num_parts: int, folder: str | None) -> dict[str, Any]:
    """Measure one subject in this process."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        work = SUBJECTS[name](Path(scratch), num_parts)
        before, start = peak_mb(), time.process_time()
        work()
        seconds = time.process_time() - start
        return {"cpu_seconds": round(seconds, 2), "mb": peak_mb(), "mb_before": before}


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def measured(subject: tuple[str, int], given: argparse.Namespace) -> dict[str, Any]:
    name, num_parts = subject
    command = [sys.executable, __file__, "--one", name, "--parts", str(num_parts)]
    command += ["--folder", given.folder] if given.folder else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {"subject": name, "parts": num_parts, **json.loads(done.stdout)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--folder", help="where files are written for a while")
    parser.add_argument("--one", choices=SUBJECTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given.parts[0], given.folder)))
        return
    subjects = [(name, num_parts) for name in SUBJECTS for num_parts in given.parts]
    record(given, "many-parts.json", measured, subjects)


if __name__ == "__main__":
    main()
