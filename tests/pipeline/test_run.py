"""Stale stages are done again, or refused; finished work stays."""

import contextlib
import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from s2l_ray.artifacts.manifest import MANIFEST
from s2l_ray.config.load import from_tree
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.pipeline import run as pipeline
from s2l_ray.pipeline import staleness
from s2l_ray.progress import duration
from s2l_ray.stages import NAMES as STAGES
from s2l_ray.storage.location import Location
from tests import handmade
from tests.handmade import changed, finish, planned, run


@pytest.fixture
def tree(tmp_path):
    return handmade.inputs(tmp_path)


def todo(tree, from_stage=None) -> list[str]:
    """The labels of the steps that a run would do, were it not refused."""
    return [step.label for step in staleness.stale(planned(tree), from_stage)]


def refuse(tree, from_stage=None) -> None:
    steps = planned(tree)
    staleness.refuse_discarding(steps, staleness.stale(steps, from_stage), from_stage)


def test_a_new_run_does_everything_and_a_finished_one_nothing(tree):
    assert todo(tree) == list(STAGES)
    finish(tree)
    assert todo(tree) == []


def test_an_interrupted_run_goes_on_after_its_last_finished_stage(tree):
    finish(tree, until="trajectories")

    assert todo(tree) == ["clusters", "selection", "target", "evaluation", "report"]
    refuse(tree)


@pytest.mark.parametrize("stage", STAGES)
def test_from_a_stage_that_stage_and_what_follows_is_done_and_nothing_is_refused(tree, stage):
    finish(tree)

    assert todo(tree, stage) == list(STAGES[STAGES.index(stage) :])
    refuse(tree, stage)


@pytest.mark.parametrize(
    ("key", "value", "finished", "stage", "way_on"),
    [
        ("reference.learning_rate", 0.5, "reference", "reference", "reference"),
        ("trajectories.precision", "bf16", "trajectories", "trajectories", "trajectories"),
        ("target.learning_rate", 0.5, "target", "target", "target"),
        ("data.max_tokens", 64, "reference", "reference", "prepare"),
        ("clusters.num_clusters", 9, "target", "target", "clusters"),
        ("selection.budget", 9, "report", "target", "selection"),
        ("seed", 9, "report", "reference", "reference"),
    ],
)
def test_finished_training_and_scoring_is_refused_with_the_key_and_both_ways_on(
    tree, key, value, finished, stage, way_on
):
    finish(tree, until=finished)
    tree = changed(tree, key, value)

    with pytest.raises(ConfigError) as refused:
        refuse(tree)
    message = str(refused.value)
    assert message.startswith(f"{stage} in {tree['run_dir']}/{stage} is finished")
    assert f" {key} changed. Redoing it would discard " in message
    # Every finished stage has taken as long.
    lost = message.split(" of work (")[1].split(")")[0].split(", ")
    assert message.split("discard ")[1].startswith(f"{duration(len(lost) * 3661)} of work")
    after = [name for name in ("reference", "trajectories", "target") if name in lost]
    assert after[0] == stage and (finished != "report" or after[-1] == "target")
    assert f"`--from {way_on}`" in message and "another run_dir" in message
    refuse(tree, way_on)


def test_the_content_of_a_file_that_changed_is_named_by_its_key(tree, tmp_path):
    finish(tree)
    (tmp_path / "pool.jsonl").write_text('{"instruction": "new", "output": "x"}\n')

    with pytest.raises(ConfigError, match=r"data\.train changed"):
        refuse(tree)


@pytest.mark.parametrize(
    ("key", "value", "until", "again"),
    [
        ("data.max_tokens", 64, "prepare", "prepare"),
        ("clusters.num_clusters", 9, "selection", "clusters"),
        ("selection.budget", 9, "selection", "selection"),
    ],
)
def test_what_costs_little_is_done_again_without_asking(tree, key, value, until, again):
    finish(tree, until=until)
    tree = changed(tree, key, value)

    assert todo(tree)[0] == again
    refuse(tree)


def test_a_refused_run_changes_nothing(tree, tmp_path):
    finish(tree)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    with pytest.raises(ConfigError, match=r"seed changed"):
        run(changed(tree, "seed", 1))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_finished_run_is_not_even_opened(tree, tmp_path):
    finish(tree)

    assert run(tree) == []
    assert not (tmp_path / "run" / ".lock").exists()


def test_another_budget_redoes_selection_and_report_alone(tree):
    tree = changed(changed(tree, "target", None), "evaluation", None)
    place = finish(tree)
    clusters = (place / "clusters" / MANIFEST).read_bytes()

    assert run(changed(tree, "selection.budget", 11)) == ["selection", "report"]
    assert (place / "clusters" / MANIFEST).read_bytes() == clusters
    lines = (place / "subset" / "selected.jsonl").read_bytes().splitlines()
    assert len(lines) == 11
    assert {**json.loads(lines[0])}.keys() == {
        "id",
        "instruction",
        "output",
        "source",
        "example_id",
    }
    assert run(changed(tree, "selection.budget", 11)) == []


def test_until_stops_there(tree):
    finish(tree, until="clusters")

    assert run(tree, until="selection") == ["selection"]
    assert todo(tree) == ["target", "evaluation", "report"]


def test_from_a_stage_until_a_stage_is_that_range(tree):
    finish(tree)

    assert run(tree, from_stage="selection", until="selection") == ["selection"]


def test_a_failed_stage_leaves_its_result_out_and_later_ones_undone(tree):
    finish(tree, until="clusters")
    place = Location.of(tree["run_dir"]) / "selection"

    with pytest.raises(DataError, match=r"selection\.budget: 31 examples are more than the pool"):
        run(changed(tree, "selection.budget", 31), until="selection")
    assert not (place / MANIFEST).exists()
    assert run(tree, until="selection") == ["selection"]


def test_what_came_from_a_redone_stage_is_to_do_until_that_stage_is_as_it_was(tree):
    tree = changed(changed(tree, "target", None), "evaluation", None)
    finish(tree)

    def interrupt(line):
        raise KeyboardInterrupt

    other = changed(tree, "selection.budget", 7)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(from_tree(other, "test"), say=interrupt)  # it says that the selection is done
    assert todo(other) == ["report"]
    assert todo(tree) == ["selection"]
    assert run(tree) == ["selection"] and todo(tree) == []
    assert todo(other) == ["selection", "report"]


def test_relative_paths_count_from_the_working_directory(tree, tmp_path, monkeypatch):
    finish(tree, until="clusters")
    monkeypatch.chdir(tmp_path)
    relative = changed(changed(tree, "run_dir", "run"), "data.train", ["pool.jsonl"])

    assert run(relative, until="selection") == ["selection"]
    assert (tmp_path / "run" / "subset" / "selected.jsonl").exists()


@pytest.mark.parametrize(
    ("summary", "line"),
    [
        (
            {"rows": 3_498, "num_clusters": 288, "inertia": 9.0186, "lloyd_sweeps": 1},
            "3,498 rows, 288 clusters, inertia 9.019, 1 lloyd sweep",
        ),
        (
            {"rows": 9, "kept": 8, "duplicates": 1, "cut": 2, "tokens": 70, "prompt_tokens": 5},
            "9 rows, 8 kept, 1 duplicate, 2 cut, 70 tokens",
        ),
        (
            {"rows": 9, "kept": 8, "duplicates": 0, "cut": 0, "tokens": 70, "prompt_tokens": 5},
            "9 rows, 8 kept, 0 duplicates, 70 tokens",
        ),
        (
            {"rows": 1, "selected": 1, "strata": {"math": 1}, "size_of_cluster": [1]},
            "1 row, 1 selected",
        ),
        (
            {"num_rows": 2, "num_rejected": 0, "num_steps": 1, "workers": 1, "num_tokens": 9},
            "2 rows, 0 rejected, 1 step, 1 worker",
        ),
        ({"converged": True, "loss_nats": 0.5}, "loss nats 0.5"),
        ({"rows": 3, "tokens": 9, "num_losses_before": 1}, "3 rows, 9 tokens"),
    ],
)
def test_the_line_of_a_stage_is_its_first_four_numbers(summary, line):
    assert pipeline.headline(summary) == line


@pytest.mark.ray
def test_trajectories_of_ones_own_become_a_ranking_and_each_stage_runs_once(s2l, tmp_path):
    loss_NT = np.random.default_rng(0).gamma(2.0, size=(30, 3))
    table = pa.table({"example_id": handmade.IDS, "loss_nats": loss_NT.tolist(), "other": [1] * 30})
    pq.write_table(table, tmp_path / "losses.parquet")
    handmade.inputs(tmp_path)
    tree = {
        "run_dir": str(tmp_path / "run"),
        "data": {"train": [str(tmp_path / "pool.jsonl")]},
        "trajectories": {"path": str(tmp_path / "*.parquet")},
        "clusters": {"num_clusters": 4, "rows_per_cluster": 1},
        "selection": {"budget": 0.2},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))

    first = s2l("run", tmp_path / "run.yaml")
    assert first.returncode == 0, first.stderr
    selected = tmp_path / "run" / "subset" / "selected.jsonl"
    ids = [json.loads(line)["example_id"] for line in selected.read_text().splitlines()]
    assert len(ids) == 6 and ids == sorted(ids, key=handmade.IDS.index)
    stages = ("prepared", "trajectories", "clusters")
    manifests = [tmp_path / "run" / stage / MANIFEST for stage in stages]
    before = [manifest.read_bytes() for manifest in manifests]

    again = s2l("run", tmp_path / "run.yaml")
    assert again.returncode == 0 and "nothing to do" in again.stdout

    other = s2l("run", tmp_path / "run.yaml", "--set", "selection.budget=9")
    assert other.returncode == 0, other.stderr
    assert "selection" in other.stdout and "clusters" not in other.stdout
    assert len(selected.read_text().splitlines()) == 9
    assert [manifest.read_bytes() for manifest in manifests] == before


def steps_of_a_training(tree, seen):
    """The steps `reference` and `trajectories` of a new run, of which the second only looks on."""
    _, reference, trajectories, *_ = planned(tree)

    @contextlib.contextmanager
    def ahead(progress):
        progress.start(6, "steps")
        yield
        seen.append(progress.reached)

    def train(progress):
        progress.update(4)
        return {}

    return (
        dataclasses.replace(reference, work=train),
        dataclasses.replace(trajectories, early=ahead, work=lambda progress: {"notes": ["slow"]}),
    )


def test_while_the_reference_trains_the_next_step_sees_how_far_it_is(tree):
    seen, said = [], []
    reference, trajectories = steps_of_a_training(tree, seen)

    for step, following in [(reference, None), (trajectories, reference)]:
        pipeline.carry_out(step, following, said.append)
        assert not seen
    pipeline.carry_out(reference, trajectories, said.append)
    assert seen == [4]
    assert said[2] == "    slow" and len(said) == 4


@pytest.mark.parametrize("went_on", [True, False])
def test_losses_outlive_a_stop_but_not_the_checkpoints_that_they_are_of(tree, went_on):
    reference, trajectories = steps_of_a_training(tree, [])
    reference.out.begin()
    trajectories.out.begin()
    losses = trajectories.out.location / "units" / "losses-000000-000000002.npy"
    losses.write_bytes(b"...")

    if not went_on:
        reference.out.location.remove()
    pipeline.carry_out(reference, trajectories, lambda line: None)
    assert losses.exists() == went_on
