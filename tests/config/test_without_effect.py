"""Keys that nothing would read are refused by name; a stored configuration has all keys."""

import pytest
import yaml

from s2l_ray.config.load import from_tree, load
from s2l_ray.config.sections import TrajectoriesConfig
from s2l_ray.config.training import ReferenceConfig
from s2l_ray.errors import ConfigError

MODEL = {"architecture": {"model_type": "gpt_neox"}, "tokenizer": "there"}
POOL = {"train": ["pool.jsonl"]}
IMPORTED = {
    "run_dir": "run",
    "trajectories": {"path": "t.parquet"},
    "clusters": {},
    "selection": {"budget": 5},
}
SCORED = {
    "run_dir": "run",
    "data": POOL,
    "reference": {"path": "checkpoints"},
    "trajectories": {},
}
VALUES = {
    "precision": "fp32",
    "workers": {"min": 1, "max": 2},
    "checkpoints": {"every": 3},
    "warmup": 0.5,
    "queries": ["q.jsonl"],
    "embeddings": True,
    "error_norms": True,
    "without_prompt": True,
}


def loaded(tmp_path, tree, *overrides):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tree))
    return load(path, overrides)


@pytest.mark.parametrize("key", sorted(ReferenceConfig.model_fields.keys() - {"model", "path"}))
def test_no_key_of_a_training_goes_with_existing_checkpoints(tmp_path, key):
    tree = {**SCORED, "reference": {"path": "checkpoints", key: VALUES.get(key, 1)}}
    with pytest.raises(ConfigError, match=rf"reference\.{key}: nothing is trained beside"):
        loaded(tmp_path, tree)


@pytest.mark.parametrize("key", sorted(TrajectoriesConfig.model_fields.keys() - {"path"}))
def test_no_key_of_scoring_goes_with_existing_trajectories(tmp_path, key):
    tree = {**IMPORTED, "trajectories": {"path": "t.parquet", key: VALUES.get(key, 1)}}
    with pytest.raises(ConfigError, match=rf"{key}.*(nothing is scored beside|existing|set)"):
        loaded(tmp_path, tree)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {**IMPORTED, "data": POOL, "reference": {"model": MODEL}},
            "  reference: nothing is trained or scored beside",
        ),
        (
            {**SCORED, "reference": {"path": "c", "epochs": 1, "checkpoints": 12}},
            r"  reference\.epochs, reference\.checkpoints: ",
        ),
        (
            {**IMPORTED, "data": POOL, "target": {"model": MODEL, "evaluate_rows": 9}},
            r"  target\.evaluate_rows: nothing is measured in the training without",
        ),
        (
            {**SCORED, "data": {**POOL, "fields": {"messages": "m", "prompt": "q"}}},
            r"data\.fields\.prompt: all of a conversation is in",
        ),
    ],
)
def test_keys_without_effect_are_named_with_the_reason(tmp_path, tree, message):
    with pytest.raises(ConfigError, match=message):
        loaded(tmp_path, tree)


def test_overrides_count_as_keys_of_the_file(tmp_path):
    with pytest.raises(ConfigError, match=r"reference\.checkpoints"):
        loaded(tmp_path, SCORED, "reference.checkpoints=1")


def test_what_has_an_effect_is_accepted(tmp_path):
    texts = {"messages": "m", "context": None, "stratum": "s"}
    loaded(tmp_path, {**SCORED, "data": {**POOL, "max_tokens": 9, "fields": texts}})
    loaded(tmp_path, {**IMPORTED, "data": {**POOL, "max_tokens": 9, "tokenizer": "t"}})
    loaded(tmp_path, {**SCORED, "reference": {"model": MODEL, "epochs": 1, "max_steps": 3}})


def test_a_stored_configuration_has_all_keys(tmp_path):
    stored = loaded(tmp_path, SCORED).model_dump(mode="json")
    assert from_tree(stored, "config.json").reference.checkpoints == 12


def test_a_stored_configuration_is_run_again_from_its_file(tmp_path):
    stored = loaded(tmp_path, SCORED).model_dump(mode="json")

    assert loaded(tmp_path, stored).model_dump(mode="json") == stored
