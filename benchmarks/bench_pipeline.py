"""Seconds, tokens per second and peak memory of every stage of one run.

    python benchmarks/bench_pipeline.py configs/demo.yaml --set run_dir=/tmp/bench

runs the configuration as a user would, in a directory that must not exist yet, and prints one
table; the same numbers go to benchmarks/results/pipeline-<configuration>.json. Seconds are those of
the manifests: starting workers included, starting Ray not. Memory is sampled twice a second over
the program and all processes below it: the largest single process, and the sum of all of them with
shared pages counted once (PSS). A joined cluster's processes are not below it: run it locally.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from s2l_ray.config import sections
from s2l_ray.config.load import load
from s2l_ray.pipeline import steps
from s2l_ray.storage.location import Location

RESULTS = Path(__file__).parent / "results"
TOKENS = {
    "prepare": "tokens",
    "reference": "num_tokens",
    "trajectories": "tokens",
    "target": "num_tokens",
    "evaluation": "tokens",
}
"""Where each stage's summary says how many tokens it processed."""


@dataclass
class Memory:
    """Peaks in bytes so far."""

    largest_process: int = 0
    all_processes: int = 0

    def sample(self, root: psutil.Process) -> None:
        resident, shared_once = 0, 0
        for process in [root, *root.children(recursive=True)]:
            try:
                memory = process.memory_full_info()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            resident = max(resident, memory.rss)
            shared_once += memory.pss
        self.largest_process = max(self.largest_process, resident)
        self.all_processes = max(self.all_processes, shared_once)


def watched(command: list[str], memory: Memory | None = None) -> tuple[float, Memory]:
    """Wall-clock seconds and peak memory of `command`, which must succeed."""
    memory, stop = memory or Memory(), threading.Event()
    started = time.monotonic()
    with subprocess.Popen(command) as process:
        root = psutil.Process(process.pid)

        def watch() -> None:
            while not stop.wait(0.5):
                memory.sample(root)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        status = process.wait()
        stop.set()
        thread.join()
    if status:
        sys.exit(f"{' '.join(command)} failed with exit code {status}")
    return time.monotonic() - started, memory


def rows(loaded: sections.RunConfig) -> list[dict[str, Any]]:
    """One line per step of the finished run."""
    found = []
    for step in steps.plan(loaded, Location.of(loaded.run_dir)).steps:
        manifest = step.out.manifest()
        assert manifest is not None, f"{step.label} is not finished"
        tokens = manifest.summary.get(TOKENS.get(step.stage, ""))
        found.append({"step": step.label, "seconds": manifest.seconds, "tokens": tokens})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()
    loaded = load(arguments.config, arguments.overrides)
    if Path(loaded.run_dir).exists():
        sys.exit(f"{loaded.run_dir} exists: a finished stage would take no time. Give a new one.")
    overrides = [part for override in arguments.overrides for part in ("--set", override)]
    command = [sys.executable, "-m", "s2l_ray", "run", arguments.config, *overrides]
    seconds, memory = watched(command)
    result = {
        "command": " ".join(["python", *command[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "seconds": round(seconds, 1),
        "largest_process_mb": memory.largest_process >> 20,
        "all_processes_mb": memory.all_processes >> 20,
        "steps": rows(loaded),
    }
    RESULTS.mkdir(exist_ok=True)
    place = RESULTS / f"pipeline-{Path(arguments.config).stem}.json"
    place.write_text(json.dumps(result, indent=1) + "\n")
    for row in result["steps"]:
        rate = f"{row['tokens'] / row['seconds']:>12,.0f} tokens/s" if row["tokens"] else ""
        print(f"{row['step']:<36}{row['seconds']:>9.1f} s{rate}")
    print(
        f"{'all':<36}{seconds:>9.1f} s   largest process {result['largest_process_mb']:,} MB, "
        f"all together {result['all_processes_mb']:,} MB\n{place}"
    )


if __name__ == "__main__":
    main()
