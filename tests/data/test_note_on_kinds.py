"""Where no field tells kinds of rows apart, the user learns it before anything is trained."""

import pytest

from s2l_ray.config.sections import RunConfig
from s2l_ray.data.declaration import note_on_kinds

MODEL = {"architecture": {"model_type": "gpt2"}, "tokenizer": "t"}


def config(**sections):
    data, reference = {"train": ["pool.jsonl"]}, {"model": MODEL}
    usual = {"data": data, "reference": reference, "trajectories": {}, "clusters": {}}
    return RunConfig.model_validate({"run_dir": "r", **usual, **sections})


def test_one_stratum_is_worth_a_note():
    (note,) = note_on_kinds(config(), 1)
    assert note.startswith("all rows are of one stratum: ") and "{strata: auto}" in note


@pytest.mark.parametrize(
    ("sections", "num_strata"),
    [
        ({}, 2),
        ({"clusters": None}, 1),
        ({"clusters": {"strata": "auto"}, "trajectories": {"embeddings": True}}, 1),
        ({"reference": None, "trajectories": {"path": "losses.parquet"}}, 1),
    ],
    ids=["strata", "no clusters", "found strata", "brought losses"],
)
def test_nothing_is_said_where_it_would_not_help(sections, num_strata):
    assert note_on_kinds(config(**sections), num_strata) == []
