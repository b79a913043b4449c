"""Training the reference and scoring its checkpoints, one after the other and at once.

    python benchmarks/bench_overlap.py configs/demo.yaml [--repeats 3]

Runs the stages up to trajectories, of a configuration whose inputs are there, with one worker for
each of the two stages: apart (the reference alone first, so that nothing is scored while it trains)
and at once. They alternate, and medians count. Seconds are those of the manifests, so both have
their starts of workers in them, and not that of Ray. The losses must be the same bytes.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_scoring import record

from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.config.load import load
from s2l_ray.pipeline import run as pipeline
from s2l_ray.storage.location import Location

STAGES = ("reference", "trajectories")


def run(name: str, folder: Path, *untils: str) -> tuple[list[float], bytes]:
    """Seconds of both stages, and the losses."""
    given = {"run_dir": str(folder), "reference.workers": 1, "trajectories.workers": 1}
    loaded = load(Path(name), [f"{key}={value}" for key, value in given.items()])
    for until in untils:
        pipeline.run(loaded, until=until)
    manifests = [StageDir(Location.of(folder) / s, s, {}).manifest() for s in STAGES]
    parts = sorted((folder / "trajectories").glob("part-*.parquet"))
    losses = b"".join(path.read_bytes() for path in parts)
    return [manifest.seconds for manifest in manifests if manifest], losses


def measured(name: str, given: argparse.Namespace) -> dict[str, Any]:
    apart, at_once = [], []
    for _ in range(given.repeats):
        with tempfile.TemporaryDirectory() as folder:
            seconds, expected = run(name, Path(folder) / "apart", "reference", "trajectories")
            apart.append(seconds)
            seconds, losses = run(name, Path(folder) / "at-once", "trajectories")
            at_once.append(seconds)
        if losses != expected:
            sys.exit("the losses differ")
    kinds = {"apart": apart, "at_once": at_once}
    medians = {
        f"{kind}_{stage}_seconds": statistics.median(times)
        for kind, found in kinds.items()
        for stage, times in zip((*STAGES, "both"), zip(*with_sums(found), strict=True), strict=True)
    }
    shares = [sum(one) / sum(other) for one, other in zip(at_once, apart, strict=True)]
    return {"configuration": Path(name).stem, **medians, "at_once_share": statistics.median(shares)}


def with_sums(found: list[list[float]]) -> list[list[float]]:
    return [[*times, sum(times)] for times in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configuration")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    record(given, "overlap-cpu.json", measured, [given.configuration])


if __name__ == "__main__":
    main()
