"""What of a chat's settings makes a finished stage another one."""

import datetime

import pytest

from s2l_ray.artifacts.extensions import BaseRun
from s2l_ray.artifacts.manifest import Manifest
from s2l_ray.config.data import DataConfig, FieldNames
from s2l_ray.config.sections import RunConfig
from s2l_ray.data.declaration import chat_inputs, data_of
from s2l_ray.storage.location import Location

CHAT = {"fields": FieldNames(messages="messages"), "template": "chat"}
DAY = datetime.date(2024, 7, 26)


@pytest.mark.parametrize(
    ("settings", "inputs"),
    [
        ({}, {}),
        ({"date": DAY}, {"data.date": "2024-07-26"}),
        ({"turns": "last"}, {"data.turns": "last"}),
        (CHAT, {"data.turns": "all", "data.date": "2025-01-01"}),
        ({**CHAT, "turns": "last", "date": DAY}, {"data.turns": "last", "data.date": "2024-07-26"}),
    ],
)
def test_turns_and_date_count_for_chats_and_where_they_are_set(settings, inputs):
    assert chat_inputs(DataConfig(train=["x"], **settings)) == inputs


@pytest.mark.parametrize(
    ("settings", "recorded", "turns"),
    [
        (CHAT, {}, "last"),  # what older versions learned
        (CHAT, {"data.turns": "all"}, "all"),
        ({}, {}, "all"),
    ],
)
def test_new_rows_of_an_older_run_are_learned_as_its_pool_was(tmp_path, settings, recorded, turns):
    config = RunConfig(run_dir="r", data=DataConfig(train=["x"], **settings))
    manifest = Manifest("prepare", "", recorded, {}, 0.0, "", {})
    base = BaseRun(Location.of(tmp_path), config, {"prepare": manifest})

    assert data_of(base).turns == turns
