"""K-means against scikit-learn and faiss: seconds and inertia on the same rows.

    python benchmarks/bench_kmeans.py [--rows 1000000] [--checkpoints 12] [--clusters 100]
        [--repeats 5] [--peers sklearn minibatch-1024 minibatch-8192 faiss faiss-20]
        [--trajectories 'runs/math-mix-cpu/trajectories/part-*.parquet']

Rows are trajectories of a run, or synthetic ones that look like them: decays of different speed to
different plateaus, some that never fall, noise, near-duplicates and outliers. All take turns, each
repeat with a seed of its own; medians of seconds and means of inertia count. One process, as many
threads for everybody. Ours without Ray: `bench_clusters.py` has it.
"""

import argparse
import glob
import statistics
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
from bench_scoring import record
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits

from s2l_ray.maths import fitting, kmeans

ACCURATE = 3e-5
OURS = ("ours", "ours-accurate")


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
        return fitting.fit_in_memory(
            loss_NT, num_clusters, seed=seed, num_threads=threads, **settings
        )[0]

    def of_faiss(seed: int, **settings: Any) -> np.ndarray:
        model = faiss.Kmeans(loss_NT.shape[1], num_clusters, seed=seed, **settings)
        model.train(loss_NT)
        model.index.search(loss_NT, 1)
        return model.centroids

    def minibatch(seed: int, batch_size: int) -> np.ndarray:
        model = MiniBatchKMeans(num_clusters, batch_size=batch_size, n_init=1, random_state=seed)
        return model.fit(loss_NT).cluster_centers_

    return {
        "ours": ours,
        "ours-accurate": lambda seed: ours(seed, tolerance=ACCURATE, max_sweeps=100),
        "faiss": of_faiss,
        "faiss-20": lambda seed: of_faiss(seed, niter=20, max_points_per_centroid=len(loss_NT)),
        "minibatch-1024": lambda seed: minibatch(seed, 1024),
        "minibatch-8192": lambda seed: minibatch(seed, 8192),
        "sklearn": lambda seed: (
            KMeans(num_clusters, n_init=1, random_state=seed).fit(loss_NT).cluster_centers_
        ),
    }


def measured(_: Any, given: argparse.Namespace) -> dict[str, Any]:
    if given.trajectories:
        loss_NT = of_run(given.trajectories)
    else:
        loss_NT = synthetic(given.rows, given.checkpoints)
    fits = methods(loss_NT, given.clusters, given.threads)
    fitting.fit_in_memory(loss_NT[:1_000], 10, seed=0)  # compiles
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(given.repeats):
        for name in (*OURS, *given.peers):
            started = time.perf_counter()
            centroid_KT = fits[name](seed)
            seconds = time.perf_counter() - started
            inertia = kmeans.summarise(loss_NT, centroid_KT).inertia
            kept = found.setdefault(name, {"seconds": [], "inertia": []})
            kept["seconds"].append(seconds)
            kept["inertia"].append(inertia)
            print(f"{name:<16}{seconds:8.2f} s{inertia:14,.1f}", flush=True)
    return {"rows": len(loss_NT), **{name: _summed_up(kept, found) for name, kept in found.items()}}


def _summed_up(
    kept: dict[str, list[float]], found: dict[str, dict[str, list[float]]]
) -> dict[str, Any]:
    """Median seconds, and the mean inertia beside scikit-learn's where that was measured."""
    mean = statistics.mean(kept["inertia"])
    theirs = found.get("sklearn")
    above = {"above_sklearn": mean / statistics.mean(theirs["inertia"]) - 1} if theirs else {}
    return {"seconds": statistics.median(kept["seconds"]), "inertia": mean, **above}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--checkpoints", type=int, default=12)
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trajectories", help="a glob of parquet files")
    peers = ["sklearn", "minibatch-1024", "minibatch-8192", "faiss", "faiss-20"]
    parser.add_argument("--peers", nargs="*", default=peers, choices=peers)
    given = parser.parse_args()
    faiss.omp_set_num_threads(given.threads)
    pool = "trajectories" if given.trajectories else given.rows
    name = f"kmeans-{pool}x{given.checkpoints}-{given.clusters}.json"
    with threadpool_limits(given.threads):
        record(given, name, measured, ["k-means"])


if __name__ == "__main__":
    main()
