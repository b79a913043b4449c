"""Are gradients of examples in one cluster alike, along the training of the target?

    python benchmarks/gradient_distances.py configs/evidence/demo-pool.yaml --out FILE.json

The claim behind S2L (arXiv:2403.07384, theorem 1 and figure 2): examples whose losses take the same
course on a small reference have gradients on the large target that are near each other, at the
beginning and later. The target of the configuration is trained on the whole pool. At even points
of its training, each of some examples gets its own gradient with respect to the last layer, the
last norm and the output layer. The distances between two examples of a cluster are compared with
those between two of different clusters (and of different clusters of one stratum): 1 - cosine, and
the Euclidean distance. The ratio is below 1 where clusters tell gradients apart; the interval is
that of a bootstrap of clusters. The run of the configuration must have clusters.

Shapes: E examples, P weights that a gradient is with respect to.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

import s2l_ray as s2l
from s2l_ray.artifacts.token_tables import rows_of_tokens
from s2l_ray.config.load import load
from s2l_ray.data.declaration import with_absolute_template
from s2l_ray.models.checkpoints import load_model, set_precision
from s2l_ray.storage.location import Location
from s2l_ray.training import loop
from s2l_ray.training.batches import MicroBatch, TrainingPlan
from s2l_ray.training.target import tokenise
from s2l_ray.training.token_parts import TokenParts

RNG = np.random.default_rng(0)
CPU = torch.device("cpu")


def chosen(run: s2l.Run, num_clusters: int, per_cluster: int) -> dict[str, tuple[int, str]]:
    """Return id -> cluster and stratum of equally many examples of random clusters."""
    table = run.clusters().to_pandas(["example_id", "cluster", "stratum"])
    sizes = table["cluster"].value_counts()
    large = RNG.permutation(sizes[sizes >= per_cluster].index.sort_values())[:num_clusters]
    taken = {}
    for cluster in large:
        rows = table[table["cluster"] == cluster].sample(per_cluster, random_state=0)
        for row in rows.itertuples():
            taken[row.example_id] = (row.cluster, row.stratum)
    return taken


def gradients(model, examples: list[MicroBatch]) -> np.ndarray:
    """Return the gradient of each example's mean loss, float32 (E, P), for the last weights."""
    named = dict(model.named_parameters())
    layers = [name.split(".") for name in named]
    last = max(int(part) for parts in layers for part in parts if part.isdigit())
    weights = [
        w for name, w in named.items() if str(last) in name.split(".") or ".layers." not in name
    ]
    weights = [w for w in weights if w is not model.get_input_embeddings().weight]
    rows = []
    for example in examples:
        loss = loop.batch_loss(model, example, device=CPU, autocast=False)
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        rows.append(torch.cat([g.reshape(-1) for g in found if g is not None]).numpy())
    return np.stack(rows)


def ratios(gradient_EP: np.ndarray, cluster_E: np.ndarray, stratum_E: np.ndarray) -> dict:
    """Return mean distances inside and between clusters, and their ratio with its interval."""
    squares_E = np.square(gradient_EP).sum(axis=1)
    inner_EE = gradient_EP @ gradient_EP.T
    euclidean = np.sqrt(np.maximum(squares_E[:, None] + squares_E - 2 * inner_EE, 0))
    cosine = 1 - inner_EE / np.sqrt(np.outer(squares_E, squares_E))
    same = cluster_E[:, None] == cluster_E
    apart = ~np.eye(len(cluster_E), dtype=bool)
    one_stratum = stratum_E[:, None] == stratum_E
    found = {}
    for name, distance_EE in (("cosine", cosine), ("euclidean", euclidean)):
        inside = [
            distance_EE[(cluster_E == c)[:, None] & same & apart].mean()
            for c in np.unique(cluster_E)
        ]
        between = distance_EE[~same].mean()
        draws = RNG.choice(inside, (2_000, len(inside))).mean(axis=1) / between
        found[name] = {
            "inside": float(np.mean(inside)),
            "between": float(between),
            "between, one stratum": float(distance_EE[~same & one_stratum].mean()),
            "ratio": float(np.mean(inside) / between),
            "interval": np.percentile(draws, [2.5, 97.5]).round(4).tolist(),
        }
    return found


def measure(config_path: str, num_clusters: int, per_cluster: int, points: int) -> list[dict]:
    config = load(config_path)
    run = s2l.load(config.run_dir)
    target, data = config.target, with_absolute_template(config.data)
    set_precision("fp32", CPU)
    with tempfile.TemporaryDirectory() as folder:
        file = run.select(len(run.clusters().to_numpy()), "random").write(f"{folder}/pool.jsonl")
        tokenise(Location.of(file), Location.of(f"{folder}/tokens"), data, target.model)
        tokens = Location.of(f"{folder}/tokens")
        parts = TokenParts.of([tokens / name for name in tokens.names()])
        wanted = chosen(run, num_clusters, per_cluster)
        ids, examples = [], []
        for part in parts.files:
            table = part.read_table()
            rows = zip(table["example_id"].to_pylist(), *rows_of_tokens(table), strict=True)
            for name, row, learned in rows:
                if name in wanted:
                    ids.append(name)
                    examples.append(as_batch(row, learned))
        cluster_E, stratum_E = (np.array([wanted[name][k] for name in ids]) for k in (0, 1))
        model = load_model(target.model, seed=config.seed)
        engine = loop.Replica(model, target, device=CPU, dtype=torch.float32)
        plan = TrainingPlan(parts, target, config.seed, target.max_steps)
        due = set(np.linspace(0, target.max_steps, points).round().astype(int).tolist())
        found = []
        for step in range(target.max_steps + 1):
            if step in due:
                measured = ratios(gradients(model, examples), cluster_E, stratum_E)
                found.append({"step": step, "examples": len(ids), **measured})
                print(json.dumps(found[-1]), flush=True)
            if step == 0:
                steps = loop.steps(engine, plan)
            next(steps, None)
    return found


def as_batch(row: np.ndarray, learned: np.ndarray) -> MicroBatch:
    """Return one example whose loss is the mean over its response tokens."""
    places = np.flatnonzero(learned)
    mask = np.zeros(len(row) - 1, bool)
    mask[places - 1] = True
    ids = torch.from_numpy(row[:-1].astype(np.int64))[None]
    target = torch.from_numpy(row[places].astype(np.int64))
    return MicroBatch(ids, torch.from_numpy(mask)[None], target, 1 / len(places))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--clusters", type=int, default=30)
    parser.add_argument("--per-cluster", type=int, default=8)
    parser.add_argument("--points", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = measure(given.config, given.clusters, given.per_cluster, given.points)
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
