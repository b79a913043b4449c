"""Finished work stays until what replaces it is known to be possible, wherever a run ends."""

import dataclasses
import itertools
import os
import shutil
from pathlib import Path

import pytest

from s2l_ray.artifacts.finished import finished_stages
from s2l_ray.artifacts.manifest import open_run
from s2l_ray.config.load import from_tree
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.pipeline import run as pipeline
from s2l_ray.pipeline import staleness, steps
from s2l_ray.pipeline.subset import config_of
from s2l_ray.stages import NAMES, STAGES
from s2l_ray.storage.location import Location
from tests import handmade
from tests.handmade import changed

COSTLY = ("reference", "trajectories", "target")
SERIAL = itertools.count()
POOL = {"kept": 30, "rows": 30, "tokens": 1234, "prompt_tokens": 34, "strata": {"": 30}}


@pytest.fixture
def tree(tmp_path):
    return handmade.inputs(tmp_path)


def worked(step: steps.RunPlan, plan: steps.RunPlan, pool: dict | None):
    """The step with work that leaves a file: what it is made from, and a name of its own.

    A step that repeats has the same name whenever it is made from the same.
    """

    def fill(out, progress):
        folders = {item.label: item.out.location for item in plan.steps}
        sources = [label for label in folders if label in step.out.inputs]
        came_from = {label: (folders[label] / "made").read_json()["name"] for label in sources}
        own = {k: v for k, v in step.out.inputs.items() if k not in folders}
        name = f"{step.label} {own} {came_from}" if step.repeats else f"made {next(SERIAL)}"
        (out.location / "made").write_json({"name": name, "from": came_from})
        if step.stage == "prepare" and pool is None:
            raise DataError("rows cannot be used")
        return pool or {} if step.stage == "prepare" else {"rows": 30}

    other = step.replacement
    if other is not None:
        other = dataclasses.replace(other, work=lambda progress: fill(other.out, progress))
    return dataclasses.replace(
        step, work=lambda progress: fill(step.out, progress), early=None, replacement=other
    )


def work(tree, from_stage=None, until=None, pool: dict | None = POOL) -> list[str]:
    """Do what `run` does, with small files in the place of long work; the steps that were to do."""
    place = Location.of(tree["run_dir"])
    plan = steps.plan(from_tree(tree, "test"), place)
    plan = dataclasses.replace(plan, steps=[worked(step, plan, pool) for step in plan.steps])
    todo = staleness.stale(plan.through(until), from_stage)
    staleness.refuse_discarding(plan.steps, todo, from_stage)
    open_run(place)
    pipeline.do_steps(plan, todo, from_stage, lambda line: None)
    return [step.label for step in todo]


def todo(tree) -> list[str]:
    return [step.label for step in staleness.stale(handmade.planned(tree), None)]


def made(tree) -> dict[str, str]:
    """Label -> the name of its result; of finished stages alone."""
    place = Location.of(tree["run_dir"])
    return {
        label: (item.folder / "made").read_json()["name"]
        for label, item in finished_stages(place, STAGES).items()
    }


def assert_consistent(tree) -> None:
    """Every stage that counts as finished was made from those that are there."""
    place = Location.of(tree["run_dir"])
    names = made(tree)
    for item in finished_stages(place, STAGES).values():
        for label, name in (item.folder / "made").read_json()["from"].items():
            folder = next(stage.folder for stage in STAGES if stage.name == label)
            if (place / folder).exists():
                assert names.get(label) == name, item.label


def test_a_pool_that_cannot_be_used_costs_nothing_finished(tree, tmp_path):
    work(tree)
    before = made(tree)
    other = changed(tree, "data.max_tokens", 64)

    with pytest.raises(DataError, match="rows cannot be used"):
        work(other, from_stage="prepare", pool=None)
    assert made(tree) == before and todo(tree) == []
    assert config_of(Location.of(tree["run_dir"])).data.max_tokens == 512
    with pytest.raises(ConfigError, match=r"data\.max_tokens changed"):
        work(other)


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (POOL | {"kept": 5}, "6 examples are more than the pool has"),
        (POOL | {"strata": {"code": 29, "math": 1}}, "no strata of the pool"),
    ],
)
def test_a_pool_that_is_too_small_is_refused_before_anything_is_discarded(tree, pool, message):
    work(tree)
    before = made(tree)
    other = changed(changed(tree, "data.max_tokens", 64), "selection.weights", {"maths": 2.0})
    if "too" in message or "more" in message:
        other = changed(tree, "data.max_tokens", 64)

    with pytest.raises(DataError, match=message):
        work(other, from_stage="prepare", pool=pool)
    assert made(tree) == before and todo(tree) == []
    # The rows are prepared; only their place is not taken yet.
    fits = changed(changed(tree, "data.max_tokens", 64), "selection.budget", 3)
    assert work(fits, from_stage="prepare", pool=None) == list(NAMES)
    assert todo(fits) == []
    assert not (Location.of(tree["run_dir"]) / "redone").exists()


def test_with_the_old_configuration_what_was_not_redone_is_current_again(tree):
    work(tree)
    before = made(tree)
    other = changed(tree, "clusters.num_clusters", 9)

    work(other, from_stage="clusters", until="selection")
    assert set(made(tree)) == set(NAMES) - {"target", "evaluation", "report"}
    assert work(tree) == ["clusters", "selection"]
    assert {label: made(tree)[label] for label in COSTLY} == {
        label: before[label] for label in COSTLY
    }


def test_a_redone_training_ends_what_came_from_the_old_one_whatever_the_configuration(tree):
    work(tree)
    other = changed(tree, "reference.learning_rate", 0.5)
    work(other, from_stage="reference", until="reference")

    assert set(made(tree)) == {"prepare", "reference"}
    with pytest.raises(ConfigError, match=r"reference\.learning_rate changed"):
        work(tree)
    work(tree, from_stage="reference", until="reference")
    assert todo(tree) == list(NAMES[2:])
    work(tree)
    assert todo(tree) == []
    assert_consistent(tree)


def test_a_reference_that_is_gone_is_not_trained_anew_under_losses_of_the_old_one(tree):
    work(tree)
    shutil.rmtree(Path(tree["run_dir"]) / "reference")

    assert todo(tree) == list(NAMES[1:])
    for until in (None, "reference"):
        with pytest.raises(ConfigError, match=r"trajectories in .* reference will be done again"):
            work(tree, until=until)
    work(tree, from_stage="reference")
    assert_consistent(tree)


def test_prepared_rows_that_are_gone_are_made_again_and_nothing_else(tree):
    work(tree)
    before = made(tree)
    shutil.rmtree(Path(tree["run_dir"]) / "prepared")

    assert work(tree) == ["prepare"]
    assert made(tree) == before


class Stopped(BaseException):
    """The program ends here, as by a signal that it cannot catch."""


def stop_at(monkeypatch, number: int) -> None:
    """Let the program end before its change of the disk of this number, from 0."""
    left = itertools.count(-number)

    def ending(change):
        def changing(*given, **named):
            if next(left) >= 0:
                raise Stopped
            return change(*given, **named)

        return changing

    for name in ("write_bytes", "remove", "move_to"):
        monkeypatch.setattr(Location, name, ending(getattr(Location, name)))


@pytest.mark.parametrize(
    ("from_stage", "key", "value"),
    [
        ("prepare", "seed", 42),
        ("prepare", "data.max_tokens", 64),
        ("reference", "seed", 42),
        ("reference", "reference.learning_rate", 0.5),
        ("selection", "selection.budget", 5),
    ],
)
def test_wherever_it_stops_what_counts_as_finished_fits_together(
    tree, tmp_path, monkeypatch, from_stage, key, value
):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    tree = changed(changed(tree, "evaluation", None), "selection.baselines", [])
    work(tree)
    other = changed(tree, key, value)
    kept = shutil.copytree(tree["run_dir"], tmp_path / "kept")
    for number in range(15):
        with monkeypatch.context() as patched:
            stop_at(patched, number)
            with pytest.raises(Stopped):
                work(other, from_stage=from_stage)
        assert_consistent(tree)
        # Every second time the user thinks better of it.
        config = other if number % 2 else tree
        try:
            work(config)
        except ConfigError:  # what is finished is not discarded without being asked for
            work(config, from_stage=from_stage)
        assert_consistent(config)
        assert len(made(config)) == len(NAMES) - 2 and todo(config) == []
        shutil.rmtree(tree["run_dir"])
        shutil.copytree(kept, tree["run_dir"])


def test_the_value_with_which_results_of_older_versions_stay_is_named(tree):
    handmade.finish(tree)  # as before there was `rows_per_cluster`: at 1 it is no input
    with pytest.raises(ConfigError) as error:
        work(changed(tree, "clusters", {"num_clusters": 3}))
    expected = "(results of older versions stay with `clusters.rows_per_cluster: 1`)"
    assert f"clusters.rows_per_cluster changed {expected}" in str(error.value)
    with pytest.raises(ConfigError) as error:
        work(changed(tree, "clusters.num_clusters", 4))
    assert "clusters.num_clusters changed. Redoing" in str(error.value)
