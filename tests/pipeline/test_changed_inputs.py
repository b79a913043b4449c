"""Inputs that change while a step is done: nothing of it counts, and the file is named."""

import dataclasses
import os

import pytest

from s2l_ray.artifacts.finished import finished_stages
from s2l_ray.artifacts.manifest import open_run
from s2l_ray.config.load import from_tree
from s2l_ray.errors import DataError
from s2l_ray.pipeline import run as pipeline
from s2l_ray.pipeline import staleness, steps
from s2l_ray.pipeline.subset import choose_subset
from s2l_ray.stages import STAGES
from s2l_ray.storage.location import Location
from tests import handmade
from tests.handmade import changed, finish, planned

LONG_AGO = 10**18


@pytest.fixture
def tree(tmp_path):
    made = handmade.inputs(tmp_path)
    for name in ("pool.jsonl", "template.txt", "tokenizer/tokenizer.json"):
        os.utime(tmp_path / name, ns=(LONG_AGO, LONG_AGO))
    return made


def work(tree, edit, in_stage: str) -> None:
    """Do all steps, of which one has `edit` for its work and the others have none."""
    place = Location.of(tree["run_dir"])
    plan = steps.plan(from_tree(tree, "test"), place)

    def fill(step):
        def filled(progress):
            if step.stage == in_stage:
                edit()
            return {"rows": 30, "kept": 30, "tokens": 1234, "strata": {}}

        return dataclasses.replace(step, work=filled, early=None, replacement=None)

    plan = dataclasses.replace(plan, steps=[fill(step) for step in plan.steps])
    open_run(place)
    todo = staleness.stale(plan.steps, None)
    pipeline.do_steps(plan, todo, None, lambda line: None)


def finished(tree) -> list[str]:
    return list(finished_stages(Location.of(tree["run_dir"]), STAGES))


@pytest.mark.parametrize(
    ("name", "in_stage", "stopped", "key"),
    [
        ("template.txt", "prepare", "prepare", r"data\.template contents"),
        ("pool.jsonl", "prepare", "prepare", r"data\.train"),
        ("tokenizer/tokenizer.json", "reference", "reference", r"reference\.model contents"),
        # Of no importance to the reference, and read again by the target.
        ("template.txt", "reference", "target", r"data\.template contents"),
        ("held.jsonl", "prepare", "evaluation", r"data\.eval\.held"),
    ],
)
def test_an_edited_file_stops_the_next_step_that_reads_it(
    tree, tmp_path, name, in_stage, stopped, key
):
    path = tmp_path / name
    before = path.read_bytes()

    with pytest.raises(DataError, match=rf"^{stopped}: .*{key}.* changed while .*{name}"):
        work(tree, lambda: path.write_bytes(before + b" "), in_stage)
    done = [stage.name for stage in STAGES]
    assert finished(tree) == done[: done.index(stopped)]
    path.write_bytes(before)
    work(tree, lambda: None, in_stage)
    assert finished(tree) == done[:-1]


def test_an_edit_of_the_same_size_and_date_is_noticed_when_it_follows_at_once(tree, tmp_path):
    path = tmp_path / "template.txt"
    path.write_text("Q: {prompt} A: ")
    status = path.stat()

    def edit():
        path.write_text("A: {prompt} Q: ")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    with pytest.raises(DataError, match=r"data\.template contents changed while"):
        work(tree, edit, "prepare")


def test_a_file_that_is_gone_or_new_stops_the_step_as_well(tree, tmp_path):
    with pytest.raises(DataError, match=r"reference\.model contents changed while"):
        work(tree, (tmp_path / "tokenizer" / "added_tokens.json").touch, "reference")
    with pytest.raises(DataError, match=r"data\.train: .*pool\.jsonl matches no file"):
        work(tree, (tmp_path / "pool.jsonl").unlink, "prepare")


@pytest.mark.parametrize("is_prepared", [True, False])
def test_clusters_of_other_rows_are_read_neither_by_select_nor_as_finished(
    tree, tmp_path, is_prepared
):
    finish(tree)
    place = Location.of(tree["run_dir"])
    choose_subset(place, 5)
    (tmp_path / "pool.jsonl").write_text('{"instruction": "new", "output": "x"}\n')
    prepare, *_ = planned(tree)
    prepare.out.begin()
    if is_prepared:
        prepare.out.finish({"rows": 1, "kept": 1}, 1.0)

    assert finished(tree) == ["prepare"] * is_prepared
    with pytest.raises(DataError, match="no finished clusters that fit its data"):
        choose_subset(place, 5)


def test_a_ranking_after_other_clusters_is_not_current(tree):
    finish(tree)
    clusters = planned(changed(tree, "clusters.num_clusters", 9))[3]
    clusters.out.begin()
    clusters.out.finish({"rows": 30}, 1.0)

    assert finished(tree) == ["prepare", "reference", "trajectories", "clusters"]
