"""K-means against scikit-learn and faiss: seconds and inertia on the same rows.

    python benchmarks/bench_kmeans.py [--rows 1000000] [--checkpoints 12] [--clusters 100]
        [--repeats 5] [--peers sklearn minibatch-1024 minibatch-8192 faiss faiss-20]
        [--trajectories 'runs/math-mix-cpu/trajectories/part-*.parquet']
    python benchmarks/bench_kmeans.py --all [--trajectories ...]

Rows are trajectories of a run, or synthetic ones that look like them: decays of different speed to
different plateaus, some that never fall, noise, near-duplicates and outliers. All take turns, each
repeat with a seed of its own; medians of seconds and means of inertia count. One process, as many
threads for everybody. Ours without Ray: `bench_clusters.py` has it.

`--all` is a table of sizes, some a quarter of an hour on two cores, with the trajectories as one
more row where they are given. Where peers are not named, scikit-learn's KMeans runs to convergence
up to 1e8 rows x clusters, for 20 iterations up to 1e9, and not at all beyond.
"""

import argparse
import glob
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import faiss
import numpy as np
import pyarrow.parquet as pq
from bench_scoring import record
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits

from s2l_ray.clusters import kmeans
from s2l_ray.clusters import minibatch as fitting
from s2l_ray.config.clusters import ClustersConfig

ACCURATE = 3e-5
OURS = ("ours", "ours-accurate")
PEERS = ("sklearn", "sklearn-20", "minibatch-1024", "minibatch-8192", "faiss", "faiss-20")
LARGEST = {"sklearn": 10**8, "sklearn-20": 10**9}
"""Rows x clusters at which a peer still takes minutes."""


class Size(NamedTuple):
    """What is measured; `trajectories` is a glob, or empty for synthetic rows."""

    rows: int
    checkpoints: int
    clusters: int
    repeats: int
    trajectories: str = ""


ALL = (
    Size(100_000, 12, 100, 5),
    Size(1_000_000, 12, 100, 5),
    Size(10_000_000, 12, 100, 2),
    Size(1_000_000, 64, 100, 3),
    Size(100_000, 12, 1_000, 3),
    Size(1_000_000, 12, 1_000, 2),
    Size(10_000_000, 12, 1_000, 1),
    Size(1_000_000, 64, 1_000, 1),
)


def synthetic(num_rows: int, num_checkpoints: int, seed: int = 0) -> np.ndarray:
    """Losses that look like a reference's, float32 (N, T)."""
    rng = np.random.default_rng(seed)
    plateau_N1 = rng.gamma(2.0, 0.5, (num_rows, 1))
    height_N1 = rng.gamma(2.0, 0.4, (num_rows, 1))
    # A tenth of the rows is never learned.
    height_N1[rng.random(num_rows) < 0.1] = 0
    speed_N1 = 3 * np.exp(rng.normal(0, 1, (num_rows, 1)))
    done_T = np.linspace(0, 1, num_checkpoints)
    loss_NT = plateau_N1 + height_N1 * np.exp(-speed_N1 * done_T)
    loss_NT += rng.normal(0, 0.05, loss_NT.shape)
    duplicate_N = rng.random(num_rows) < 0.02
    loss_NT[duplicate_N] = loss_NT[0] + rng.normal(0, 1e-3, (duplicate_N.sum(), num_checkpoints))
    loss_NT[rng.random(num_rows) < 1e-4] *= 8
    return np.abs(loss_NT).astype(np.float32)


def of_run(pattern: str) -> np.ndarray:
    columns = [pq.read_table(file)["loss_nats"].combine_chunks() for file in glob.glob(pattern)]
    return np.concatenate([c.flatten().to_numpy().reshape(len(c), -1) for c in columns])


def methods(
    loss_NT: np.ndarray, num_clusters: int, threads: int
) -> dict[str, Callable[[int], Any]]:
    """Each takes a seed and returns its centroids."""

    def ours(seed: int, **settings: Any) -> np.ndarray:
        config = ClustersConfig(num_clusters=num_clusters, **settings)
        return fitting.fit_in_memory(
            loss_NT,
            num_clusters,
            seed=seed,
            rows_per_sample=config.sample_size,
            limits=fitting.Limits(config.lloyd_sweeps, config.tolerance),
            num_threads=threads,
        )[0]

    def of_faiss(seed: int, **settings: Any) -> np.ndarray:
        model = faiss.Kmeans(loss_NT.shape[1], num_clusters, seed=seed, **settings)
        model.train(loss_NT)
        model.index.search(loss_NT, 1)
        return model.centroids

    def of_sklearn(seed: int, **settings: Any) -> np.ndarray:
        model = KMeans(num_clusters, n_init=1, random_state=seed, **settings)
        return model.fit(loss_NT).cluster_centers_

    def minibatch(seed: int, batch_size: int) -> np.ndarray:
        model = MiniBatchKMeans(num_clusters, batch_size=batch_size, n_init=1, random_state=seed)
        return model.fit(loss_NT).cluster_centers_

    return {
        "ours": ours,
        "ours-accurate": lambda seed: ours(seed, tolerance=ACCURATE, lloyd_sweeps=100),
        "faiss": of_faiss,
        "faiss-20": lambda seed: of_faiss(seed, niter=20, max_points_per_centroid=len(loss_NT)),
        "minibatch-1024": lambda seed: minibatch(seed, 1024),
        "minibatch-8192": lambda seed: minibatch(seed, 8192),
        "sklearn": of_sklearn,
        "sklearn-20": lambda seed: of_sklearn(seed, max_iter=20),
    }


def measured(size: Size, given: argparse.Namespace) -> dict[str, Any]:
    if size.trajectories:
        loss_NT = of_run(size.trajectories)
        size = size._replace(rows=len(loss_NT), checkpoints=loss_NT.shape[1])
    else:
        loss_NT = synthetic(size.rows, size.checkpoints)
    peers = given.peers
    if peers is None:
        peers = _affordable(size)
    fits = methods(loss_NT, size.clusters, given.threads)
    fitting.fit_in_memory(loss_NT[:1_000], 10, seed=0, rows_per_sample=1_000)  # compiles
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(size.repeats):
        for name in (*OURS, *peers):
            started = time.perf_counter()
            centroid_KT = fits[name](seed)
            seconds = time.perf_counter() - started
            inertia = kmeans.summarise(loss_NT, centroid_KT).inertia
            kept = found.setdefault(name, {"seconds": [], "inertia": []})
            kept["seconds"].append(seconds)
            kept["inertia"].append(inertia)
            print(f"{name:<16}{seconds:8.2f} s{inertia:14,.1f}", flush=True)
    return {**size._asdict(), **{name: _summed_up(kept, found) for name, kept in found.items()}}


def _affordable(size: Size) -> list[str]:
    work = size.rows * size.clusters
    peers = [name for name in PEERS if work <= LARGEST.get(name, work)]
    return [name for name in peers if name != "sklearn-20" or "sklearn" not in peers]


def _summed_up(
    kept: dict[str, list[float]], found: dict[str, dict[str, list[float]]]
) -> dict[str, Any]:
    """Median seconds, and the mean inertia beside scikit-learn's where that was measured."""
    mean = statistics.mean(kept["inertia"])
    above = {
        f"above_{name}": mean / statistics.mean(found[name]["inertia"]) - 1
        for name in ("sklearn", "sklearn-20")
        if name in found
    }
    return {"seconds": statistics.median(kept["seconds"]), "inertia": mean, **above}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="a table of sizes")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--checkpoints", type=int, default=12)
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trajectories", default="", help="a glob of parquet files")
    parser.add_argument("--peers", nargs="*", choices=PEERS)
    given = parser.parse_args()
    faiss.omp_set_num_threads(given.threads)
    size = Size(given.rows, given.checkpoints, given.clusters, given.repeats, given.trajectories)
    sizes = [size]
    name = f"kmeans-{given.rows}x{given.checkpoints}-{given.clusters}.json"
    if given.trajectories:
        name = f"kmeans-trajectories-{given.clusters}.json"
    if given.all:
        sizes, name = [*ALL, *([size] if given.trajectories else [])], "kmeans-all.json"
    with threadpool_limits(given.threads):
        record(given, name, measured, sizes)


if __name__ == "__main__":
    main()
