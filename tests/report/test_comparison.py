"""The comparison in the report: whose line comes first, and what its sentence says."""

from dataclasses import replace

import pytest

from s2l_ray.errors import DataError
from s2l_ray.report import sentences
from s2l_ray.report.comparison import ComparedArm, comparison_view
from s2l_ray.storage.location import Location
from tests.report import compared


@pytest.fixture
def run(tmp_path) -> Location:
    run = Location.of(tmp_path)
    compared.write(run, compared.rows())
    return run


def test_a_run_that_was_not_compared_has_no_comparison(tmp_path):
    assert comparison_view(Location.of(tmp_path), "s2l", "384") is None


@pytest.mark.parametrize(
    ("method", "budget", "label", "of_budget"),
    [
        ("s2l", "384", "s2l", "384"),
        ("s2l", "1000", "s2l", "1000"),
        ("s2l", "0.11", "s2l", "384"),
        ("balanced-random", "384", "balanced-random (told the source)", "384"),
        ("el2n", "384", "s2l", "384"),
    ],
)
def test_the_page_begins_with_the_runs_own_method_and_budget(run, method, budget, label, of_budget):
    own = comparison_view(run, method, budget).own

    assert (own.label, own.budget) == (label, of_budget)
    assert (own.set, own.metric) == ("tasks", "macro-loss")


def test_beside_an_arm_stand_those_of_its_budget_and_of_none(run):
    view = comparison_view(run, "s2l", "384")

    beside = view.beside(view.own)

    assert [arm.label for arm in beside] == [*compared.ARMS, *compared.WHOLE]
    assert {arm.budget for arm in beside} == {"384", ""}
    assert view.own.seconds == pytest.approx(199.7)


def test_methods_are_known_by_their_labels_where_results_are_missing(run):
    (run / "comparison" / "results.parquet").remove()

    assert comparison_view(run, "s2l", "384").own.label == "s2l"


@pytest.mark.parametrize(
    "broken", ["set,metric\nx,loss\n", "set,metric,budget,label,mean\nx,loss,9,s2l,many\n"]
)
def test_a_table_that_was_edited_is_refused(run, broken):
    (run / "comparison" / "table.csv").write_bytes(broken.encode())

    with pytest.raises(DataError, match=r"table\.csv has a line that cannot be read.*s2l compare"):
        comparison_view(run, "s2l", "384")


OWN = ComparedArm("tasks", "loss", "384", "s2l", "s2l", mean=0.5, difference=-0.2, seeds=3)
RANDOM = ComparedArm("tasks", "loss", "384", "random", "random", mean=0.7)


@pytest.mark.parametrize(
    ("metric", "low", "high", "verdict"),
    [
        ("loss", -0.3, -0.1, "s2l is better."),
        ("loss", -0.3, 0.1, "includes zero: neither is shown to be better."),
        ("exact-match", -0.3, -0.1, "s2l is worse."),
        ("bleu", -0.3, 0.0, "includes zero: neither is shown to be better."),
    ],
)
def test_the_first_sentence_calls_an_arm_better_only_if_the_interval_excludes_zero(
    metric, low, high, verdict
):
    own = replace(OWN, metric=metric, difference_low=low, difference_high=high)

    sentence = sentences.compared_with_random(own, [own, replace(RANDOM, metric=metric)], 0.95)

    assert sentence.startswith(
        "On tasks, s2l scores 0.5 and a random subset of the same budget 0.7"
    )
    assert f"(95% interval -0.3 to {high:+.4g}, 3 seeds)" in sentence
    assert sentence.endswith(verdict)


@pytest.mark.parametrize(
    ("p", "verdict"),
    [(0.049, "s2l is better."), (0.052, "(Holm): neither is shown to be better.")],
)
def test_the_first_sentence_follows_the_corrected_p_value(p, verdict):
    own = replace(OWN, difference_low=-0.3, difference_high=-0.1, p=p)

    assert sentences.compared_with_random(own, [own, RANDOM], 0.95).endswith(verdict)


def test_without_a_random_subset_nothing_is_said_of_a_difference():
    assert "no random subset was trained" in sentences.compared_with_random(OWN, [OWN], 0.95)
    assert "has no interval" in sentences.compared_with_random(OWN, [OWN, RANDOM], 0.95)
