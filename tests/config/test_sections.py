"""The configuration: strict, frozen, and helpful when it is wrong."""

from pathlib import Path
from typing import get_args

import pytest

from s2l_ray.artifacts.manifest import section_inputs
from s2l_ray.config import clusters, selection
from s2l_ray.config.load import from_tree
from s2l_ray.errors import ConfigError
from s2l_ray.selection.methods import WITHIN

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
TREE = {
    "run_dir": "runs/x",
    "data": {"train": ["a.jsonl"], "eval": {"gsm8k": "b.jsonl"}},
    "reference": {"model": "small", "epochs": 3},
    "trajectories": {"workers": {"min": 1, "max": 4}},
    "clusters": {},
    "selection": {"budget": 0.11},
    "target": {"model": "large"},
    "evaluation": {"sets": ["gsm8k"]},
}


def changed(key, value):
    """TREE with one dotted key set."""
    tree = {name: dict(part) if isinstance(part, dict) else part for name, part in TREE.items()}
    node = tree
    *parents, leaf = key.split(".")
    for name in parents:
        node[name] = dict(node.get(name, {}))
        node = node[name]
    node[leaf] = value
    return tree


def test_a_path_of_a_template_may_have_a_brace():
    config = from_tree(changed("data.template", "/home/{me}/template.txt"), "test")
    assert config.data.template_files == {"template": "/home/{me}/template.txt"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("selection.bugdet", 5, r"selection\.bugdet: unknown key; did you mean 'budget'\?"),
        ("sed", 1, r"sed: unknown key; did you mean 'seed'\?"),
        ("data.fields.promt", "x", r"data\.fields\.promt: unknown key; did you mean 'prompt'\?"),
        ("trajectories.workers.mx", 3, r"trajectories\.workers\.mx: unknown key.*'max'"),
        ("reference.epochs", "3", r"reference\.epochs: .*valid number, not '3'"),
        ("reference.batch_size", 1.5, r"reference\.batch_size: .*integer"),
        ("seed", True, r"seed: .*valid integer, not True"),
        ("selection.budget", 0, "a budget must be above zero, not 0"),
        ("selection.budget", -3, "a budget must be above zero, not -3"),
        ("selection.budget", 1.5, r"fraction of the pool up to 1\.0, not 1\.5"),
        ("selection.budget", True, "selection"),
        ("clusters.num_clusters", 0, r"num_clusters: .*greater than 0 or 'auto', not 0$"),
        ("clusters.num_clusters", "many", r"num_clusters: .*integer or 'auto', not 'many'$"),
        ("clusters.scaling", "none", r"scaling: .*'raw', 'standardised' or 'shape', not 'none'$"),
        ("evaluation.sets", ["svamp"], "'svamp' is not a set of `data.eval`"),
        ("trajectories.workers", {"min": 5, "max": 4}, r"min \(5\) is above max \(4\)"),
        (
            "trajectories.workers",
            0,
            r"workers: Input should be greater than 0 or a mapping, not 0$",
        ),
        ("data.chat_template", "{% for m in messages %}x{% endfor %}", "text of a template: write"),
        ("data.template", "Q: {prompt}", r"data\.template: this is the text of a template"),
        ("reference.path", "checkpoints", "either `model`"),
        ("selection.baselines", ["s2l"], "repeats a method"),
        ("selection.budget", "20M", r"selection\.budget: '20M' is no budget: .*20M tokens"),
        ("selection.budget", "0 tokens", r"selection\.budget: .*above zero, not '0 tokens'$"),
        ("selection.method", 5, r"selection\.method: .*valid string, not 5$"),
        ("selection.within", "near", r"within: Input should be 'random', 'nearest', .*'near'$"),
        ("selection.weights", 2.0, r"selection\.weights: Input should be a mapping, not 2\.0$"),
        ("selection.weights", {"GSM8K": 0}, r"weights\.GSM8K: .*greater than 0, not 0$"),
        ("selection.weights", {"int": -1.0}, r"selection\.weights.*greater than 0, not -1\.0$"),
        ("selection.minimum", "x", r"minimum: .*valid integer or a mapping, not 'x'$"),
        ("selection.minimum", {"A": -1}, r"minimum\.A: .*greater than or equal to 0, not -1$"),
        ("selection.score", "scores.parquet#", r"a field or FILE#COLUMN, not 'scores.parquet#'"),
        ("selection.score_order", "best", r"score_order: Input should be 'highest' or 'lowest'"),
        ("selection.quantile", 1.5, r"quantile: .*less than or equal to 1, not 1\.5$"),
        ("selection.unlearned", "first", r"unlearned: Input should be 'keep' or 'last'"),
        ("selection.maximum", 0, r"maximum: .*greater than 0 or a mapping, not 0$"),
    ],
)
def test_a_wrong_key_or_value_is_named(key, value, message):
    with pytest.raises(ConfigError, match=message):
        from_tree(changed(key, value), "run.yaml")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"minimum": 3, "maximum": 2}, r"`minimum` \(3\) is above `maximum` \(2\)"),
        ({"minimum": 3, "maximum": {"a": 2}}, r"`minimum` of stratum 'a' \(3\) is above"),
        ({"minimum": {"a": 3}, "maximum": 2}, r"`minimum` of stratum 'a' \(3\) is above"),
    ],
)
def test_keys_of_the_selection_that_do_not_go_together_are_refused(section, message):
    with pytest.raises(ConfigError, match=message):
        from_tree({**TREE, "selection": {"budget": 5, **section}}, "run.yaml")


def test_bounds_of_different_strata_are_taken():
    section = {"budget": 5, "minimum": {"a": 3}, "maximum": {"b": 2}}
    assert from_tree({**TREE, "selection": section}, "run.yaml").selection.maximum == {"b": 2}


def test_queries_need_embeddings():
    section = {"queries": "asked.jsonl"}
    with pytest.raises(ConfigError, match=r"`queries` are compared .* `embeddings: true`"):
        from_tree({**TREE, "trajectories": section}, "run.yaml")
    loaded = from_tree({**TREE, "trajectories": section | {"embeddings": True}}, "run.yaml")
    assert loaded.trajectories.queries == ["asked.jsonl"]


def test_a_budget_of_tokens_has_one_spelling():
    loaded = from_tree(changed("selection.budget", "20_000_000 tokens"), "run.yaml")
    assert loaded.selection.budget == "20M tokens"
    assert from_tree(loaded.model_dump(mode="json"), "config.json") == loaded


def test_orders_inside_clusters_are_those_that_there_are():
    within = selection.SelectionConfig.model_fields["within"].annotation
    assert list(get_args(within)) == list(WITHIN)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("data", "`trajectories` needs `data`"),
        ("reference", "`trajectories` needs `reference`"),
        ("trajectories", "`clusters` needs `trajectories`"),
        ("clusters", "`selection` needs `clusters`"),
        ("selection", "`target` needs `selection`"),
        ("target", "`evaluation` needs `target`"),
    ],
)
def test_a_section_whose_origin_is_missing_is_refused(missing, message):
    tree = {name: part for name, part in TREE.items() if name != missing}
    with pytest.raises(ConfigError, match=message):
        from_tree(tree, "run.yaml")


@pytest.mark.parametrize(
    ("evaluation", "rows", "expected"),
    [
        ({"sets": ["gsm8k"]}, None, {"gsm8k": None}),
        ({"sets": ["gsm8k"], "max_items": 7}, 9, {"gsm8k": 7}),
        ({"sets": ["gsm8k"], "max_items": 7}, 5, {"gsm8k": 5}),
        (None, 5, {"gsm8k": 5, "svamp": 5}),
    ],
)
def test_what_is_measured_in_training_is_no_more_than_what_is_evaluated(evaluation, rows, expected):
    data = {**TREE["data"], "eval": {"gsm8k": "a.jsonl", "svamp": "b.jsonl"}}
    target = {**TREE["target"], "evaluate_every": 10, "evaluate_rows": rows}
    tree = {**TREE, "data": data, "target": target, "evaluation": evaluation}

    assert from_tree(tree, "run.yaml").held_out_sets == expected
    tree["target"] = TREE["target"]
    assert from_tree(tree, "run.yaml").held_out_sets == {}


def test_what_is_measured_in_training_has_to_be_there():
    tree = {**TREE, "data": {**TREE["data"], "eval": {}}, "evaluation": None}
    with pytest.raises(ConfigError, match=r"`target\.evaluate_every` needs held-out rows"):
        from_tree({**tree, "target": {**TREE["target"], "evaluate_every": 10}}, "run.yaml")


def test_trajectories_from_elsewhere_need_nothing_before_them():
    tree = {
        "run_dir": "x",
        "trajectories": {"path": "t/*.parquet"},
        "clusters": {},
        "selection": {"budget": 5},
    }
    assert from_tree(tree, "run.yaml").data is None


def test_a_sample_has_rows_enough_for_its_clusters_unless_told_otherwise():
    size = {k: clusters.ClustersConfig(num_clusters=k).sample_size for k in (5, 800, 2_000)}
    assert size == {5: 25_600, 800: 25_600, 2_000: 50_000}
    assert clusters.ClustersConfig(num_clusters=1_000, method="authors").sample_size == 25_600
    assert clusters.ClustersConfig(num_clusters=100, rows_per_sample=300).sample_size == 300
    with pytest.raises(ValueError, match=r"rows_per_sample \(300\) is below num_clusters \(301\)"):
        clusters.ClustersConfig(num_clusters=301, rows_per_sample=300)


def test_a_number_of_clusters_that_is_chosen_has_rows_for_the_largest_or_those_given():
    assert clusters.ClustersConfig(num_clusters="auto").sample_size >= 25 * clusters.MOST_CLUSTERS
    assert clusters.ClustersConfig(num_clusters="auto", rows_per_sample=30).sample_size == 30


@pytest.mark.parametrize(
    "changes", [{"scaling": "shape"}, {"scaling": "standardised"}, {"num_clusters": "auto"}]
)
def test_the_authors_k_means_scales_and_chooses_nothing(changes):
    clusters.ClustersConfig(**changes)
    with pytest.raises(ValueError, match="`method: authors` is the k-means of the authors' code"):
        clusters.ClustersConfig(method="authors", **changes)


def test_a_scaling_that_is_left_raw_is_no_input_of_what_was_finished_without_it():
    plain = section_inputs("clusters", clusters.ClustersConfig())
    assert "clusters.scaling" not in plain and plain["clusters.num_clusters"] == 100
    shaped = section_inputs("clusters", clusters.ClustersConfig(scaling="shape"))
    assert shaped == {**plain, "clusters.scaling": "shape"}
