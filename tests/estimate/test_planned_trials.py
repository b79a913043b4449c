"""What `s2l plan` says about a comparison."""

import re

import pytest

from s2l_ray.comparison import run as comparison
from s2l_ray.comparison.arms import Cost, Selector
from s2l_ray.comparison.trials import trials_of
from s2l_ray.comparison.variants import variants
from s2l_ray.config.load import from_tree
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.estimate import plan
from s2l_ray.pipeline import steps
from s2l_ray.storage.location import Location
from tests import handmade
from tests.handmade import NUM_ROWS, NUM_TOKENS, changed


@pytest.fixture
def tree(tmp_path):
    made = handmade.inputs(tmp_path)
    made["comparison"] = {"methods": ["random", "s2l"], "budgets": [6, 0.5], "seeds": [1, 2, 3]}
    handmade.finish(made, until="clusters")
    return made


def line(tree) -> str:
    shown = plan.lines(from_tree(tree, "test"), tflops=1.0)
    (found,) = [text for text in shown if text.startswith("comparison ")]
    return found


def tokens_of(found: str) -> int:
    return int(found.split("at most ")[1].split(" tokens")[0].replace(",", ""))


def test_trials_are_counted_with_their_tokens(tree):
    found = line(tree)

    assert "18 trials: 2 methods x 2 budgets x 3 seeds, all data, no training" in found
    # Five steps of 4 rows; the last batch of an epoch is smaller: 6 rows give 4, 2, 4, 2 and 4.
    tokens = 3 * (2 * 16 + 2 * 19 + 20) * sum(NUM_TOKENS) / NUM_ROWS
    assert tokens_of(found) == pytest.approx(tokens, rel=0.02)
    assert "FLOP" in found


def test_budgets_above_the_pool_are_refused_as_by_a_comparison(tree, tmp_path, monkeypatch):
    large = changed(tree, "comparison.budgets", [6, 31])
    message = r"comparison\.budgets: 31 examples are more than the pool has \(30\)"
    with pytest.raises(DataError, match=message):
        plan.lines(from_tree(large, "test"), tflops=1.0)

    elsewhere = {**large, "run_dir": str(tmp_path / "not-prepared")}
    with pytest.raises(DataError, match=message):
        plan.lines(from_tree(elsewhere, "test"), tflops=1.0)
    monkeypatch.setattr("s2l_ray.data.first_rows.READ_ROWS", 10)
    monkeypatch.setattr("s2l_ray.data.first_rows.LEAST_READ", 10)
    huge = changed(elsewhere, "comparison.budgets", [6, 3_000])
    assert "of which the largest is more than there seem to be" in line(huge)


def test_epochs_cost_more_on_larger_subsets(tree):
    tree = changed(changed(tree, "comparison.steps", "epochs"), "target.epochs", 2.0)
    tree = changed(tree, "comparison.all_data", False)

    found = line(tree)

    assert "12 trials" not in found
    assert "15 trials" in found
    tokens = 2 * 3 * 2 * (6 + 15) * sum(NUM_TOKENS) / NUM_ROWS
    assert tokens_of(found) == pytest.approx(tokens, rel=0.05)


@pytest.fixture
def tree_of_random(tree):
    """The same with methods that need no clusters of their own for each seed."""
    return changed(tree, "comparison.methods", ["random", "balanced-random"])


def finish_trials(tree, names: set[str]) -> None:
    """Select all subsets, and leave the results of the trials of arms with these names."""
    config = from_tree(tree, "test")
    planned = steps.plan(config, Location.of(config.run_dir))
    made = comparison._Comparison(planned, variants(config), None, lambda line: None)
    selector = Selector(planned, made.folder, Cost(0.0, 0.0))
    arms = list(made._arms(selector))
    for arm, trial in zip(arms, trials_of(planned, arms, selector), strict=True):
        if arm.name in names:
            costs = {"flops_training": 6e9, "seconds_training": 60.0, "seconds_evaluating": 10.0}
            (made.trials_folder / trial.name / "result.json").write_json(costs)


def test_trials_that_are_there_are_counted_and_give_the_time_of_the_others(tree_of_random):
    tree = tree_of_random
    shown = plan.lines(from_tree(tree, "test"), tflops=1.0)
    assert any("time unknown: no finished trial has measured it" in text for text in shown)
    whole = line(tree)
    finish_trials(tree, {"random, 6", "balanced-random, 6", "balanced-random, 0.5"})

    assert "18 trials" in line(tree)
    assert "; 9 are finished, 9 to do; at most " in line(tree)
    assert tokens_of(line(tree)) < tokens_of(whole)
    shown = "\n".join(plan.lines(from_tree(tree, "test"), tflops=1.0))
    operations, minutes, seconds = re.search(
        r"tokens, ([\d.]+) GFLOP to train on\n +some (\d+):(\d\d) .* of the 9 finished ones", shown
    ).groups()
    # A finished one took 10 seconds for 1 GFLOP, and 10 to evaluate.
    expected = 10 * float(operations) + 9 * 10
    assert 60 * int(minutes) + int(seconds) == pytest.approx(expected, rel=0.01)
    assert line(changed(tree, "comparison.seeds", [1, 2, 3, 4])).count("9 are finished, 15 to do")


def test_another_largest_budget_changes_the_steps_of_all_trials(tree_of_random):
    tree = tree_of_random
    del tree["target"]["max_steps"]
    finish_trials(tree, {"random, 6", "random, 0.5"})
    assert "6 are finished, 12 to do" in line(tree)

    assert "are finished" not in line(changed(tree, "comparison.budgets", [6, 0.5, 20]))
    assert "6 are finished, 18 to do" in line(changed(tree, "comparison.budgets", [6, 0.5, 7]))


def test_a_comparison_without_open_trials_says_so(tree_of_random):
    tree = tree_of_random
    arms = {
        f"{method}, {budget}" for method in ("random", "balanced-random") for budget in (6, 0.5)
    }
    finish_trials(tree, {*arms, "all-data", "no-training"})

    assert line(tree).endswith("no training; all of them are finished")


def test_a_method_that_compare_refuses_is_refused(tree):
    with pytest.raises(ConfigError, match="there is no method 's2k'"):
        line(changed(tree, "comparison.methods", ["s2k"]))


def test_a_configuration_without_the_section_has_no_line(tree):
    del tree["comparison"]

    assert not [x for x in plan.lines(from_tree(tree, "t"), tflops=1.0) if "trials" in x]
