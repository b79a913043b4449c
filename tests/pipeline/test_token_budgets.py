"""Budgets in tokens of a run, checked against the counts that are those of today."""

import pytest

from s2l_ray.artifacts.manifest import MANIFEST
from s2l_ray.config.load import from_tree, parse_budget
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.pipeline import run as pipeline
from tests import handmade
from tests.handmade import changed, finish

BUDGET = {"budget": "100 tokens"}


@pytest.fixture
def tree(tmp_path):
    """Imported trajectories, and the data that they belong to."""
    tree = handmade.inputs(tmp_path)
    (tmp_path / "losses.parquet").write_bytes(b"1")
    imported = {key: tree[key] for key in ("run_dir", "data", "clusters", "selection")}
    return imported | {"trajectories": {"path": str(tmp_path / "losses.parquet")}}


@pytest.fixture
def uncounted(tree):
    """The manifest of a run that was prepared without a tokenizer."""
    place = finish(tree) / "prepared" / MANIFEST
    manifest = place.read_json()
    manifest["summary"]["tokens"] = 0
    place.write_json(manifest)
    return place


def run(tree):
    """In this process: a step that needs Ray finds no cluster."""
    loaded = from_tree(tree, "test")
    return pipeline.run(loaded, address="127.0.0.1:1", say=lambda line: None)


def test_a_tokenizer_that_is_given_later_is_not_refused_for_what_was_never_counted(
    tree, tmp_path, uncounted
):
    tree = changed(changed(tree, "selection", BUDGET), "data.tokenizer", f"{tmp_path}/tokenizer")
    # It comes as far as joining a cluster, which is not there.
    with pytest.raises(ConfigError, match="no Ray cluster answers"):
        run(tree)
    assert uncounted.exists()


def test_more_tokens_than_were_counted_are_refused(tree, tmp_path):
    tree = changed(tree, "data.tokenizer", f"{tmp_path}/tokenizer")
    finish(tree)
    with pytest.raises(DataError, match=r"more than the pool .* \(1,234 tokens\)"):
        run(changed(tree, "selection", {"budget": "1235 tokens"}))
    assert run(changed(tree, "selection", BUDGET))


@pytest.mark.parametrize("text", ["20M tokens", "20M TOKENS", "'20m Tokens'", "20_000_000 tokens"])
def test_a_budget_of_a_command_line_may_be_spelt_as_in_a_file(text):
    assert parse_budget(text, "--budget") == "20M tokens"
