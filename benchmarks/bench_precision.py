"""What the precision of scoring does to the result: losses, clusters, selected subsets.

    python benchmarks/bench_precision.py runs/math-mix-cpu [--processes 2] [--parts 2]

Scores the pool of a run, finished in float32, again in TF32 and in bfloat16, clusters and ranks
with each as the run did, and compares with float32: adjusted Rand index of the clusters (inside
strata, weighted by their rows) and the share of the subset that is the same, at several budgets.
Beside it stands what another seed changes in float32: another start of k-means, and other random
choices from clusters.

On a processor without such units their products are emulated: numbers are rounded to TF32 or
bfloat16 beforehand, multiplied and summed in float32, and the result is rounded again where the
hardware would; everything else is computed in the type itself.
"""

import argparse
import json
import multiprocessing
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from bench_scoring import record
from sklearn.metrics import adjusted_rand_score
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import Parts
from s2l_ray.config.load import from_tree
from s2l_ray.config.sections import TrajectoriesConfig
from s2l_ray.pipeline import run as pipeline
from s2l_ray.storage.location import Location
from s2l_ray.trajectories.part_scorer import Checkpoint, PartScorer

BUDGETS = (0.01, 0.05, 0.11, 0.3)
PRODUCTS = ("linear", "matmul", "mm", "addmm", "bmm", "baddbmm")
ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
TYPES = {"tf32": "fp32", "bf16": "bf16"}
"""Of the weights, by precision."""


def to_tf32(value: Any) -> Any:
    """A float32 number with the nearest 10-bit mantissa, ties away from zero."""
    if not (isinstance(value, torch.Tensor) and value.dtype == torch.float32):
        return value
    return ((value.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def from_bf16(value: Any) -> Any:
    is_bf16 = isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
    return value.float() if is_bf16 else value


def to_bf16(value: Any) -> Any:
    is_fp32 = isinstance(value, torch.Tensor) and value.dtype == torch.float32
    return value.bfloat16() if is_fp32 else value


class Emulated(TorchDispatchMode):
    """Products as units of TF32 or bfloat16 compute them."""

    def __init__(self, precision: str) -> None:
        super().__init__()
        self.precision = precision

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, dict(kwargs or {})
        if name not in (*PRODUCTS, ATTENTION):
            return func(*args, **kwargs)
        if self.precision == "tf32":
            return func(*tree_map(to_tf32, args), **kwargs)
        if not any(getattr(value, "dtype", None) == torch.bfloat16 for value in args):
            return func(*args, **kwargs)
        out = kwargs.pop("out", None)
        overload = func.overloadpacket.default
        found = tree_map(to_bf16, overload(*tree_map(from_bf16, args), **kwargs))
        return found if out is None else out.copy_(found)


def score(run: str, folder: str, precision: str, shares: list[int]) -> None:
    """The parts with these numbers, at every checkpoint, in one process of one thread."""
    place = Location.of(run)
    manifest = StageDir(place / "reference", "reference", {}).manifest()
    assert manifest is not None
    names = zip(manifest.summary["steps"], manifest.summary["names"], strict=True)
    checkpoints = [Checkpoint(step, place / "reference" / name) for step, name in names]
    settings = TrajectoriesConfig(precision=TYPES[precision], tokens_per_batch=2048)
    prepared = Parts(place / "prepared")
    scorer = PartScorer(prepared, checkpoints, settings, Location.of(folder), gpus=0)
    with Emulated(precision):
        for part in shares:
            scorer({"part": part, "group": list(range(len(checkpoints)))})


def scored(run: str, folder: Path, precision: str, processes: int, num_parts: int) -> np.ndarray:
    """Losses of the first parts, (N, T), which are written to `folder`."""
    spawn = multiprocessing.get_context("spawn")
    workers = [
        spawn.Process(
            target=score,
            args=(run, str(folder), precision, list(range(first, num_parts, processes))),
        )
        for first in range(processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return losses_in(folder, num_parts)


def copied(run: str, folder: Path, num_parts: int) -> np.ndarray:
    """Those that the run has written, which must be of float32."""
    place = Location.of(run) / "trajectories"
    manifest = StageDir(place, "trajectories", {}).manifest()
    assert manifest is not None and manifest.summary["precision"] == "fp32"
    folder.mkdir()
    for file in Parts(place).files()[:num_parts]:
        shutil.copy(file.uri, folder)
    return losses_in(folder, num_parts)


def losses_in(folder: Path, num_parts: int) -> np.ndarray:
    tables = list(Parts(Location.of(folder)).tables(["loss_nats"]))
    assert len(tables) == num_parts, "a process failed, or the run has fewer parts"
    return np.concatenate([np.stack(table["loss_nats"].to_numpy()) for table in tables])


def result(run: str, losses: Path, folder: Path, seed: int) -> dict[str, np.ndarray]:
    """Stratum, cluster and rank of every example, in the order of their ids."""
    known = json.loads((Path(run) / "config.json").read_text())
    selection = {**known["selection"], "baselines": [], "budget": 1}
    tree = {
        "run_dir": str(folder),
        "seed": seed,
        "trajectories": {"path": f"{losses}/part-*.parquet"},
        "clusters": known["clusters"],
        "selection": {key: value for key, value in selection.items() if value is not None},
    }
    pipeline.run(from_tree(tree, "precision"), until="selection")
    table = pq.read_table(folder / "selection" / "ranking.parquet").sort_by("example_id")
    return {name: table[name].to_numpy() for name in ("stratum", "cluster", "rank")}


def rand_index(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Adjusted for chance, inside each stratum; the mean over rows."""
    strata, sizes = np.unique(one["stratum"].astype(str), return_counts=True)
    indices = [
        adjusted_rand_score(one["cluster"][inside], other["cluster"][inside])
        for inside in (one["stratum"] == name for name in strata)
    ]
    return float(np.average(indices, weights=sizes))


def compared(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, float]:
    found = {"rand_index": rand_index(one, other)}
    for budget in BUDGETS:
        size = int(budget * len(one["rank"]))
        both = (one["rank"] < size) & (other["rank"] < size)
        found[f"same_at_{budget}"] = float(both.sum() / size)
    return found


def measured(run: str, given: argparse.Namespace) -> dict[str, Any]:
    seed = json.loads((Path(run) / "config.json").read_text())["seed"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        losses = {"fp32": copied(run, folder / "fp32", given.parts)} | {
            precision: scored(run, folder / precision, precision, given.processes, given.parts)
            for precision in ("tf32", "bf16")
        }
        exact = result(run, folder / "fp32", folder / "exact", seed)
        seeds = result(run, folder / "fp32", folder / "seed", seed + 1)
        found: dict[str, Any] = {"rows": len(exact["rank"]), "seed": compared(exact, seeds)}
        for precision in ("tf32", "bf16"):
            difference_NT = np.abs(losses[precision] - losses["fp32"])
            mine = result(run, folder / precision, folder / f"{precision}-run", seed)
            found[precision] = {
                "mean_difference_nats": float(difference_NT.mean()),
                "largest_difference_nats": float(difference_NT.max()),
                **compared(exact, mine),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--parts", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    record(given, "precision.json", measured, [given.run])


if __name__ == "__main__":
    main()
