"""What three rules say of the number of clusters, where it is known and where there is none.

    python benchmarks/bench_num_clusters.py [--rows 25600] [--checkpoints 12] [--repeats 3]
        [--known 4 16 64] [--trajectories 'runs/math-mix-cpu/trajectories/part-*.parquet']

gain: `clusters.num_clusters: auto`. silhouette: the best one. stability: the largest number of
which centroids from the two halves of the rows agree to 0.9 (adjusted Rand index), or the best of
all. All try the same ladder on as many rows. `known` are that many round clusters, the nearest of
them `--apart` standard deviations apart; `grouped` are the largest number of these, in four groups;
`decays` are bench_kmeans.py's; the others are noise without structure, `student` with three degrees
of freedom. Seconds are of `gain`, as a multiple of a start of k-means with 100 clusters on the same
rows.
"""

import argparse
import time
from typing import Any

import numpy as np
from bench_kmeans import of_run, synthetic
from bench_scoring import record

from s2l_ray.clusters import kmeans, num_clusters, quality
from s2l_ray.config.clusters import MOST_CLUSTERS

AGREEMENT = 0.9
ROWS_IN_SILHOUETTE = 1_000


def known(rng: np.random.Generator, number: int, given: argparse.Namespace) -> np.ndarray:
    """Rows of round clusters."""
    return _around(rng, rng.gamma(2.0, size=(number, given.checkpoints)), given)


def grouped(rng: np.random.Generator, number: int, given: argparse.Namespace) -> np.ndarray:
    """The same, their centres in four groups that are far apart."""
    centre_KT = 0.1 * rng.gamma(2.0, size=(number, given.checkpoints))
    centre_KT += 10 * rng.gamma(2.0, size=(4, given.checkpoints))[np.arange(number) % 4]
    return _around(rng, centre_KT, given)


def _around(
    rng: np.random.Generator, centre_KT: np.ndarray, given: argparse.Namespace
) -> np.ndarray:
    number = len(centre_KT)
    apart_KK = np.sqrt(((centre_KT[:, None] - centre_KT) ** 2).sum(axis=2))
    deviation = apart_KK[~np.eye(number, dtype=bool)].min() / given.apart
    row_NT = centre_KT[rng.integers(0, number, given.rows)]
    return (row_NT + rng.normal(0, deviation, row_NT.shape)).astype(np.float32)


def pools(seed: int, given: argparse.Namespace) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    found = {f"known-{number}": known(rng, number, given) for number in given.known}
    found[f"grouped-{max(given.known)}"] = grouped(rng, max(given.known), given)
    found["decays"] = synthetic(given.rows, given.checkpoints, seed)
    shape = (given.rows, given.checkpoints)
    noise = {
        "normal": rng.normal(5, 1, shape),
        "uniform": rng.uniform(size=shape),
        "exponential": rng.exponential(size=shape),
        "laplace": rng.laplace(size=shape),
        "student": rng.standard_t(3, shape),
        "lognormal": rng.lognormal(size=shape),
    }
    found |= {name: noise_NT.astype(np.float32) for name, noise_NT in noise.items()}
    if given.trajectories:
        loss_NT = of_run(given.trajectories)
        found["trajectories"] = rng.permutation(loss_NT)[: given.rows]
    return found


def by_agreement(loss_NT: np.ndarray, seed: int) -> dict[str, int]:
    """The numbers that silhouette and stability choose."""
    silhouettes, stabilities = {}, {}
    loss_NT = loss_NT[: num_clusters.ROWS_TRIED]
    for number in num_clusters.ladder(len(loss_NT) // 2, MOST_CLUSTERS)[1:]:
        halves = [
            kmeans.initial_centroids(loss_NT[half::2], number, seed + half) for half in (0, 1)
        ]
        label_N, other_N = (kmeans.nearest(loss_NT, centroid_KT)[0] for centroid_KT in halves)
        stabilities[number] = quality.adjusted_rand_index(label_N, other_N)
        few_S = slice(0, ROWS_IN_SILHOUETTE)
        silhouettes[number] = quality.silhouette(loss_NT[few_S], label_N[few_S])
    stable = [number for number, value in stabilities.items() if value >= AGREEMENT]
    return {
        "silhouette": max(silhouettes, key=lambda number: silhouettes[number]),
        "stability": max(stable, default=max(stabilities, key=lambda number: stabilities[number])),
    }


def chosen(loss_NT: np.ndarray, seed: int) -> tuple[dict[str, int], float]:
    """By rule, the number that it chooses; and how many starts the first one takes."""
    started = time.perf_counter()
    kmeans.initial_centroids(loss_NT, 100, seed)
    start = time.perf_counter() - started
    started = time.perf_counter()
    tried = num_clusters.try_ladder(
        loss_NT, np.ones(len(loss_NT), np.int64), most=MOST_CLUSTERS, seed=seed
    )
    starts = (time.perf_counter() - started) / start
    return {"gain": tried.chosen, **by_agreement(loss_NT, seed)}, starts


def measured(_: Any, given: argparse.Namespace) -> dict[str, Any]:
    chosen(known(np.random.default_rng(0), 4, given)[:500], 0)  # compiles
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(given.repeats):
        for name, loss_NT in pools(seed, given).items():
            numbers, starts = chosen(loss_NT, seed)
            for rule, number in {**numbers, "gain_in_starts": round(starts, 2)}.items():
                found.setdefault(name, {}).setdefault(rule, []).append(number)
            told = ", ".join(f"{rule} {number}" for rule, number in numbers.items())
            print(f"{name:<14}{told:<50}{starts:6.1f} starts", flush=True)
    return {"rows": given.rows, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=25_600)
    parser.add_argument("--checkpoints", type=int, default=12)
    parser.add_argument("--known", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--apart", type=float, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trajectories", help="a glob of parquet files")
    given = parser.parse_args()
    record(given, f"num-clusters-{given.rows}x{given.checkpoints}.json", measured, ["k-means"])


if __name__ == "__main__":
    main()
