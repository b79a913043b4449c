"""A supplement is made with its stage, and made again by itself when its own inputs change."""

import dataclasses

import pytest

from s2l_ray.artifacts.stage import Step, Supplement, Task
from s2l_ray.data.declaration import PREPARE
from s2l_ray.pipeline import run as pipeline
from s2l_ray.pipeline.staleness import stale
from s2l_ray.pipeline.supplements import complete, incomplete
from s2l_ray.storage.location import Location


@pytest.fixture
def said():
    return []


@pytest.fixture
def step(tmp_path):
    """A step that counts its work in a file, with a supplement of these inputs."""
    done = tmp_path / "done"

    def work(name, summary):
        with done.open("a") as stream:
            stream.write(f"{name}\n")
        return summary

    def make(**inputs):
        supplement = Supplement(
            inputs, lambda out, _: work("list", {"found": inputs, "notes": [f"found {inputs}"]})
        )
        task = Task(
            {"rows": "same"},
            lambda out, _: work("rows", {"rows": 3, "notes": ["3 rows"]}),
            supplement=supplement,
        )
        return Step.of(PREPARE, task, Location.of(tmp_path / "run"))

    make.done = lambda: done.read_text().split()
    return make


def test_it_is_made_with_its_stage_and_not_again(step, said):
    pipeline.carry_out(step(sets=1), None, said.append)

    manifest = step(sets=1).out.manifest()
    assert manifest.summary["rows"] == 3 and manifest.summary["found"] == {"sets": 1}
    assert [line.strip() for line in said[1:]] == ["3 rows", "found {'sets': 1}"]
    assert incomplete([step(sets=1)]) == []


def test_other_inputs_make_it_again_and_leave_the_stage_current(step, said):
    pipeline.carry_out(step(sets=1), None, said.append)
    before, changed = step().out.manifest(), step(sets=2)

    assert stale([changed], None) == []
    assert incomplete([changed]) == [changed]
    complete(changed, said.append)

    after = step().out.manifest()
    assert step.done() == ["rows", "list", "list"]
    assert (after.fingerprint, after.finished) == (before.fingerprint, before.finished)
    assert after.summary["found"] == {"sets": 2} and after.summary["notes"] == ["3 rows"]
    assert said[-1].strip() == "found {'sets': 2}"
    assert incomplete([changed]) == []


def test_results_of_an_older_version_get_one_only_if_it_is_asked_for(step):
    older = step(sets=1)
    older.out.begin()
    older.out.finish({"rows": 3}, 1.0)
    assert incomplete([older]) == []
    asked_for = dataclasses.replace(older.supplement, is_asked_for=True)
    assert incomplete([dataclasses.replace(older, supplement=asked_for)]) != []


def test_a_stage_that_wanted_none_gets_one_when_it_does(step, said):
    pipeline.carry_out(step(), None, said.append)
    assert incomplete([step()]) == [] and len(incomplete([step(sets=1)])) == 1


def test_a_stale_stage_is_redone_with_it_and_is_not_only_completed(step):
    assert incomplete([step(sets=1)]) == []
    assert len(stale([step(sets=1)], None)) == 1
