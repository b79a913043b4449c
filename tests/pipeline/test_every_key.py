"""Every key and every input file, changed one at a time: exactly what comes from it is redone.

The keys are read off the sections: a new key fails here until it is listed.
"""

import json
import os
import types
import typing
from typing import Any

import pytest
from pydantic import BaseModel

from s2l_ray.config.sections import RunConfig
from s2l_ray.config.training import RandomModel, WorkerRange
from s2l_ray.pipeline import staleness
from s2l_ray.stages import NAMES
from tests import handmade
from tests.handmade import finish, planned

AFTER = {stage: list(NAMES[place:]) for place, stage in enumerate(NAMES)}
NOTHING: list[str] = []
MODEL = {"architecture": {"model_type": "gpt_neox", "hidden_size": 32}, "tokenizer": "tokenizer"}
TRAINING = {
    "epochs": 7.0,
    "max_steps": 4,
    "batch_size": 2,
    "micro_batch_size": 2,
    "learning_rate": 0.5,
    "warmup": 0.5,
    "weight_decay": 0.5,
    "max_grad_norm": 0.5,
    "precision": "tf32",
    "workers": 3,
    "cpus_per_worker": 3,
    "model": MODEL,
}
FASTER = {"gpus_per_worker": 1, "resume_every": 3}
"""Keys of a training that change nothing that it leaves behind."""

OF_ROWS = {
    "prompt": "p",
    "context": "c",
    "response": "r",
    "system": "s",
    "history": "h",
    "tools": "t",
    "stratum": "s",
    "id": "i",
}
KEYS: dict[str, tuple[Any, list[str]]] = {
    "run_dir": ("elsewhere", AFTER["prepare"]),  # a run of its own
    "seed": (7, AFTER["reference"]),
    "data.train": (["held.jsonl"], AFTER["prepare"]),
    "data.split": ("test", NOTHING),  # of files, which have no splits
    "data.eval": ({"held": "pool.jsonl"}, AFTER["evaluation"]),
    "data.rows_per_part": (7, AFTER["prepare"]),
    "data.template": ("radiology", AFTER["prepare"]),
    "data.chat_template": ("chatml", AFTER["prepare"]),
    "data.turns": ("last", AFTER["prepare"]),
    "data.date": ("2024-12-24", AFTER["prepare"]),
    "data.tokenizer": ("other", AFTER["prepare"]),
    "data.max_tokens": (64, AFTER["prepare"]),
    "data.max_rejected": (0.5, NOTHING),
    "data.decontaminate": ("drop", AFTER["prepare"]),
    "data.near_duplicates": ("drop", AFTER["prepare"]),
    **{f"data.fields.{key}": (name, AFTER["prepare"]) for key, name in OF_ROWS.items()},
    "data.fields.messages": ("m", AFTER["prepare"]),
    "data.fields.answer": ("a", AFTER["evaluation"]),
    "data.fields.choices": ("c", AFTER["evaluation"]),
    "data.fields.right_choice": ("c", AFTER["evaluation"]),
    **{f"reference.{key}": (value, AFTER["reference"]) for key, value in TRAINING.items()},
    **{f"reference.{key}": (value, NOTHING) for key, value in FASTER.items()},
    # The tokenizer of the first checkpoint is that of the pool.
    "reference.path": ("checkpoints", AFTER["prepare"]),
    "reference.checkpoints": (2, AFTER["reference"]),
    "reference.perturbations": (2, AFTER["reference"]),
    "reference.scale": (0.5, AFTER["reference"]),
    "trajectories.precision": ("tf32", AFTER["trajectories"]),
    "trajectories.workers": (3, NOTHING),
    "trajectories.cpus_per_worker": (3, AFTER["trajectories"]),
    "trajectories.gpus_per_worker": (0.5, NOTHING),
    "trajectories.path": ("losses.parquet", ["prepare", *AFTER["trajectories"]]),
    "trajectories.tokens_per_batch": (99, AFTER["trajectories"]),
    "trajectories.max_response_tokens": (9, AFTER["trajectories"]),
    "trajectories.embeddings": (True, AFTER["trajectories"]),
    "trajectories.error_norms": (True, AFTER["trajectories"]),
    "trajectories.without_prompt": (True, AFTER["trajectories"]),
    "trajectories.queries": (["held.jsonl"], AFTER["trajectories"]),
    "clusters.method": ("authors", AFTER["clusters"]),
    "clusters.scaling": ("shape", AFTER["clusters"]),
    "clusters.strata": ("auto", AFTER["clusters"]),
    "clusters.num_strata": (3, AFTER["clusters"]),
    "clusters.num_clusters": (4, AFTER["clusters"]),
    "clusters.rows_per_cluster": (2, AFTER["clusters"]),
    "clusters.per_stratum": (False, AFTER["clusters"]),
    "clusters.rows_per_sample": (99, AFTER["clusters"]),
    "clusters.tolerance": (0.5, AFTER["clusters"]),
    "clusters.lloyd_sweeps": (3, AFTER["clusters"]),
    "clusters.workers": (3, NOTHING),
    "selection.method": ("least-confidence", AFTER["selection"]),
    "selection.budget": (7, AFTER["selection"]),
    "selection.stratify": (False, AFTER["selection"]),
    "selection.weights": ({"math": 2.0}, AFTER["selection"]),
    "selection.minimum": (1, AFTER["selection"]),
    "selection.maximum": (9, AFTER["selection"]),
    "selection.within": ("nearest", AFTER["selection"]),
    "selection.where": ("tokens < 2000", AFTER["selection"]),
    "selection.score": ("other", AFTER["selection"]),
    "selection.score_order": ("lowest", AFTER["selection"]),
    "selection.quantile": (0.1, AFTER["selection"]),
    "selection.unlearned": ("last", AFTER["selection"]),
    "selection.baselines": (
        ["random"],
        [f"{stage} (random-6-42)" for stage in ("selection", "target", "evaluation")] + ["report"],
    ),
    "selection.columns": (["rank"], AFTER["selection"]),
    "selection.format": ("parquet", AFTER["selection"]),
    **{f"target.{key}": (value, AFTER["target"]) for key, value in TRAINING.items()},
    **{f"target.{key}": (value, NOTHING) for key, value in FASTER.items()},
    "target.zero_stage": (3, AFTER["target"]),
    "target.cpu_offload": (True, AFTER["target"]),
    "target.activation_checkpointing": (True, AFTER["target"]),
    "target.evaluate_every": (3, NOTHING),
    "target.evaluate_rows": (3, NOTHING),
    "target.lora.rank": (3, AFTER["target"]),
    "target.lora.alpha": (3.0, AFTER["target"]),
    "target.lora.dropout": (0.5, AFTER["target"]),
    "evaluation.precision": ("tf32", AFTER["evaluation"]),
    "evaluation.workers": (3, NOTHING),
    "evaluation.cpus_per_worker": (3, AFTER["evaluation"]),
    "evaluation.gpus_per_worker": (0.5, NOTHING),
    "evaluation.sets": (["held", "more"], AFTER["evaluation"]),
    "evaluation.max_new_tokens": (3, AFTER["evaluation"]),
    "evaluation.max_items": (3, AFTER["evaluation"]),
    "evaluation.rows_per_batch": (3, AFTER["evaluation"]),
    "evaluation.engine": ("vllm", AFTER["evaluation"]),
    "evaluation.run_programs": (True, AFTER["evaluation"]),
    "evaluation.metrics": (["bleu"], AFTER["evaluation"]),
    "evaluation.bertscore.model": ("./other", AFTER["evaluation"]),
    "evaluation.bertscore.layer": (3, AFTER["evaluation"]),
    # `s2l run` does not read them; tests/comparison has what they change for `s2l compare`.
    "comparison.methods": (["s2l"], NOTHING),
    "comparison.budgets": ([7], NOTHING),
    "comparison.seeds": ([7], NOTHING),
    "comparison.steps": ("epochs", NOTHING),
    "comparison.all_data": (False, NOTHING),
    "comparison.trials_per_gpu": (2, NOTHING),
    "resources.wait": (7.0, NOTHING),
    "tracking.to": (["mlflow"], NOTHING),
    "tracking.project": ("mine", NOTHING),
}
"""Key -> another value, and the steps that are to do with it in a run that was finished without."""
SCORED = {"selection.method": "score", "selection.score": "quality"}
BESIDE: dict[str, dict[str, Any]] = {
    "selection.score": SCORED,
    "selection.score_order": SCORED,
    "selection.quantile": {"selection.method": "quantile-perplexity"},
    "reference.epochs": {"reference.max_steps": None},
    "target.epochs": {"target.max_steps": None},
    "target.evaluate_rows": {"target.evaluate_every": 2},
    "trajectories.queries": {"trajectories.embeddings": True},
    "clusters.strata": {"trajectories.embeddings": True},
    "reference.perturbations": {"reference.model": "checkpoints/step-2"},
    "reference.scale": {"reference.model": "checkpoints/step-2", "reference.perturbations": 2},
    "data.turns": {"data.fields": {"messages": "m"}, "data.template": "chat"},
    "data.date": {"data.fields": {"messages": "m"}, "data.template": "chat"},
}
"""Key -> other keys that the run has, before and after the change."""


def keys(section: type[BaseModel] = RunConfig, path: str = "") -> list[str]:
    """Every key of the sections; of a section that can be left out, those inside."""
    found = []
    for name, info in section.model_fields.items():
        inner = [
            item
            for item in [info.annotation, *typing.get_args(info.annotation)]
            if isinstance(item, type) and issubclass(item, BaseModel)
        ]
        inner = [item for item in inner if item not in (RandomModel, WorkerRange)]
        is_section = len(inner) == 1 and set(typing.get_args(info.annotation)) <= {
            *inner,
            types.NoneType,
        }
        found += keys(inner[0], f"{path}{name}.") if is_section else [f"{path}{name}"]
    return found


def put(tree: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """`tree` with a key of any depth set."""
    name, _, rest = key.partition(".")
    return {**tree, name: put(tree.get(name) or {}, rest, value) if rest else value}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = handmade.inputs(tmp_path)
    for step in (2, 10):
        folder = tmp_path / "checkpoints" / f"step-{step}"
        folder.mkdir(parents=True)
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            (folder / name).write_text("{}")
    (tmp_path / "losses.parquet").write_bytes(b"1")
    (tmp_path / "scores.parquet").write_bytes(b"1")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tokenizer.json").write_text("[]")
    (tmp_path / "chat.jinja").write_text("{{ messages[0].content }}")
    made = put(made, "data.eval.more", str(tmp_path / "held.jsonl"))
    return put(made, "target.lora", {"rank": 2})


def todo(tree) -> list[str]:
    return [step.label for step in staleness.stale(planned(tree), None)]


def test_every_key_is_listed():
    assert sorted(KEYS) == sorted(keys())


@pytest.mark.parametrize("key", KEYS)
def test_a_changed_key_redoes_what_comes_from_it_and_nothing_else(tree, tmp_path, key):
    for other, beside in BESIDE.get(key, {}).items():
        tree = put(tree, other, beside)
    value, stages = KEYS[key]
    if key == "reference.path":
        key, value = "reference", {"path": value}
    if value is MODEL:
        value = put(value, "tokenizer", str(tmp_path / "tokenizer"))
    finish(tree)

    assert todo(tree) == NOTHING
    assert todo(put(tree, key, value)) == stages


PATHS = {"reference": {"path": "checkpoints"}}
FILES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "pool": ("pool.jsonl", {}, AFTER["prepare"]),
    "held-out rows": ("held.jsonl", {}, AFTER["evaluation"]),
    "held-out rows that are left out of the pool": (
        "held.jsonl",
        {"data.decontaminate": "drop"},
        AFTER["prepare"],
    ),
    "template": ("template.txt", {}, AFTER["prepare"]),
    "chat template": (
        "chat.jinja",
        {"data.chat_template": "chat.jinja", "data.template": "chat"},
        AFTER["prepare"],
    ),
    "tokenizer of models": ("tokenizer/tokenizer.json", {}, AFTER["prepare"]),
    "tokenizer": ("other/tokenizer.json", {"data.tokenizer": "other"}, AFTER["prepare"]),
    "queries": (
        "asked.jsonl",
        {"trajectories.embeddings": True, "trajectories.queries": ["asked.jsonl"]},
        AFTER["trajectories"],
    ),
    "scores": (
        "scores.parquet",
        {"selection.method": "score", "selection.score": "scores.parquet#reward"},
        AFTER["selection"],
    ),
    "model": ("model/model.safetensors", {"target.model": "model"}, AFTER["target"]),
    "first checkpoint": ("checkpoints/step-2/tokenizer.json", PATHS, AFTER["prepare"]),
    "last checkpoint": ("checkpoints/step-10/model.safetensors", PATHS, AFTER["reference"]),
    "trajectories": (
        "losses.parquet",
        {"trajectories": {"path": "losses.parquet"}},
        AFTER["trajectories"],
    ),
}
"""What it is -> file, keys that name it, and the steps that are to do when it changes."""


def test_a_score_that_only_a_baseline_reads_redoes_that_alone(tree):
    tree = put(put(tree, "selection.baselines", ["score"]), "selection.score", "quality")
    finish(tree)
    labels = [f"{stage} (score-6-42)" for stage in ("selection", "target", "evaluation")]

    assert todo(put(tree, "selection.score", "other")) == [*labels, "report"]


@pytest.mark.parametrize("of", FILES)
def test_a_changed_file_redoes_what_comes_from_it_and_nothing_else(tree, tmp_path, of):
    name, beside, stages = FILES[of]
    for key, value in beside.items():
        tree = put(tree, key, value)
    (tmp_path / "asked.jsonl").write_text(json.dumps(handmade.ROWS[0]) + "\n")
    (tmp_path / "model").mkdir()
    for part in ("config.json", "model.safetensors"):
        (tmp_path / "model" / part).write_text("{}")
    finish(tree)
    assert todo(tree) == NOTHING

    os.utime(tmp_path / name, (1, 1))
    assert todo(tree) == NOTHING
    with (tmp_path / name).open("a") as appended:
        appended.write(" {prompt}")
    assert todo(tree) == stages
    with (tmp_path / name).open("r+") as restored:
        restored.truncate((tmp_path / name).stat().st_size - len(" {prompt}"))
    assert todo(tree) == NOTHING
