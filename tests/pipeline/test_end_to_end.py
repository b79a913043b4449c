"""One small run through the program, made once: what it leaves."""

import html
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import tiny
from tests.small_run import ARM, NUM_ROWS, NUM_SELECTED, SHAPE, manifest, rows, schema, table

pytestmark = pytest.mark.ray

STEPS = [20, 40, 60, 80]


def test_every_example_and_every_query_has_an_embedding_of_length_one(finished):
    found = table(finished / "embeddings", "embeddings-*.parquet")
    asked = table(finished / "queries" / "embeddings", "embeddings-*.parquet")
    losses = table(finished / "trajectories")

    assert found["example_id"].to_pylist() == losses["example_id"].to_pylist()
    assert [place.rpartition("/")[2] for place in asked["example_id"].to_pylist()] == [
        f"held.jsonl row {number}" for number in range(6)
    ]
    for embedded in (found, asked):
        vectors = np.array(embedded["embedding"].to_pylist())
        assert vectors.shape == (embedded.num_rows, SHAPE["hidden_size"])
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=2e-3)
    left = {f"{path.parent.name}/{path.name}" for path in (finished / "queries").glob("*/*")}
    assert left == {
        "trajectories/part-000000.parquet",
        "trajectories/part-000001.parquet",
        "embeddings/embeddings-000000.parquet",
        "embeddings/embeddings-000001.parquet",
    }


def test_every_example_has_the_length_of_its_errors(finished):
    found = table(finished / "error_norms", "error_norms-*.parquet")
    losses = table(finished / "trajectories")
    assert found["example_id"].to_pylist() == losses["example_id"].to_pylist()
    norm_N, first_N = found["error_norm"].to_numpy(), np.stack(losses["loss_nats"].to_numpy())[:, 0]
    assert norm_N.dtype == np.float32 and (norm_N > 0).all() and (norm_N < np.sqrt(2)).all()
    # At a checkpoint that has learned little, what is predicted worse is further off.
    assert np.corrcoef(norm_N, first_N)[0, 1] > 0.5


def test_a_finished_run_has_these_folders_and_nothing_half_written(finished):
    stages = ["prepared", "reference", "trajectories", "clusters", "selection", "subset"]
    stages += ["embeddings", "error_norms", "queries"]
    expected = {*stages, "target", "evaluation", "report", "arms", "logs", "templates"}
    names = {path.name for path in finished.iterdir() if not path.name.startswith(".")}
    assert names == expected | {"run.json", "config.json", "contents.json"}
    assert {path.name for path in (finished / "arms").iterdir()} == {ARM}
    files = {path.relative_to(finished) for path in finished.rglob("*") if path.is_file()}
    assert [path for path in files if path.name.startswith(".")] == [Path(".lock")]
    left = {"unfinished.json", "staged", "units", "resume", "attempts", "tokens"}
    assert not [path for path in files if left & set(path.parts)]


def test_every_manifest_says_what_its_stage_came_from(finished):
    folders = [path.parent for path in finished.rglob("_manifest.json")]
    assert len(folders) == 8 + 3
    for folder in folders:
        found = manifest(folder)
        assert found["seconds"] > 0 and found["inputs"] and found["summary"]
        assert re.fullmatch(r"[0-9a-f]{16}", found["fingerprint"])
        assert {"python", "torch", "ray", "transformers"} <= set(found["versions"])
    reference = manifest(finished / "reference")
    assert reference["inputs"]["prepare"] == manifest(finished / "prepared")["fingerprint"]
    assert reference["summary"]["steps"] == STEPS and reference["summary"]["workers"] == 2


def test_prepared_rows_and_rejected_rows_add_up(finished):
    prepared, kept = table(finished / "prepared"), sum(NUM_ROWS.values())
    assert schema(prepared) == {
        "example_id": "string",
        "stratum": "string",
        "input_ids": "list<element: int32>",
        "response_starts": "list<element: int32>",
        "response_ends": "list<element: int32>",
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
    for step in (f"step-{step:06d}" for step in STEPS):
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
    centroid_KT = np.load(finished / "clusters" / "_centroids.npy", allow_pickle=False)
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

    text = (finished / arm / "subset" / "selected.jsonl").read_text()
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
    texts = [(place / "subset" / "selected.jsonl").read_text() for place in places]
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


@pytest.mark.parametrize("arm", [".", f"arms/{ARM}"])
def test_the_loss_in_the_training_ends_at_that_of_the_evaluation(finished, arm):
    measured = manifest(finished / arm / "target")["summary"]["held_out"]
    held = json.loads((finished / arm / "evaluation" / "metrics.json").read_text())["sets"]["held"]

    assert [step for step, _ in measured] == [12, 24, 30]
    assert measured[-1][1] == {"held": pytest.approx(held["loss_nats"]["mean"], rel=1e-5)}


def test_the_report_is_one_page_that_loads_nothing(finished):
    page = (finished / "report" / "index.html").read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy"\s+content="([^"]*)', page)
    assert policy and "default-src 'none'" in html.unescape(policy[1])
    assert "unsafe" not in policy[1]
    # What scripts contain, the policy stops; a browser is asked in tests/report/test_browser.py.
    markup = re.sub(r"(<script\b[^>]*>).*?(</script>)", r"\1\2", page, flags=re.DOTALL)
    loaded = (
        r"""(?:\bsrc|\bhref|\baction)\s*=\s*["']?(?!data:|\#)[^"'>\s]+|url\((?!["']?(?:data:|\#))"""
    )
    assert not re.findall(loaded, markup)
    assert "@import" not in markup and "<script src" not in markup
    assert all(stratum in page for stratum in NUM_ROWS)
