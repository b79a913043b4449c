"""Paths of a run file, as a run stores them."""

from s2l_ray.config.load import from_tree
from s2l_ray.config.paths import stored_tree

MODEL = {"architecture": {"model_type": "gpt_neox"}, "tokenizer": "tokenizer"}
TREE = {
    "run_dir": "runs/mine",
    "data": {
        "train": ["pool*.jsonl", "s3://bucket/pool", "hf://org/name"],
        "eval": {"one": "~/held.jsonl", "two": {"files": ["held.jsonl"], "fields": {"id": "n"}}},
        "fields": {"messages": "messages"},
        "chat_template": "mine.jinja",
    },
    "reference": {"model": MODEL},
    "trajectories": {"queries": ["held.jsonl"], "embeddings": True},
    "clusters": {},
    "selection": {"budget": 6, "method": "score", "score": "scores/*.parquet#quality"},
    "target": {"model": "org/name"},
    "evaluation": {"sets": ["one"], "metrics": "bertscore", "bertscore": {"model": "tokenizer"}},
    "comparison": {"methods": [{"method": "score", "score": "other.parquet#quality"}]},
}


def test_paths_are_stored_as_absolute_ones_and_names_as_they_are(tmp_path, monkeypatch):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "mine.jinja").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    stored = stored_tree(from_tree(TREE, "test"))

    data = stored["data"]
    assert stored["run_dir"] == f"{tmp_path}/runs/mine"
    assert data["train"] == [f"{tmp_path}/pool*.jsonl", *TREE["data"]["train"][1:]]
    assert data["eval"]["one"] == f"{tmp_path}/home/held.jsonl"
    assert data["eval"]["two"]["files"] == [f"{tmp_path}/held.jsonl"]
    assert data["eval"]["two"]["fields"] == {"id": "n"}
    assert (data["chat_template"], data["template"]) == (f"{tmp_path}/mine.jinja", "auto")
    assert stored["reference"]["model"] == {**MODEL, "tokenizer": f"{tmp_path}/tokenizer"}
    assert stored["trajectories"]["queries"] == [f"{tmp_path}/held.jsonl"]
    assert stored["selection"]["score"] == f"{tmp_path}/scores/*.parquet#quality"
    (method,) = stored["comparison"]["methods"]
    assert method["selection"]["score"] == f"{tmp_path}/other.parquet#quality"
    assert stored["target"]["model"] == "org/name"
    assert stored["evaluation"]["bertscore"]["model"] == f"{tmp_path}/tokenizer"
    assert stored_tree(from_tree(stored, "config.json")) == stored


def test_templates_with_names_are_stored_as_they_are_beside_files_of_their_names(
    tmp_path, monkeypatch
):
    (tmp_path / "alpaca").touch()
    monkeypatch.chdir(tmp_path)
    tree = {"run_dir": "run", "data": {"train": ["pool.jsonl"], "template": "alpaca"}}

    assert stored_tree(from_tree(tree, "test"))["data"]["template"] == "alpaca"
