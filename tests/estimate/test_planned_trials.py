"""What `s2l plan` says about a comparison."""

import pytest

from s2l_ray.config.load import from_tree
from s2l_ray.errors import ConfigError
from s2l_ray.estimate import plan
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


def test_trials_are_counted_with_their_tokens(tree):
    found = line(tree)

    assert "18 trials: 2 methods x 2 budgets x 3 seeds, all data, no training" in found
    # Five steps of 4 rows; the last batch of an epoch is smaller: 6 rows give 4, 2, 4, 2 and 4.
    tokens = 3 * (2 * 16 + 2 * 19 + 20) * sum(NUM_TOKENS) / NUM_ROWS
    counted = int(found.split("at most ")[1].split(" tokens")[0].replace(",", ""))
    assert counted == pytest.approx(tokens, rel=0.02)
    assert "FLOP" in found


def test_epochs_cost_more_on_larger_subsets(tree):
    tree = changed(changed(tree, "comparison.steps", "epochs"), "target.epochs", 2.0)
    tree = changed(tree, "comparison.all_data", False)

    found = line(tree)

    assert "12 trials" not in found
    assert "15 trials" in found
    tokens = 2 * 3 * 2 * (6 + 15) * sum(NUM_TOKENS) / NUM_ROWS
    counted = int(found.split("at most ")[1].split(" tokens")[0].replace(",", ""))
    assert counted == pytest.approx(tokens, rel=0.05)


def test_a_method_that_compare_refuses_is_refused(tree):
    with pytest.raises(ConfigError, match="there is no method 's2k'"):
        line(changed(tree, "comparison.methods", ["s2k"]))


def test_a_configuration_without_the_section_has_no_line(tree):
    del tree["comparison"]

    assert not [x for x in plan.lines(from_tree(tree, "t"), tflops=1.0) if "trials" in x]
