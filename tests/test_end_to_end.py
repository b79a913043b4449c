"""One small run through the program, made once; what it leaves, and what can be done with it.

Tests that change a run work on a copy of it: where a run lies is no part of its fingerprints.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import tiny

pytestmark = pytest.mark.ray

NOBODY = "127.0.0.1:1"
"""An address without a cluster: a command that exits with 0 there has not needed Ray."""
ARM = "random-0.4-7"
NUM_ROWS = {"add": 33, "copy": 18, "shout": 9}
NUM_SELECTED = 24
SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
SHAPE |= {"model_type": "gpt_neox", "num_attention_heads": 2, "max_position_embeddings": 128}


def rows(first: int = 0) -> list[dict]:
    """Sixty rows in three strata, each with a list that no column type describes."""
    texts = {
        "add": lambda i: (f"add {i} and 1", f"The answer is {i + 1}."),
        "copy": lambda i: (f"say w{i}", f"w{i}"),
        "shout": lambda i: (f"shout b{i}", f"B{i}"),
    }
    found = []
    for stratum, number in NUM_ROWS.items():
        for i in range(first, first + number):
            prompt, response = texts[stratum](i)
            found.append(
                {"instruction": prompt, "output": response, "source": stratum, "notes": [i, "x"]}
            )
    return found


def write_rows(path: Path, items: list[dict], *, bad: str = "") -> str:
    path.write_text("".join(json.dumps(item) + "\n" for item in items) + bad)
    return str(path)


def write_inputs(folder: Path) -> Path:
    """The configuration of the run, with its pool, held-out set, tokenizer and template."""
    tiny.tokenizer().save_pretrained(folder / "tokenizer")
    (folder / "template.txt").write_text("Q: {prompt} A: ")
    model = {"architecture": SHAPE, "tokenizer": str(folder / "tokenizer")}
    training = {"model": model, "micro_batch_size": 4, "precision": "fp32", "workers": 2}
    tree = {
        "run_dir": str(folder / "run"),
        "seed": 7,
        "data": {
            "train": [write_rows(folder / "train.jsonl", rows(), bad="{not JSON\n")],
            "eval": {"held": write_rows(folder / "held.jsonl", rows(first=50)[30:36])},
            "template": str(folder / "template.txt"),
            "max_tokens": 64,
            "max_rejected": 0.05,
            "rows_per_part": 4,
        },
        "reference": {
            **training,
            "epochs": 1,
            "batch_size": 15,
            "learning_rate": 1e-2,
            "checkpoints": 4,
        },
        "trajectories": {"precision": "fp32", "tokens_per_batch": 512},
        "clusters": {"num_clusters": 3},
        "selection": {"budget": 0.4, "baselines": ["random"]},
        "target": {**training, "max_steps": 2, "batch_size": 8, "zero_stage": 2},
        "evaluation": {"sets": ["held"], "max_new_tokens": 4, "precision": "fp32"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    return folder / "run.yaml"


@pytest.fixture(scope="session")
def config(tmp_path_factory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("end-to-end"))


@pytest.fixture(scope="session")
def finished(config, s2l) -> Path:
    """The folder of the finished run."""
    done = s2l("run", config)
    assert done.returncode == 0, done.stdout + done.stderr
    # What the run says of itself at its end.
    assert f"report    {config.parent}/run/report/index.html" in done.stdout
    return config.parent / "run"


@pytest.fixture
def copied(finished, tmp_path) -> Callable[..., Path]:
    """`copied("prepared", ...)`: another run with these finished stages; without names, all."""

    def copy(*stages: str) -> Path:
        if not stages:
            return Path(shutil.copytree(finished, tmp_path / "run"))
        for stage in stages:
            shutil.copytree(finished / stage, tmp_path / "run" / stage)
        shutil.copy(finished / "run.json", tmp_path / "run")
        return tmp_path / "run"

    return copy


def sets(**overrides: object) -> list[str]:
    """`--set` for each; a double underscore stands for the dot."""
    given = {key.replace("__", "."): value for key, value in overrides.items()}
    return [word for key, value in given.items() for word in ("--set", f"{key}={value}")]


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and date of every file, without the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one message of a command that failed in a way that the user can mend."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("s2l: ")]
    assert len(lines) == 1, done.stderr
    return done.stderr[done.stderr.index("s2l: ") :]


def stages_done(output: str) -> set[str]:
    """The stages that a run says it has done."""
    return set(re.findall(r"^  (\w+) .* [0-9:]+   ", output, re.MULTILINE))


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def table(folder: Path, pattern: str = "part-*.parquet") -> pa.Table:
    files = sorted(folder.glob(pattern))
    return pa.concat_tables(map(pq.read_table, files), promote_options="default")


def schema(found: pa.Table) -> dict[str, str]:
    return {field.name: str(field.type) for field in found.schema}


def test_a_finished_run_has_these_folders_and_nothing_half_written(finished):
    stages = ["prepared", "reference", "trajectories", "clusters", "selection", "target"]
    expected = {*stages, "evaluation", "report", "arms", "run.json", "config.json"}
    names = {path.name for path in finished.iterdir() if not path.name.startswith(".")}
    assert names == expected | {"contents.json"}
    assert {path.name for path in (finished / "arms").iterdir()} == {ARM}
    files = {path.relative_to(finished) for path in finished.rglob("*") if path.is_file()}
    assert [path for path in files if path.name.startswith(".")] == [Path(".lock")]
    left = {"unfinished.json", "staged", "units", "resume", "attempts", "tokens"}
    assert not [path for path in files if left & set(path.parts)]


def test_every_manifest_says_what_its_stage_came_from(finished):
    folders = [path.parent for path in finished.rglob("manifest.json")]
    assert len(folders) == 8 + 3
    for folder in folders:
        found = manifest(folder)
        assert found["seconds"] > 0 and found["inputs"] and found["summary"]
        assert re.fullmatch(r"[0-9a-f]{16}", found["fingerprint"])
        assert {"python", "torch", "ray", "transformers"} <= set(found["versions"])
    reference = manifest(finished / "reference")
    assert reference["inputs"]["prepare"] == manifest(finished / "prepared")["fingerprint"]
    assert reference["summary"]["steps"] == [1, 2, 3, 4] and reference["summary"]["workers"] == 2


def test_prepared_rows_and_rejected_rows_add_up(finished):
    prepared, kept = table(finished / "prepared"), sum(NUM_ROWS.values())
    assert schema(prepared) == {
        "example_id": "string",
        "stratum": "string",
        "input_ids": "list<element: int32>",
        "num_prompt_tokens": "int32",
        "num_tokens": "int32",
    }
    assert Counter(prepared["stratum"].to_pylist()) == NUM_ROWS
    assert len(set(prepared["example_id"].to_pylist())) == kept
    first = rows()[0]
    text = bytes(prepared["input_ids"][0].as_py()[:-1]).decode()
    assert text == f"Q: {first['instruction']} A: {first['output']}"
    assert prepared["num_prompt_tokens"][0].as_py() == len(f"Q: {first['instruction']} A: ")

    original = table(finished / "prepared", "rows-*.parquet")
    assert {"example_id", "file", "row", "instruction", "output"} <= set(schema(original))
    assert original["row"].to_pylist() == list(range(kept))

    rejected = pq.read_table(finished / "prepared" / "rejected.parquet")
    assert schema(rejected) == {
        "file": "string",
        "row": "int64",
        "reason": "string",
        "excerpt": "string",
    }
    assert rejected.drop_columns("file").to_pylist() == [
        {"row": kept, "reason": "malformed JSON", "excerpt": "{not JSON"}
    ]
    summary = manifest(finished / "prepared")["summary"]
    assert (summary["rows"], summary["kept"]) == (kept + 1, kept)
    assert summary["rejected"] == {"malformed JSON": 1}


def test_a_loss_trajectory_is_what_the_checkpoints_say(finished):
    prepared, scored = table(finished / "prepared"), table(finished / "trajectories")
    assert schema(scored) == {
        "example_id": "string",
        "stratum": "string",
        "loss_nats": "fixed_size_list<element: float>[4]",
    }
    assert scored["example_id"].equals(prepared["example_id"])

    row = prepared.slice(17, 1).to_pylist()[0]
    token_ids = torch.tensor([row["input_ids"]])
    expected = []
    for step in ("step-000001", "step-000002", "step-000003", "step-000004"):
        model = AutoModelForCausalLM.from_pretrained(finished / "reference" / step)
        with torch.inference_mode():
            logits = model.eval()(token_ids).logits[0, row["num_prompt_tokens"] - 1 : -1]
        answer = token_ids[0, row["num_prompt_tokens"] :]
        expected.append(torch.nn.functional.cross_entropy(logits, answer).item())
    np.testing.assert_allclose(scored["loss_nats"][17].as_py(), expected, rtol=1e-5)
    assert len(set(expected)) == 4


def test_every_example_is_in_a_cluster_of_its_stratum(finished):
    clustered = table(finished / "clusters")
    assert schema(clustered) == {
        "example_id": "string",
        "stratum": "string",
        "cluster": "int32",
        "sqdist": "float",
    }
    centroid_KT = np.load(finished / "clusters" / "centroids.npy", allow_pickle=False)
    assert centroid_KT.shape == (9, 4) and centroid_KT.dtype == np.float32
    owner = manifest(finished / "clusters")["summary"]["stratum_of_cluster"]
    assert [owner[k] for k in clustered["cluster"].to_pylist()] == clustered["stratum"].to_pylist()
    losses = np.array(table(finished / "trajectories")["loss_nats"].to_pylist())
    sqdist_N = ((losses - centroid_KT[clustered["cluster"].to_numpy()]) ** 2).sum(axis=1)
    np.testing.assert_allclose(clustered["sqdist"].to_numpy(), sqdist_N, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("arm", [".", f"arms/{ARM}"])
def test_selected_rows_are_the_head_of_the_ranking_untouched(finished, arm):
    ranking = pq.read_table(finished / arm / "selection" / "ranking.parquet")
    assert schema(ranking) == {
        "example_id": "string",
        "stratum": "string",
        "cluster": "int32",
        "rank": "int64",
    }
    assert sorted(ranking["rank"].to_pylist()) == list(range(sum(NUM_ROWS.values())))
    head = {row["example_id"] for row in ranking.to_pylist() if row["rank"] < NUM_SELECTED}

    text = (finished / arm / "selection" / "selected.jsonl").read_text()
    selected = [json.loads(line) for line in text.splitlines()]
    assert {row.pop("example_id") for row in selected} == head
    assert len(selected) == NUM_SELECTED
    originals = rows()
    assert [row for row in originals if row in selected] == selected


def test_stratified_selection_spreads_the_budget_over_the_strata(finished):
    counts = manifest(finished / "selection")["summary"]["strata"]
    assert counts == {"add": 8, "copy": 8, "shout": 8}


@pytest.mark.parametrize("arm", [".", f"arms/{ARM}"])
def test_the_target_loads_as_any_hugging_face_model_does(finished, arm):
    folder = finished / arm / "target" / "model"
    model, tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    assert model.config.hidden_size == SHAPE["hidden_size"]
    assert tokenizer.eos_token == tiny.EOS
    logits = model(**tokenizer("Q: say w1 A: ", return_tensors="pt")).logits
    assert torch.isfinite(logits).all() and logits.shape[-1] >= tiny.NUM_TOKENS


def test_the_two_arms_trained_on_different_rows(finished):
    places = (finished, finished / "arms" / ARM)
    texts = [(place / "selection" / "selected.jsonl").read_text() for place in places]
    weights = [(place / "target/model/model.safetensors").read_bytes() for place in places]
    assert texts[0] != texts[1] and weights[0] != weights[1]


@pytest.mark.parametrize("arm", [".", f"arms/{ARM}"])
def test_metrics_are_those_of_the_items(finished, arm):
    items = pq.read_table(finished / arm / "evaluation" / "items.parquet")
    assert {
        "set": "string",
        "item": "int64",
        "stratum": "string",
        "predicted": "string",
        "correct": "bool",
        "loss_nats": "float",
    }.items() <= schema(items).items()
    held = json.loads((finished / arm / "evaluation" / "metrics.json").read_text())["sets"]["held"]
    assert items.num_rows == held["items"] == 6
    assert Counter(items["stratum"].to_pylist()) == {"add": 3, "copy": 3}
    assert held["loss_nats"]["mean"] == pytest.approx(np.mean(items["loss_nats"].to_numpy()))
    assert held["exact_match"]["rate"] == pytest.approx(np.mean(items["correct"].to_pylist()))


def test_the_report_is_one_page_that_loads_nothing(finished):
    page = (finished / "report" / "index.html").read_text()
    loaded = (
        r"""(?:\bsrc|\bhref|\baction)\s*=\s*["']?(?!data:|\#)[^"'>\s]+|url\((?!["']?(?:data:|\#))"""
    )
    assert not re.findall(loaded, page) and "@import" not in page and "<script src" not in page
    assert all(stratum in page for stratum in NUM_ROWS)


def test_running_again_does_nothing_and_takes_no_ray(finished, config, s2l):
    before = state(finished)
    done = s2l("run", config, "--address", NOBODY)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout
    assert state(finished) == before


def test_what_only_steers_the_work_does_not_redo_it(finished, config, s2l):
    overrides = sets(trajectories__workers="{min: 1, max: 2}", data__max_rejected=0.5)
    done = s2l("run", config, "--address", NOBODY, *overrides)
    assert done.returncode == 0 and "nothing to do" in done.stdout


def test_subsets_of_a_finished_run_are_nested(finished, s2l, tmp_path):
    ids = {}
    for budget in (6, 24, 0.75):
        out = tmp_path / f"{budget}.jsonl"
        done = s2l("select", finished, "--budget", budget, "--out", out)
        assert done.returncode == 0, done.stderr
        ids[budget] = {json.loads(line)["example_id"] for line in out.read_text().splitlines()}
    assert [len(found) for found in ids.values()] == [6, 24, 45]
    assert ids[6] < ids[24] < ids[0.75]
    assert (tmp_path / "24.jsonl").read_bytes() == (
        finished / "selection" / "selected.jsonl"
    ).read_bytes()


def test_another_budget_redoes_selection_and_report_alone(copied, config, s2l):
    run = copied()
    before = state(run / "clusters")
    overrides = sets(run_dir=run, selection__budget=12, target="null", evaluation="null")

    done = s2l("run", config, "--address", NOBODY, *overrides)

    assert done.returncode == 0, done.stderr
    assert stages_done(done.stdout) == {"selection", "report"}
    assert len((run / "selection" / "selected.jsonl").read_text().splitlines()) == 12
    assert state(run / "clusters") == before


@pytest.mark.parametrize(
    ("overrides", "key", "stage"),
    [
        ({"data__max_tokens": 48}, "data.max_tokens", "prepare"),
        ({"reference__learning_rate": 1.0e-3}, "reference.learning_rate", "reference"),
        ({"selection__budget": 12}, "selection.budget", "selection"),
        ({"target__max_steps": 3}, "target.max_steps", "target"),
    ],
)
def test_finished_training_is_not_discarded_silently(finished, config, s2l, overrides, key, stage):
    before = state(finished)
    message = refusal(s2l("run", config, *sets(**overrides)))
    assert f"{key} changed" in message
    assert f"--from {stage}" in message and "another run_dir" in message
    assert state(finished) == before


def test_from_redoes_a_stage_and_ends_what_came_from_it(copied, config, s2l):
    run = copied()
    ranking = (run / "selection" / "ranking.parquet").read_bytes()
    before = state(run / "clusters")
    stage = ["--from", "selection", "--until", "selection"]

    done = s2l("run", config, "--address", NOBODY, *stage, *sets(run_dir=run))

    assert done.returncode == 0, done.stderr
    assert stages_done(done.stdout) == {"selection"}
    assert (run / "selection" / "ranking.parquet").read_bytes() == ranking
    assert state(run / "clusters") == before
    assert not (run / "target" / "manifest.json").exists()
    until = ["--until", "selection", *sets(run_dir=run)]
    again = s2l("run", config, "--address", NOBODY, *until)
    assert again.returncode == 0 and "nothing to do" in again.stdout


def test_the_report_is_made_again(copied, s2l):
    run = copied()
    page = run / "report" / "index.html"
    page.unlink()
    done = s2l("report", run)
    assert done.returncode == 0 and done.stdout.strip() == str(page)
    assert "<html" in page.read_text()


def test_a_cluster_that_is_not_there_costs_no_finished_work(copied, config, s2l):
    run = copied()
    stage = ["--from", "reference", "--address", NOBODY]
    message = refusal(s2l("run", config, *stage, *sets(run_dir=run)))
    assert f"no Ray cluster answers at {NOBODY}" in message
    assert (run / "reference" / "manifest.json").exists() and (run / "target" / "model").exists()


def test_a_cluster_that_is_too_small_is_named_before_any_work(copied, config, s2l):
    run = copied()
    overrides = sets(run_dir=run, target__workers=99)
    message = refusal(s2l("run", config, "--from", "reference", *overrides))
    assert "target: 99 worker(s)" in message and "Lower target.workers" in message
    assert (run / "reference" / "manifest.json").exists() and (run / "target" / "model").exists()


def without_eos(folder: Path) -> str:
    tiny.tokenizer(eos=None).save_pretrained(folder / "endless")
    return str(folder / "endless")


POOL = {"reference": "null", "trajectories": "null", "clusters": "null", "selection": "null"}
POOL |= {"target": "null", "evaluation": "null", "data__rows_per_part": 4096}


@pytest.mark.parametrize(
    ("given", "pieces"),
    [
        (
            lambda folder: {"data__fields__response": "reply", **POOL},
            ["61 of 61 rows cannot be used", "60 missing field", "1 malformed JSON", "row 0"],
        ),
        (
            lambda folder: {"data__tokenizer": without_eos(folder), **POOL},
            ["no end-of-sequence token", "endless"],
        ),
    ],
    ids=["all rows rejected", "no end of sequence"],
)
def test_a_pool_that_cannot_be_used_is_explained(config, s2l, tmp_path, given, pieces):
    overrides = sets(run_dir=tmp_path / "run", **given(tmp_path))
    message = refusal(s2l("run", config, "--until", "prepare", *overrides))
    assert [piece for piece in pieces if piece not in message] == []
    assert not (tmp_path / "run" / "prepared" / "manifest.json").exists()


def cut_short(folder: Path) -> str:
    """Two checkpoints, the second of them truncated."""
    for step in (10, 20):
        tiny.save(folder / "brought" / f"checkpoint-{step}")
    weights = folder / "brought" / "checkpoint-20" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return str(folder / "brought")


@pytest.mark.parametrize(
    ("given", "pieces"),
    [
        (
            lambda folder: {"selection__budget": 61},
            ["selection.budget: 61 examples", "the pool has (60)"],
        ),
        (
            lambda folder: {"reference__checkpoints": 50},
            ["50 checkpoints cannot come from 4 optimizer steps", "reference.checkpoints"],
        ),
        (
            lambda folder: {
                "reference": f"{{path: {cut_short(folder)}}}",
            },
            ["checkpoint-20/model.safetensors is cut short"],
        ),
    ],
    ids=["budget", "checkpoints", "cut short"],
)
def test_what_a_prepared_pool_cannot_give_is_explained(
    copied, config, s2l, tmp_path, given, pieces
):
    run = copied("prepared")
    same = {"run_dir": run, "data__tokenizer": config.parent / "tokenizer"}
    message = refusal(s2l("run", config, *sets(**same, **given(tmp_path))))
    assert [piece for piece in pieces if piece not in message] == []
    assert not (run / "reference" / "manifest.json").exists()


def trajectories(folder: Path, losses: list[list[float]], name: str = "example_id") -> Path:
    """A configuration that brings these trajectories, as parquet."""
    ids = [f"e{i}" for i in range(len(losses))]
    pq.write_table(pa.table({name: ids, "loss_nats": losses}), folder / "t.parquet")
    tree = {
        "run_dir": str(folder / "run"),
        "trajectories": {"path": str(folder / "t.parquet")},
        "clusters": {"num_clusters": 2},
        "selection": {"budget": 2},
    }
    (folder / "brought.yaml").write_text(yaml.safe_dump(tree))
    return folder / "brought.yaml"


@pytest.mark.parametrize(
    ("losses", "name", "pieces"),
    [
        ([[1.0, 2.0], [1.0, float("nan")], [3.0, 4.0]], "example_id", ["NaN", "(first: e1)"]),
        ([[1.0, 2.0], [3.0, 4.0], [1.0]], "example_id", ["2 values", "1 in row 2", "example e2"]),
        ([[1.0, 2.0]], "name", ["no column 'example_id'", "it has name, loss_nats"]),
        ([[1.0, 2.0]], "example_id", ["selection.budget: 2 examples", "the pool has (1)"]),
    ],
    ids=["NaN", "unequal", "column", "budget"],
)
def test_brought_trajectories_that_cannot_be_used_are_explained(
    s2l, tmp_path, losses, name, pieces
):
    message = refusal(s2l("run", trajectories(tmp_path, losses, name), "--until", "selection"))
    assert [piece for piece in pieces if piece not in message] == []
    assert not (tmp_path / "run" / "selection" / "ranking.parquet").exists()


def test_a_killed_run_goes_on_to_the_same_ranking(finished, copied, config, s2l, s2l_environment):
    run = copied("prepared", "reference")
    arguments = ["run", str(config), "--until", "selection", *sets(run_dir=run)]
    process = subprocess.Popen(
        [sys.executable, "-m", "s2l_ray", *arguments],
        env=s2l_environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list((run / "trajectories" / "units").glob("losses-*")):
        assert process.poll() is None and time.monotonic() < deadline
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "trajectories" / "manifest.json").exists()

    done = s2l(*arguments)

    assert done.returncode == 0, done.stderr
    assert stages_done(done.stdout) == {"trajectories", "clusters", "selection"}
    for name in ("ranking.parquet", "selected.jsonl"):
        same = (finished / "selection" / name).read_bytes()
        assert (run / "selection" / name).read_bytes() == same
