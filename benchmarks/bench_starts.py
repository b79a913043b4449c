"""Where a small run spends its time: seconds of each step, CPU seconds of each kind of process.

    python benchmarks/bench_starts.py [--until selection] [--repeats 3]

160 generated rows in three strata, a reference of two layers that is trained for 60 steps by one
worker and saved four times, and, with a later `--until`, a target of the same size trained by two
workers under ZeRO 2. Nearly all of it is starts. Steps are those of logs/events.jsonl, with the
seconds since the command was given. CPU seconds, user and system, are looked at ten times a
second for every process below the command, so that a process loses a tenth at most; kinds are
the titles that Ray gives its processes. Medians count; the last run's processes are listed. At the
end, CPU seconds of importing what scores, with the garbage collector and without.
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from bench_scoring import HERE, machine

from s2l_ray.stages import NAMES

NUM_ROWS = {"add": 90, "copy": 45, "shout": 25}
SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
SHAPE |= {"model_type": "gpt_neox", "num_attention_heads": 2, "max_position_embeddings": 128}
TOKENIZER = HERE.parent / "configs" / "tokenizers" / "math-4k"
SECONDS_PER_LOOK = 0.1
SCRIPTS = ("default_worker.py", "log_monitor.py", "monitor.py", "agent")
"""What the commands of Ray's own processes hold."""
UNTITLED = ("others", "default_worker.py", "IDLE")


def rows(first: int = 0) -> list[dict[str, str]]:
    texts = {
        "add": lambda i: (f"add {i} and 1", f"The answer is {i + 1}."),
        "copy": lambda i: (f"say w{i}", f"w{i}"),
        "shout": lambda i: (f"shout b{i}", f"B{i}"),
    }
    found = []
    for source, number in NUM_ROWS.items():
        for i in range(first, first + number):
            prompt, response = texts[source](i)
            found.append({"instruction": prompt, "output": response, "source": source})
    return found


def write_inputs(folder: Path) -> Path:
    """Write the pool, a held-out set and the configuration; return the file of the last."""
    for name, items in (("train", rows()), ("held", rows(first=100)[80:100])):
        text = "".join(json.dumps(item) + "\n" for item in items)
        (folder / f"{name}.jsonl").write_text(text)
    model = {"architecture": SHAPE, "tokenizer": str(TOKENIZER)}
    training = {"model": model, "max_steps": 60, "batch_size": 16, "precision": "fp32"}
    tree = {
        "run_dir": str(folder / "run"),
        "data": {
            "train": [str(folder / "train.jsonl")],
            "eval": {"held": str(folder / "held.jsonl")},
            "max_tokens": 128,
        },
        "reference": {**training, "checkpoints": 4},
        "trajectories": {"precision": "fp32"},
        "clusters": {"num_clusters": 3},
        "selection": {"budget": 0.25},
        "target": {**training, "workers": 2, "zero_stage": 2},
        "evaluation": {"sets": ["held"], "max_new_tokens": 8, "precision": "fp32"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    return folder / "run.yaml"


@dataclass
class Seen:
    """A process: its kind, its CPU seconds, and when it was there, in seconds since the start."""

    kind: str
    cpu_seconds: float
    first: float
    last: float


def kind_of(command: str) -> str:
    """Name what a process does by its title, or by its command where it has none."""
    if found := re.match(r"ray::(\w+)", command):
        return found[1].lstrip("_")
    program = Path(command.partition(" ")[0]).name
    if program in ("gcs_server", "raylet"):
        return program
    return next((name for name in SCRIPTS if name in command), "others")


class Watch:
    """Looks at all processes below one, through /proc."""

    def __init__(self, root: int) -> None:
        self._root, self._started = root, time.monotonic()
        self.seen: dict[tuple[int, int], Seen] = {}

    def keep(self, stop: threading.Event) -> None:
        while not stop.wait(SECONDS_PER_LOOK):
            found = {}
            for folder in Path("/proc").iterdir():
                if folder.name.isdecimal():
                    with contextlib.suppress(OSError):
                        text = (folder / "stat").read_text()
                        found[int(folder.name)] = text.rpartition(")")[2].split()
            for pid, fields in found.items():
                if self._is_below(pid, found):
                    with contextlib.suppress(OSError):
                        self._look(pid, fields)

    def _is_below(self, pid: int, found: dict[int, list[str]]) -> bool:
        while pid in found and pid != self._root:
            pid = int(found[pid][1])
        return pid == self._root

    def _look(self, pid: int, fields: list[str]) -> None:
        now, started = time.monotonic() - self._started, int(fields[19])
        cpu_seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        kind = "s2l run" if pid == self._root else "others"
        seen = self.seen.setdefault((pid, started), Seen(kind, 0.0, now, now))
        seen.cpu_seconds, seen.last = cpu_seconds, now
        if seen.kind in UNTITLED:  # an actor keeps its title when it has ended
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
            seen.kind = kind_of(command.decode())


def run_once(until: str) -> dict[str, Any]:
    """Run in a new folder; return seconds in all, by step, and every process."""
    with tempfile.TemporaryDirectory() as name:
        config = write_inputs(Path(name))
        command = [sys.executable, "-m", "s2l_ray", "run", str(config), "--until", until]
        began, stop = time.time(), threading.Event()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as program:
            watch = Watch(program.pid)
            thread = threading.Thread(target=watch.keep, args=(stop,), daemon=True)
            thread.start()
            status = program.wait()
            seconds = time.time() - began
            stop.set()
            thread.join()
        if status:
            sys.exit(f"exit code {status}")
        events = (Path(name) / "run" / "logs" / "events.jsonl").read_text().splitlines()
    return {
        "seconds": seconds,
        "steps": steps_of([json.loads(line) for line in events], began),
        "processes": sorted(watch.seen.values(), key=lambda seen: seen.first),
    }


def steps_of(events: list[dict[str, Any]], began: float) -> dict[str, tuple[float, float]]:
    """Return when each step began and ended, in seconds since `began`."""
    found, begun = {}, {}
    for event in events:
        at = datetime.fromisoformat(event["time"]).timestamp() - began
        if event["event"] == "begin":
            begun[event["stage"]] = at
        elif event["event"] == "end":
            found[event["stage"]] = (begun[event["stage"]], at)
    return found


def by_kind(processes: list[Seen]) -> dict[str, tuple[int, float]]:
    """Return the number of processes of each kind, and their CPU seconds."""
    found: dict[str, tuple[int, float]] = {}
    for seen in processes:
        count, cpu = found.get(seen.kind, (0, 0.0))
        found[seen.kind] = (count + 1, cpu + seen.cpu_seconds)
    return found


def import_seconds(before: str) -> float:
    """Return the CPU seconds of importing what scores, in a process of its own: median of three."""
    text = (
        f"import gc, time; {before}; import s2l_ray.trajectories.stage; print(time.process_time())"
    )
    command = [sys.executable, "-c", text]
    return statistics.median(float(subprocess.check_output(command)) for _ in range(3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--until", default="selection", choices=NAMES)
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    found = [run_once(given.until) for _ in range(given.repeats)]
    last = found[-1]
    print(f"{'step':<34}{'from':>8}{'to':>8}  seconds")
    for step, (begin, end) in last["steps"].items():
        print(f"{step:<34}{begin:8.1f}{end:8.1f}  {end - begin:7.1f}")
    print(f"\n{'process':<34}{'from':>8}{'to':>8}  CPU seconds")
    for seen in last["processes"]:
        print(f"{seen.kind:<34}{seen.first:8.1f}{seen.last:8.1f}  {seen.cpu_seconds:7.1f}")
    print(f"\n{'kind':<34}   number  CPU seconds")
    kinds = by_kind(last["processes"])
    for kind, (count, cpu) in sorted(kinds.items(), key=lambda item: -item[1][1]):
        print(f"{kind:<34}{count:9}  {cpu:7.1f}")
    collected, uncollected = import_seconds("gc.enable()"), import_seconds("gc.disable()")
    print(f"\nimports: {collected:.1f} CPU seconds, without a collector {uncollected:.1f}")
    totals = [sum(seen.cpu_seconds for seen in run["processes"]) for run in found]
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine("cpu"),
        "until": given.until,
        "seconds": [round(run["seconds"], 1) for run in found],
        "cpu_seconds": [round(total, 1) for total in totals],
        "processes": [len(run["processes"]) for run in found],
        "imports": [round(collected, 1), round(uncollected, 1)],
        "kinds": {kind: [count, round(cpu, 1)] for kind, (count, cpu) in kinds.items()},
    }
    medians = [statistics.median(result[key]) for key in ("seconds", "cpu_seconds", "processes")]
    print("\nmedians: {:.1f} s, {:.1f} CPU seconds, {:.0f} processes".format(*medians))
    (HERE / "results" / f"starts-{given.until}.json").write_text(
        json.dumps(result, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
