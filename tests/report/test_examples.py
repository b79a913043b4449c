"""Texts of the examples on the page."""

import pytest

from s2l_ray.artifacts.finished import Finished
from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import rows_name, rows_table
from s2l_ray.config.data import DataConfig
from s2l_ray.report import examples
from s2l_ray.storage.location import Location

CHAT = [("user", "First?"), ("assistant", "One."), ("user", "Second?"), ("assistant", "Two.")]
MESSAGES = {"messages": [{"role": role, "content": text} for role, text in CHAT]}
CASES = {
    "chat": ({"fields": {"messages": "messages"}}, MESSAGES, ["First?", "One.", "Second?"]),
    "history": (
        {},
        {"instruction": "Second?", "output": "Two.", "history": [["First?", "One."]]},
        ["First?", "One.", "Second?"],
    ),
    "instruction": (
        {},
        {"instruction": "Translate:", "input": "eins", "output": "Two."},
        ["Translate:", "eins"],
    ),
}


@pytest.mark.parametrize(("section", "row", "expected"), CASES.values(), ids=CASES)
def test_what_was_asked_is_in_the_order_of_the_conversation(tmp_path, section, row, expected):
    folder = Location.of(tmp_path)
    (folder / rows_name(0)).write_table(rows_table([row], ["e0"], "pool.jsonl", [0]))
    manifest = StageDir(folder, "prepare", {}).finish({}, 1.0)
    finished = {"prepare": Finished("prepare", "", folder, manifest)}

    texts = examples._texts(finished, DataConfig(train=["x"], **section), ["e0"])

    prompt, response = texts["e0"]
    places = [prompt.index(text) for text in expected]
    assert places == sorted(places) and response == "Two."
