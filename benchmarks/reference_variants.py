"""What of the reference matters to the subset: checkpoints, size, seed, or training at all?

    s2l demo --out runs/demo
    python benchmarks/reference_variants.py configs/evidence/demo-pool.yaml \
        --out runs/reference-variants --results benchmarks/results/reference-variants-demo.json

S2L of the configuration, with its number of clusters, on the losses of references that differ from
the configuration's in one thing. Each is one `s2l compare` of S2L alone, over all seeds of the
configuration; its file stays in `--out`. References with fewer checkpoints have losses that are
columns of one reference with 24. Its embeddings, alone and beside the losses, are clustered in the
same way: each block is scaled to a total variance of one.

`--perturbed MODEL` compares the configuration's own reference with losses of perturbed copies of
that model (a local folder, a .gguf file), which is not trained, in bfloat16: over all rows, and
inside strata found in the embeddings of the model.

For every variant: the target's held-out loss (95% interval over seeds and items), its paired
difference to the configuration's own reference with Holm's p-value, and the adjusted Rand index of
the clusters with that reference's and with the sources.

Shapes: N examples, T checkpoints, S seeds, I items.
"""

import argparse
import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from sklearn.metrics import adjusted_rand_score

import s2l_ray as s2l
from s2l_ray.comparison.statistics import crossed_mean, holm

BASE, MOST = "6 checkpoints", "24 checkpoints"
COLUMNS = {
    "3 checkpoints": [7, 15, 23],
    "12 checkpoints": range(1, 24, 2),
    "the first 6 of 24": range(6),
    "the last 6 of 24": range(18, 24),
    "6, spaced like powers of 2": [0, 1, 3, 7, 15, 23],
    "the last alone": [23],
}
"""Which of 24 evenly spaced checkpoints a variant sees."""
TRAINED: dict[str, dict[str, Any]] = {
    BASE: {},
    MOST: {"checkpoints": 24},
    "2 layers x 48": {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2},
    "4 layers x 160, the target's": {
        "hidden_size": 160, "intermediate_size": 640, "num_hidden_layers": 4,
    },
    "another seed, 43": {"seed": 43},
    "another seed, 44": {"seed": 44},
    "twice as many epochs": {"epochs": 4},
}  # fmt: skip
SCALES = (0.03, 0.1, 0.3)
INSIDE = {
    "method": "s2l",
    "label": "inside found strata",
    "stratify": True,
    "clusters": {"strata": "auto", "per_stratum": True, "num_clusters": 6},
}


def folder_name(variant: str) -> str:
    """Return the name of the folder of a variant."""
    return variant.replace(" ", "-").replace(",", "")


def configuration(base: Mapping[str, Any], run_dir: Path, changes: Mapping[str, Any]) -> dict:
    """Return the configuration of S2L alone with a changed reference."""
    config = copy.deepcopy(dict(base))
    config["run_dir"] = str(run_dir)
    config["comparison"] |= {"methods": ["s2l"], "all_data": False}
    config["trajectories"] |= {"error_norms": False, "without_prompt": False, "embeddings": True}
    for key, value in changes.items():
        if key == "seed":
            config["seed"] = value
        elif key in config["reference"]:
            config["reference"][key] = value
        else:
            config["reference"]["model"]["architecture"][key] = value
    return config


def on_losses(base: Mapping[str, Any], run_dir: Path, losses: Path) -> dict:
    """Return the configuration of S2L alone on losses that are there."""
    config = configuration(base, run_dir, {})
    del config["reference"]
    config["trajectories"] = {"path": str(losses)}
    return config


def perturbed(base: Mapping[str, Any], run_dir: Path, model: str, scale: float) -> dict:
    """Return the configuration of S2L alone on losses of perturbed copies of a model."""
    config = with_strata(configuration(base, run_dir, {}))
    config["reference"] = {"model": model, "perturbations": 6, "scale": scale}
    config["trajectories"] |= {"max_response_tokens": 1000, "precision": "bf16"}
    return config


def with_strata(config: dict) -> dict:
    """Return a configuration that compares S2L inside found strata as well."""
    config["comparison"]["methods"] = ["s2l", INSIDE]
    return config


def compared(
    name: str, config: dict, out: Path
) -> tuple[s2l.Run, dict[str, pd.DataFrame], dict[str, float]]:
    """Run the comparison of a configuration; return its run, items and seconds by label."""
    file = out / f"{folder_name(name)}.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    print(f"== {name}", flush=True)
    found = s2l.compare(file)
    items = found.items().to_pandas()
    seconds = found.table().groupby("label")["seconds_selecting"].first().to_dict()
    labels = [m if isinstance(m, str) else m["label"] for m in config["comparison"]["methods"]]
    by_label = {label: items[items["label"] == label] for label in labels}
    return s2l.load(config["run_dir"]), by_label, seconds


def labelled(run: s2l.Run, num_clusters: int) -> pd.DataFrame:
    """Return the cluster of every example, over all rows, by id."""
    table = run.trajectories().to_pandas()
    loss_NT = np.stack(table["loss_nats"].to_numpy())
    labels = s2l.cluster(loss_NT, num_clusters=num_clusters, seed=0, rows_per_cluster=1).labels
    return pd.DataFrame({"cluster": labels}, index=table["example_id"])


def by_seed(items: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return held-out losses (S, I) and the stratum of each item."""
    table = items.pivot_table(index="seed", columns=["stratum", "item"], values="loss_nats")
    return table.to_numpy(), table.columns.get_level_values("stratum").to_numpy()


def embeddings(run_dir: Path, ids: pd.Series) -> np.ndarray:
    """Return the embeddings of a run's examples, float32 (N, H), in the order of `ids`."""
    table = pq.read_table(run_dir / "embeddings").to_pandas().set_index("example_id")
    return np.stack(table["embedding"].loc[ids].to_numpy()).astype(np.float32)


def scaled(feature_ND: np.ndarray) -> np.ndarray:
    """Return centred features whose variances add up to one."""
    centred = feature_ND - feature_ND.mean(axis=0)
    return centred / np.sqrt(centred.var(axis=0).sum())


def nonnegative(feature_ND: np.ndarray) -> np.ndarray:
    """Return features moved above zero, as losses have to be; distances stay."""
    return feature_ND - feature_ND.min(axis=0)


def variants_without_training(base: Mapping[str, Any], out: Path, model: str):
    """Yield the configuration's own reference, and perturbed copies of a model at each scale."""
    yield BASE, with_strata(configuration(base, out / folder_name(BASE), TRAINED[BASE]))
    for scale in SCALES:
        name = f"not trained, perturbed by {scale}"
        yield name, perturbed(base, out / folder_name(name), model, scale)


def variants(base: Mapping[str, Any], out: Path):
    """Yield the name and the configuration of every variant; later ones read losses of earlier."""
    for name in (BASE, MOST):
        yield name, configuration(base, out / folder_name(name), TRAINED[name])
    table = s2l.load(out / folder_name(MOST)).trajectories().to_pandas()
    loss_NT = np.stack(table["loss_nats"].to_numpy()).astype(np.float32)
    embedding_NH = embeddings(out / folder_name(MOST), table["example_id"])
    features = {name: loss_NT[:, list(columns)] for name, columns in COLUMNS.items()}
    features["embeddings alone"] = nonnegative(scaled(embedding_NH))
    features["losses and embeddings"] = nonnegative(
        np.hstack([scaled(loss_NT[:, 3::4]), scaled(embedding_NH)])
    )
    (out / "losses").mkdir(exist_ok=True)
    for name, feature_NT in features.items():
        folder = out / folder_name(name)
        losses = out / "losses" / f"{folder.name}.parquet"
        if not losses.exists():
            values = pa.array(feature_NT.tolist(), pa.list_(pa.float32()))
            pq.write_table(pa.table(table[["example_id", "stratum"]].to_dict("list")
                                    | {"loss_nats": values}), losses)  # fmt: skip
        yield name, on_losses(base, folder, losses)
    for name in [name for name in TRAINED if name not in (BASE, MOST)]:
        yield name, configuration(base, out / folder_name(name), TRAINED[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--perturbed", metavar="MODEL")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    base = yaml.safe_load(arguments.config.read_text(encoding="utf-8"))
    num_clusters = base["clusters"]["num_clusters"]
    wanted = (
        variants_without_training(base, arguments.out, arguments.perturbed)
        if arguments.perturbed
        else variants(base, arguments.out)
    )
    rows, values, clusters = [], {}, {}
    for variant, config in wanted:
        run, items_by_label, seconds = compared(variant, config, arguments.out)
        clusters[variant] = labelled(run, num_clusters)
        source = run.trajectories().to_pandas(["example_id", "stratum"]).set_index("example_id")
        both = clusters[variant].join(clusters[BASE].add_suffix("_base")).join(source)
        for label, items in items_by_label.items():
            name = variant if label == "s2l" else f"{variant}, {label}"
            values[name], strata = by_seed(items)
            found = crossed_mean(values[name], strata)
            rows.append(
                {
                    "variant": name,
                    "seeds": [round(float(value), 4) for value in macro(values[name], strata)],
                    "mean": found.mean, "low": found.low, "high": found.high,
                    "rand_index_with_base":
                        adjusted_rand_score(both["cluster"], both["cluster_base"]),
                    "rand_index_with_sources":
                        adjusted_rand_score(both["cluster"], both["stratum"]),
                    "seconds_selecting": float(seconds[label]),
                }
            )  # fmt: skip
            print(rows[-1], flush=True)
        arguments.results.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    others = rows[1:]
    differences = [crossed_mean(values[r["variant"]] - values[BASE], strata) for r in others]
    for row, found, p in zip(others, differences, holm([d.p for d in differences]), strict=True):
        row |= {"minus_base": found.mean, "minus_base_low": found.low,
                "minus_base_high": found.high, "p_holm": p}  # fmt: skip
    arguments.results.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def macro(value_SI: np.ndarray, stratum_I: np.ndarray) -> np.ndarray:
    """Return the mean of each seed, every stratum counting the same."""
    names = np.unique(stratum_I)
    return np.mean([value_SI[:, stratum_I == name].mean(axis=1) for name in names], axis=0)


if __name__ == "__main__":
    main()
