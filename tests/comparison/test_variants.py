"""The methods of a comparison, from the section `comparison` of a configuration."""

from typing import Any

import pytest

from s2l_ray.comparison.arms import needs_scoring
from s2l_ray.comparison.run import check
from s2l_ray.comparison.variants import variants
from s2l_ray.config.load import from_tree
from s2l_ray.errors import ConfigError
from tests import handmade
from tests.pipeline.test_every_key import put


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> dict[str, Any]:
    return handmade.inputs(tmp_path_factory.mktemp("inputs"))


def compared(tree: dict[str, Any], *methods: Any, **section: Any):
    return variants(from_tree({**tree, "comparison": {"methods": list(methods), **section}}, "x"))


def test_a_method_has_the_settings_of_the_run(tree):
    tree = handmade.changed(tree, "selection.stratify", False)

    (found,) = compared(tree, "s2l")

    assert (found.label, found.method, found.settings) == ("s2l", "s2l", {})
    assert not found.selection.stratify
    assert found.config.clusters == from_tree(tree, "x").clusters


def test_a_method_carries_keys_of_selection_and_clusters(tree):
    item = {"method": "s2l", "stratify": False, "clusters": {"num_clusters": 2}}

    (found,) = compared(tree, item)

    assert found.label == "s2l (num_clusters 2, stratify false)"
    assert found.settings == {"stratify": False, "clusters": {"num_clusters": 2}}
    assert not found.selection.stratify
    assert found.config.clusters.num_clusters == 2
    assert found.config.clusters.rows_per_cluster == 1  # the run's own


def test_settings_that_a_method_ignores_do_not_come_from_the_run(tree):
    tree = {**tree, "selection": {"budget": 6, "within": "nearest", "stratify": False}}

    random, balanced = compared(tree, "random", "balanced-random")

    assert random.selection.within == balanced.selection.within == "random"


def test_only_methods_that_read_clusters_follow_the_seed_of_a_clustering(tree):
    found = compared(
        tree, "random", "s2l", {"method": "balanced-random", "clusters": {"num_clusters": 2}}
    )

    assert [item.needs_clusters for item in found] == [False, True, False]


def test_methods_that_see_strata_follow_a_clustering_that_finds_them(tree):
    tree = put(put(tree, "clusters.strata", "auto"), "trajectories.embeddings", True)

    told = {"method": "balanced-random", "clusters": {"strata": "field"}}
    found = compared(tree, "random", "balanced-random", "least-confidence", told)

    assert [item.label for item in found] == [
        "random",
        "balanced-random (over found strata)",
        "least-confidence",
        "balanced-random (strata field)",
    ]
    assert [item.needs_clusters for item in found] == [False, True, True, False]
    assert [needs_scoring(item) for item in found] == [False, True, True, False]
    assert found[3].has_own_strata


@pytest.mark.parametrize(
    ("settings", "follows", "needs"),
    [
        ({"where": "sqdist < 1"}, True, True),
        ({"where": "last_loss < 1 and tokens < 9"}, False, True),
        ({"where": "tokens < 9"}, False, False),
        ({"where": "source = 'math'"}, False, False),
    ],
)
def test_a_condition_may_need_clusters_or_losses(tree, settings, follows, needs):
    (found,) = compared(tree, {"method": "random", **settings})

    assert (found.needs_clusters, needs_scoring(found)) == (follows, needs)


@pytest.mark.parametrize(("score", "needs"), [("last_loss", True), ("quality", False)])
def test_a_score_may_need_losses(tree, score, needs):
    (found,) = compared(tree, {"method": "score", "score": score})

    assert needs_scoring(found) == needs


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["s2k"], "^comparison.methods.0: there is no method 's2k'; did you mean 's2l'"),
        (["s2l", {"method": "random", "where": "a <"}], "^comparison.methods.1.where: 'a <' is no"),
        (["score"], "^comparison.methods.0: `score` is not given"),
        ([{"method": "s2l", "stratfy": True}], r"selection.stratfy: unknown key; .*'stratify'"),
        ([{"method": "s2l", "clusters": {"k": 2}}], r"methods.0 \(s2l\)[^$]*clusters.k: unknown"),
        (
            [{"method": "random", "within": "nearest"}],
            "comparison.methods.0: `within` orders",
        ),
        (
            [{"method": "random", "stratify": False}],
            "methods.0: `stratify` has no effect on",
        ),
        ([{"method": "s2l", "budget": 3}], "`budget` is no setting of a method"),
        (["random", "random"], "`methods` names one twice"),
        (["s2l", {"method": "s2l", "stratify": True}], "2 are the same"),
        ([{"method": "s2l", "label": "a"}, {"method": "random", "label": "a"}], "one label"),
        ([], "methods"),
    ],
)
def test_a_method_that_cannot_be_compared_is_refused(tree, methods, message):
    with pytest.raises(ConfigError, match=message):
        compared(tree, *methods)


def test_a_setting_of_the_run_itself_keeps_its_name_in_messages(tree):
    with pytest.raises(ConfigError, match=r"^selection\.where: 'a <' is no"):
        compared(handmade.changed(tree, "selection.where", "a <"), "random")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"budgets": [0]}, "above zero"),
        ({"budgets": ["many"]}, "is no budget"),
        ({"seeds": [1, 1]}, "`seeds` names one twice"),
        ({"seeds": [-1]}, "greater than or equal to 0"),
        ({"steps": "same"}, "'equal' or 'epochs'"),
    ],
)
def test_a_wrong_section_is_refused(tree, section, message):
    with pytest.raises(ConfigError, match=message):
        compared(tree, "random", **section)


def test_a_comparison_needs_clusters_a_target_and_an_evaluation(tree):
    without = handmade.changed(tree, "evaluation", None)

    with pytest.raises(ConfigError, match=r"`comparison` also needs `evaluation`$"):
        compared(without, "random")


def test_a_configuration_without_the_section_is_refused_with_an_example(tree):
    with pytest.raises(ConfigError, match=r"no section `comparison`. Add one"):
        check(from_tree(tree, "x"))


def test_a_run_with_a_comparison_needs_no_selection_of_its_own(tree):
    (found,) = compared(handmade.changed(tree, "selection", None), "s2l", budgets=[5])

    assert found.selection.budget == 5


def test_a_method_that_needs_more_scoring_is_refused_before_anything_runs(tree):
    config = from_tree({**tree, "comparison": {"methods": ["random", "facility-location"]}}, "x")

    with pytest.raises(ConfigError, match="facility-location compares embeddings"):
        check(config)
