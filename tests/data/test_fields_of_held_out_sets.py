"""Held-out sets whose rows have fields of other names than the pool."""

import json

import pytest

from s2l_ray.artifacts.inputs import Contents
from s2l_ray.config.load import from_tree
from s2l_ray.config.paths import paths_of
from s2l_ray.data import cleaning
from s2l_ray.data.held_out import read_prompts
from s2l_ray.errors import ConfigError
from s2l_ray.pipeline import staleness
from s2l_ray.storage.input_files import expand
from s2l_ray.storage.location import Location
from tests import handmade
from tests.handmade import finish, planned

OWN = {"prompt": "question", "response": "solution", "stratum": None}


def of_other_names(folder):
    """A configuration whose held-out rows have a question and a solution."""
    tree = handmade.inputs(folder)
    (folder / "other.jsonl").write_text(json.dumps({"question": "add 1", "solution": "2"}) + "\n")
    tree["data"]["eval"]["other"] = {"files": str(folder / "other.jsonl"), "fields": OWN}
    tree["evaluation"]["sets"] = ["held", "other"]
    return tree


def todo(tree):
    return [step.label for step in staleness.stale(planned(tree), None)]


def test_a_set_has_its_own_names_and_otherwise_those_of_the_pool(tmp_path):
    data = from_tree(of_other_names(tmp_path), "test").data

    assert data.of_set("held").fields == data.fields
    own = data.of_set("other").fields
    assert (own.prompt, own.response, own.stratum) == ("question", "solution", None)
    assert (own.context, own.answer) == (data.fields.context, data.fields.answer)


def test_a_stored_configuration_reads_as_the_same(tmp_path):
    config = from_tree(of_other_names(tmp_path), "test")
    stored = config.model_dump(mode="json")

    assert stored["data"]["eval"]["held"] == str(tmp_path / "held.jsonl")
    assert stored["data"]["eval"]["other"] == {
        "files": [str(tmp_path / "other.jsonl")],
        "fields": OWN,
    }
    assert from_tree(stored, "test") == config


def test_all_its_files_are_known_as_paths(tmp_path):
    config = from_tree(of_other_names(tmp_path), "test")

    names = ["held.jsonl", "other.jsonl"]
    assert paths_of(config)["data.eval"] == [str(tmp_path / name) for name in names]


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        ({"file": "x"}, r"data\.eval\.other\.file: unknown key; did you mean 'files'"),
        ({"files": "x", "fields": {"promt": "q"}}, r"other\.fields\.promt: .* mean 'prompt'"),
        ({"fields": {}}, r"data\.eval\.other\.files: Field required"),
        (3, r"data\.eval\.other: Input should be a valid string or a mapping, not 3"),
    ],
)
def test_a_set_that_is_written_wrongly_is_explained(tmp_path, held_out, message):
    tree = handmade.inputs(tmp_path)
    tree["data"]["eval"]["other"] = held_out

    with pytest.raises(ConfigError, match=message):
        from_tree(tree, "test")


def test_other_names_redo_the_evaluation_and_nothing_else(tmp_path):
    tree = of_other_names(tmp_path)
    finish(tree)
    assert todo(tree) == []

    tree["data"]["eval"]["other"]["fields"] = {**OWN, "answer": "short"}

    assert todo(tree) == ["evaluation", "report"]


def test_prompts_are_looked_for_in_the_pool_under_their_own_names(tmp_path):
    data = from_tree(of_other_names(tmp_path), "test").data

    sets = {name: expand(data.files_of(name)) for name in data.eval}
    prompts, unusable = read_prompts(sets, data)

    assert prompts["text"].to_pylist() == ["add 0", "add 1"]
    assert unusable == {"held": 0, "other": 0}


def test_what_is_dropped_from_the_pool_depends_on_the_names(tmp_path):
    tree = of_other_names(tmp_path)
    data = from_tree(tree, "test").data
    run, contents = Location.of(tmp_path / "run"), Contents({})
    drops = data.model_copy(update={"decontaminate": "drop"})

    before = cleaning.dropping_inputs(drops, run, contents)["data.eval contents"]

    assert len(before["held"]) == 1
    assert before["other"][1:] == [str(pair) for pair in OWN.items()]
