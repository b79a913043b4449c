"""Whether two GPUs give what one gives: reference, scoring, selection, targets by ZeRO, evaluation.

    python benchmarks/two_gpus.py [--out DIR]         some five minutes on two GPUs
    python benchmarks/two_gpus.py --cpu [--out DIR]   the same with two CPU workers and a tiny model

One run has one worker everywhere. Copies of it repeat one stage and what follows with two. What is
computed per example must be equal to the last bit; what sums gradients over two workers adds in
another order, and may differ within a tolerance. Ends with 1 if something is beyond it. With
--out, what was interrupted goes on.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from safetensors.torch import load_file

import s2l_ray as s2l

ROOT = Path(__file__).parents[1]
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
SMALL = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 12}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
NATS = {"fp32": 2e-3, "bf16": 3e-2}
"""How far mean losses may be apart where sums of gradients differ in their order."""


class Difference(NamedTuple):
    """One line of the table."""

    what: str
    found: float
    allowed: float

    @property
    def is_fine(self) -> bool:
        return self.found <= self.allowed


def rows(number: int, seed: int) -> list[dict[str, str]]:
    """Sums of two kinds, so that a small model learns something."""
    chosen = random.Random(seed)  # noqa: S311 - no secret
    kinds = {"plus": lambda a, b: a + b, "times": lambda a, b: a * b}
    made = []
    for _ in range(number):
        kind = chosen.choice(sorted(kinds))
        a, b = chosen.randint(2, 99), chosen.randint(2, 99)
        answer = f"{a} {kind} {b} is {kinds[kind](a, b)}."
        made.append({"question": f"What is {a} {kind} {b}?", "answer": answer, "topic": kind})
    return made


def configuration(folder: Path, *, on_cpu: bool) -> dict[str, Any]:
    """The run with one worker everywhere."""
    gpus = 0 if on_cpu else 1
    precision = "fp32" if on_cpu else "bf16"
    shape = {"model_type": "llama", "vocab_size": 4096, **HEADS, **(TINY if on_cpu else SMALL)}
    model = {
        "architecture": shape,
        "tokenizer": str(ROOT / "configs/tokenizers/math-4k"),
    }
    worker = {"gpus_per_worker": gpus, "precision": precision}
    scoring = {**worker, "workers": {"min": 1, "max": 1}}
    training = {**worker, "model": model, "batch_size": 16, "micro_batch_size": 8, "workers": 1}
    training |= {"learning_rate": 1.0e-3, "epochs": 1 if on_cpu else 2}
    return {
        "run_dir": str(folder / "one"),
        "data": {
            "train": [str(folder / "pool.jsonl")],
            "eval": {"heldout": str(folder / "heldout.jsonl")},
            "fields": {"prompt": "question", "response": "answer", "stratum": "topic"},
            "rows_per_part": 64,
        },
        "reference": {**training, "checkpoints": 3},
        "trajectories": scoring,
        "clusters": {"num_clusters": 4},
        "selection": {"budget": 0.5},
        "target": {**training, "zero_stage": 2},
        "evaluation": {**scoring, "sets": ["heldout"], "max_new_tokens": 16},
    }


def run(config: Path, run_dir: Path, *options: str) -> Path:
    """Run the program; it is another process, so that each run meets the GPUs free."""
    command = [sys.executable, "-m", "s2l_ray", "run", str(config), "--set", f"run_dir={run_dir}"]
    subprocess.run([*command, *options], check=True)
    return run_dir


def repeated(config: Path, stage: str, name: str, *settings: str) -> Path:
    """Copy the run with one worker, and do `stage` and what follows again with `settings`."""
    one, copy = config.parent / "one", config.parent / name
    options = [word for setting in settings for word in ("--set", setting)]
    if not copy.exists():
        shutil.copytree(one, copy, ignore=shutil.ignore_patterns(".lock"))
        options += ["--from", stage]
    return run(config, copy, *options)


def losses(run_dir: Path) -> np.ndarray:
    """Losses at all checkpoints, by the order of ids."""
    table = s2l.load(str(run_dir)).trajectories()
    order = np.argsort(table.to_numpy("example_id"))
    return np.stack(table.to_numpy("loss_nats"))[order]


def ranks(run_dir: Path) -> dict[str, int]:
    table = s2l.load(str(run_dir)).ranking()
    columns = (table.to_numpy(name).tolist() for name in ("example_id", "rank"))
    return dict(zip(*columns, strict=True))


def held_out(run_dir: Path) -> float:
    metrics = json.loads((run_dir / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    return float(metrics["sets"]["heldout"]["loss_nats"]["mean"])


def weight_distance(one: Path, two: Path) -> float:
    """The distance of two targets, as a share of the length of the first."""
    first, second = (load_file(path / "target/model/model.safetensors") for path in (one, two))
    apart = sum(float((first[name].double() - second[name].double()).norm() ** 2) for name in first)
    return (apart / sum(float(weight.double().norm() ** 2) for weight in first.values())) ** 0.5


def differences(runs: dict[str, Path], precision: str) -> Iterator[Difference]:
    """Compare every run with the one with one worker."""
    one, nats = runs["one"], NATS[precision]
    apart = np.abs(losses(one) - losses(runs["reference"])).mean(axis=0).max()
    yield Difference("reference: mean difference of losses, nats", float(apart), nats)
    apart = np.abs(losses(one) - losses(runs["scoring"])).max()
    yield Difference("scoring: largest difference of losses, nats", float(apart), 0)
    mine, other = ranks(one), ranks(runs["scoring"])
    moved = sum(mine[name] != other.get(name) for name in mine)
    yield Difference("selection: rows with another rank", moved, 0)
    for name in ("zero-2", "zero-3"):
        apart = abs(held_out(one) - held_out(runs[name]))
        yield Difference(f"target, {name}: held-out loss, nats", apart, nats)
        distance = weight_distance(one, runs[name])
        yield Difference(f"target, {name}: distance of weights", distance, 10 * nats)
    apart = abs(held_out(one) - held_out(runs["evaluation"]))
    yield Difference("evaluation: held-out loss, nats", apart, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", action="store_true", help="two CPU workers and a tiny model")
    parser.add_argument("--out", type=Path, help="folder for runs; a temporary one by default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name, number in (("pool", 128 if given.cpu else 2048), ("heldout", 32)):
            lines = [json.dumps(row) for row in rows(number, seed=number)]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        config = folder / "run.yaml"
        wanted = configuration(folder, on_cpu=given.cpu)
        config.write_text(yaml.safe_dump(wanted), encoding="utf-8")
        two = ["--set", "reference.workers=2", "--until", "trajectories"]
        scoring, answers = ("{min: 2, max: 2}",) * 2
        runs = {
            "one": run(config, folder / "one"),
            "reference": run(config, folder / "reference", *two),
            "scoring": repeated(
                config, "trajectories", "scoring", f"trajectories.workers={scoring}"
            ),
            "zero-2": repeated(config, "target", "zero-2", "target.workers=2"),
            "zero-3": repeated(
                config, "target", "zero-3", "target.workers=2", "target.zero_stage=3"
            ),
            "evaluation": repeated(
                config, "evaluation", "evaluation", f"evaluation.workers={answers}"
            ),
        }
        found = list(differences(runs, wanted["target"]["precision"]))
    print(f"\n{'with two workers instead of one':<48}{'found':>12}{'allowed':>10}")
    for line in found:
        verdict = "" if line.is_fine else "  too much"
        print(f"{line.what:<48}{line.found:>12.2g}{line.allowed:>10.2g}{verdict}")
    sys.exit(not all(line.is_fine for line in found))


if __name__ == "__main__":
    main()
