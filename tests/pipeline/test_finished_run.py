"""Commands on a finished run, and their refusals. Tests that change the run copy it.

The path of a run is no part of its fingerprints.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests import tiny
from tests.pipeline.test_without_ray import trajectories
from tests.small_run import NOBODY, refusal, sets, stages_done, state, table

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]


def test_running_again_does_nothing_and_takes_no_ray(finished, config, s2l):
    before = state(finished)
    done = s2l("run", config, "--address", NOBODY)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout
    assert state(finished) == before


def test_in_the_json_format_every_printed_line_is_an_object(finished, config, s2l):
    done = s2l("run", config, "--address", NOBODY, "--log-format", "json")
    assert done.returncode == 0, done.stderr
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["event"] for line in printed} == {"begin", "end", "line"}
    assert any(line.get("text", "").startswith("nothing to do") for line in printed)


def test_a_finished_run_has_logs_and_its_status_says_so(finished, s2l):
    done = s2l("status", finished, "--json")
    assert done.returncode == 0, done.stderr
    now = json.loads(done.stdout)
    assert now["phase"] == "done" and now["failures"] == []
    assert all(stage["is_finished"] for stage in now["stages"])
    assert now["seconds"] == pytest.approx(sum(stage["seconds"] for stage in now["stages"]))
    assert now["seconds"] > 1  # models were trained
    names = {stage["name"] for stage in now["stages"]}
    assert {"prepare", "reference", "target", "target (random-0.4-7)", "evaluation"} <= names

    text = (finished / "logs" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    steps = [(line["stage"], line["step"]) for line in lines if "loss_nats" in line]
    assert [step for stage, step in steps if stage == "reference"] == list(range(1, 81))
    assert [step for stage, step in steps if stage == "target"] == list(range(1, 31))
    measured = [line for line in lines if "held_out_loss_nats/held" in line]
    assert [line["step"] for line in measured if line["stage"] == "target"] == [12, 24, 30]


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
        finished / "subset" / "selected.jsonl"
    ).read_bytes()


@pytest.mark.parametrize(
    "method",
    ["s2l", "least-confidence", "longest-responses", "facility-location", "rds-plus", "el2n"],
)
def test_a_subset_of_tokens_has_no_more_of_them_than_were_trained_on(
    finished, s2l, tmp_path, method
):
    parts = table(finished / "prepared")
    num_tokens = dict(
        zip(*(parts[k].to_pylist() for k in ("example_id", "num_tokens")), strict=True)
    )
    budget = sum(num_tokens.values()) // 3
    out = tmp_path / "subset.jsonl"
    arguments = ["--budget", f"{budget} tokens", "--method", method, "--out", out]
    done = s2l("select", finished, *arguments)
    assert done.returncode == 0, done.stderr

    ids = [json.loads(line)["example_id"] for line in out.read_text().splitlines()]
    taken = sum(num_tokens[example_id] for example_id in ids)
    assert budget - max(num_tokens.values()) < taken <= budget
    assert len(set(ids)) == len(ids)


def test_another_budget_redoes_selection_and_report_alone(copied, config, s2l):
    run = copied()
    before = state(run / "clusters")
    overrides = sets(run_dir=run, selection__budget=12, target="null", evaluation="null")

    done = s2l("run", config, "--address", NOBODY, *overrides)

    assert done.returncode == 0, done.stderr
    assert stages_done(done.stdout) == {"selection", "report"}
    assert len((run / "subset" / "selected.jsonl").read_text().splitlines()) == 12
    assert state(run / "clusters") == before


@pytest.mark.parametrize(
    ("overrides", "key", "stage"),
    [
        ({"data__max_tokens": 48}, "data.max_tokens", "prepare"),
        ({"reference__learning_rate": 2.0e-3}, "reference.learning_rate", "reference"),
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
    assert (run / "target" / "model").exists()
    planned = s2l("plan", config, "--tflops", 1, *sets(run_dir=run)).stdout
    assert "to do again: an earlier stage was done again" in planned
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


def test_a_cluster_that_is_not_there_costs_no_finished_work(copied, config, s2l_process):
    run = copied()
    stage = ["--from", "reference", "--address", NOBODY]
    message = refusal(s2l_process("run", config, *stage, *sets(run_dir=run)))
    assert f"no Ray cluster answers at {NOBODY}" in message
    assert (run / "reference" / "_manifest.json").exists() and (run / "target" / "model").exists()


def test_a_cluster_that_is_too_small_is_named_before_any_work(copied, config, s2l):
    run = copied()
    overrides = sets(run_dir=run, target__workers=99)
    message = refusal(s2l("run", config, "--from", "reference", *overrides))
    assert "target: 99 worker(s)" in message and "Lower target.workers" in message
    assert (run / "reference" / "_manifest.json").exists() and (run / "target" / "model").exists()


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
    assert not (tmp_path / "run" / "prepared" / "_manifest.json").exists()


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
            lambda folder: {"reference__checkpoints": 500},
            ["500 checkpoints cannot come from 80 optimizer steps", "reference.checkpoints"],
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
    assert not (run / "reference" / "_manifest.json").exists()


def test_brought_trajectories_and_rows_are_enough_for_a_subset(s2l, tmp_path):
    losses = [[float(i % 3), 0.5 * (i % 2)] for i in range(12)]
    config = trajectories(tmp_path, losses)
    rows = [{"id": f"e{i}", "instruction": "say", "output": str(i)} for i in range(12)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = sets(data__train=tmp_path / "pool.jsonl", selection__budget=5)
    stages = ["--from", "clusters", "--until", "selection"]

    done = s2l("run", config, *stages, *overrides)

    assert done.returncode == 0, done.stdout + done.stderr
    assert stages_done(done.stdout) == {"prepare", "trajectories", "clusters", "selection"}
    folder = tmp_path / "run" / "selection"
    ranking = pq.read_table(folder / "ranking.parquet").to_pylist()
    head = {row["example_id"] for row in ranking if row["rank"] < 5}
    subset = (folder.parent / "subset" / "selected.jsonl").read_text()
    selected = [json.loads(line) for line in subset.splitlines()]
    assert len(ranking) == 12 and {row["example_id"] for row in selected} == head
    assert selected == [row | {"example_id": row["id"]} for row in rows if row["id"] in head]


def test_what_actors_scored_is_scored_again_without_ray_to_the_same_bytes(copied, config):
    run = copied()
    folders = ["trajectories", "embeddings", "error_norms", "queries", "clusters", "selection"]
    before = parquet_files(run, folders)
    assert {Path(name).parts[0] for name in before} == set(folders)

    done = subprocess.run(
        [sys.executable, "-m", "s2l_ray", "run", config, "--set", f"run_dir={run}",
         "--from", "trajectories", "--until", "selection"],
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ray" not in done.stdout and not done.stderr
    assert stages_done(done.stdout) == {"trajectories", "clusters", "selection"}
    assert parquet_files(run, folders) == before


def parquet_files(run: Path, folders: list[str]) -> dict[str, bytes]:
    files = [file for folder in folders for file in (run / folder).rglob("*.parquet")]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}
