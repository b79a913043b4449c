"""One trial in this process: its training, its evaluation, and going on after an interruption."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2l_ray.comparison import separate
from s2l_ray.comparison import trial as trials
from s2l_ray.comparison.records import Trial
from s2l_ray.comparison.trial import TrialRunner
from s2l_ray.config.data import DataConfig
from s2l_ray.config.sections import EvaluationConfig
from s2l_ray.config.training import LoraConfig, RandomModel, TargetConfig
from s2l_ray.evaluation.evaluation_sets import staged_units
from s2l_ray.evaluation.stage import Evaluator
from s2l_ray.models.checkpoints import load_model, load_tokenizer
from s2l_ray.storage.input_files import expand
from s2l_ray.storage.location import Location
from s2l_ray.training import loop
from tests import small_run, tiny


class Interrupted(Exception):
    """Ends a training in the middle, as a lost worker does."""


@pytest.fixture
def runner(tmp_path: Path):
    """A function that makes a worker whose target has these settings."""
    tiny.tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "template.txt").write_text("Q: {prompt} A: ")
    rows = [{**row, "example_id": f"e{place}"} for place, row in enumerate(small_run.rows())]
    small_run.write_rows(tmp_path / "subset.jsonl", rows[:20])
    small_run.write_rows(tmp_path / "held.jsonl", rows[30:36])
    data = DataConfig(
        train=["unused"], template=str(tmp_path / "template.txt"), max_tokens=64,
        eval={"held": str(tmp_path / "held.jsonl")},
    )  # fmt: skip
    evaluation = EvaluationConfig(
        sets=["held"], max_new_tokens=3, rows_per_batch=2, precision="fp32"
    )
    staged = Location.of(tmp_path / "staged")
    staged_units(evaluation, data, {"held": expand([str(tmp_path / "held.jsonl")])}, staged)
    model = RandomModel(architecture=small_run.SHAPE, tokenizer=str(tmp_path / "tokenizer"))
    common = {"model": model, "batch_size": 4, "micro_batch_size": 2, "precision": "fp32"}

    def make(**target: Any) -> TrialRunner:
        config = TargetConfig(**{**common, "learning_rate": 1e-2, **target})
        folder = Location.of(tmp_path / "trials")
        return TrialRunner(config, data, evaluation, staged, folder, 0)

    return make


def unit(tmp_path: Path, name: str = "one", steps: int = 6) -> dict[str, Any]:
    subset = str(tmp_path / "subset.jsonl") if steps else ""
    return {"name": name, "rows": subset, "seed": 3, "steps": steps}


def losses(tmp_path: Path, name: str) -> np.ndarray:
    return (
        (Location.of(tmp_path / "trials") / name / "items.parquet")
        .read_table()["loss_nats"]
        .to_numpy()
    )


def result(tmp_path: Path, name: str) -> dict[str, Any]:
    return json.loads((tmp_path / "trials" / name / "result.json").read_text())


def test_a_trial_leaves_its_items_and_what_it_cost(runner, tmp_path):
    assert runner()(unit(tmp_path)) == {"trial": "one", "error": None}

    found = result(tmp_path, "one")
    assert (found["rows"], found["steps"], found["seed"]) == (20, 6, 3)
    assert found["training_tokens"] > 0
    assert found["flops_training"] > 6 * found["training_tokens"]
    assert len(losses(tmp_path, "one")) == 6
    assert sorted(path.name for path in (tmp_path / "trials" / "one").iterdir()) == [
        "items.parquet",
        "result.json",
    ]


def test_training_lowers_the_loss_of_rows_like_those_it_learns(runner, tmp_path):
    worker = runner()
    worker(unit(tmp_path, "none", steps=0))
    worker(unit(tmp_path, "many", steps=40))

    assert losses(tmp_path, "many").mean() < losses(tmp_path, "none").mean() - 1


def test_an_untrained_target_has_the_losses_of_the_stage_evaluation(runner, tmp_path):
    worker = runner()
    worker(unit(tmp_path, "none", steps=0))
    model = tmp_path / "model"
    load_model(worker.target.model, seed=3).save_pretrained(model)
    load_tokenizer(worker.target.model).save_pretrained(model)

    stage = Evaluator(Location.of(model), worker.evaluation, worker.data, worker.staged, 0)
    for staged in worker.plan["units"]:
        stage(staged)

    expected = np.concatenate(
        [file.read_table()["loss_nats"].to_numpy() for file in parts(worker.staged)]
    )
    np.testing.assert_allclose(losses(tmp_path, "none"), expected, atol=1e-6)


def parts(staged: Location) -> list[Location]:
    return [staged / name for name in staged.names() if name.startswith("part-")]


@pytest.mark.parametrize("settings", [{}, {"lora": LoraConfig(rank=2)}], ids=["whole", "adapters"])
def test_an_interrupted_trial_goes_on_to_the_same_bits(runner, tmp_path, monkeypatch, settings):
    runner(**settings)(unit(tmp_path, "whole"))
    worker, steps = runner(**settings, resume_every=2), loop.steps
    begun: list[int] = []

    def stops(engine, plan, *, start):
        begun.append(start)
        for report in steps(engine, plan, start=start):
            yield report
            if len(begun) == 1 and report.step == 5:
                raise Interrupted

    monkeypatch.setattr(trials.loop, "steps", stops)
    with pytest.raises(Interrupted):
        worker(unit(tmp_path, "stopped"))
    worker(unit(tmp_path, "stopped"))

    assert begun == [0, 4]
    np.testing.assert_array_equal(losses(tmp_path, "stopped"), losses(tmp_path, "whole"))
    again, whole = result(tmp_path, "stopped"), result(tmp_path, "whole")
    for key in ("training_tokens", "loss_nats", "rows", "flops_training"):
        assert again[key] == whole[key]


def test_a_state_that_was_saved_in_part_is_written_again(runner, tmp_path, monkeypatch):
    worker = runner(resume_every=2)
    resume = Location.of(tmp_path / "trials" / "stopped" / "resume")
    (resume / "step-00000002" / "state.json").write_bytes(b"{}")
    steps = loop.steps

    def stops(engine, plan, *, start):
        for report in steps(engine, plan, start=start):
            yield report
            if report.step == 3:
                raise Interrupted

    monkeypatch.setattr(trials.loop, "steps", stops)
    with pytest.raises(Interrupted):
        worker(unit(tmp_path, "stopped"))

    assert resume.names() == ["step-00000002"]
    assert (resume / "step-00000002" / loop.TENSORS).exists()


def test_a_random_target_that_is_not_trained_has_the_weights_of_its_seed(runner, tmp_path):
    target = runner().target
    trial = Trial("one", "", 3, 0)

    written = separate._untrained(trial, Location.of(tmp_path / "trial"), target)

    expected = load_model(target.model, seed=3).state_dict()
    found = load_model(written.uri).state_dict()
    for name, weight in expected.items():
        np.testing.assert_array_equal(found[name], weight)


def test_a_trial_that_fails_says_of_which_arm_it_is(runner, tmp_path):
    worker = runner(learning_rate=1e30, max_grad_norm=1e30)

    ended = worker({**unit(tmp_path), "label": "s2l, 0.1"})

    assert ended["trial"] == "one"
    assert ended["error"].startswith("s2l, 0.1, seed 3: training: the loss is")
    assert not (tmp_path / "trials" / "one" / "result.json").exists()


def test_a_finished_trial_is_not_trained_again(runner, tmp_path, monkeypatch):
    worker = runner()
    worker(unit(tmp_path))
    monkeypatch.setattr(worker, "_run", None)

    assert worker(unit(tmp_path)) == {"trial": "one", "error": None}


def test_a_trial_is_the_same_on_every_worker(runner, tmp_path):
    runner()(unit(tmp_path, "one"))
    other = runner()
    other(unit(tmp_path, "before", steps=3))
    other(unit(tmp_path, "two"))

    np.testing.assert_array_equal(losses(tmp_path, "two"), losses(tmp_path, "one"))
