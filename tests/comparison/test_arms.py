"""Arms and trials of a comparison, planned on a run that is finished up to its clusters."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from s2l_ray.artifacts.manifest import fingerprint
from s2l_ray.comparison import arms as arms_module
from s2l_ray.comparison import results
from s2l_ray.comparison import run as comparison
from s2l_ray.comparison.arms import ALL_DATA, NO_TRAINING, Arm, name_of
from s2l_ray.comparison.records import Ended, Trial
from s2l_ray.comparison.run import _Comparison
from s2l_ray.comparison.trial import TrialRunner
from s2l_ray.comparison.trials import shared_inputs, trials_of
from s2l_ray.comparison.variants import variants
from s2l_ray.config.load import from_tree
from s2l_ray.config.training import RandomModel
from s2l_ray.errors import ConfigError, DataError, ModelError
from s2l_ray.evaluation.evaluation_sets import staged_units
from s2l_ray.models.checkpoints import load_model, load_tokenizer
from s2l_ray.pipeline.steps import plan
from s2l_ray.pipeline.subset import choose_subset
from s2l_ray.storage.input_files import expand
from s2l_ray.storage.location import Location
from s2l_ray.training.target import selected_rows
from tests import handmade
from tests.pipeline.test_every_key import KEYS, put

LONGEST = "longest-responses"
SECTION = {"methods": ["random", "balanced-random"], "budgets": [6, 0.5], "seeds": [1, 2]}


@pytest.fixture
def tree(tmp_path, monkeypatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    made = {**handmade.inputs(tmp_path), "comparison": SECTION}
    made["data"]["eval"]["more"] = str(tmp_path / "held.jsonl")
    (tmp_path / "chat.jinja").write_text("{{ messages[0].content }}")
    handmade.finish(made, until="clusters")
    return made


def comparison_of(tree: dict[str, Any]) -> _Comparison:
    config = from_tree(tree, "test")
    steps = plan(config, Location.of(config.run_dir))
    return _Comparison(steps, variants(config), None, lambda line: None)


def planned(tree: dict[str, Any]) -> tuple[list[Arm], list[Trial], dict[str, Location]]:
    made = comparison_of(tree)
    selector = comparison.Selector(made.plan, made.folder, made._cost_of_scoring())
    arms = list(made._arms(selector))
    files = {arm.subset: selector.rows_file(arm.key) for arm in arms if arm.key}
    return arms, trials_of(made.plan, arms, selector), files


def test_every_method_budget_and_seed_is_an_arm_beside_all_data_and_no_training(tree):
    arms, _, _ = planned(tree)

    named = [(arm.label, arm.budget, arm.seed, arm.num_rows) for arm in arms]
    assert named == [
        *[
            (method, budget, seed, rows)
            for method in ("random", "balanced-random")
            for seed in (1, 2)
            for budget, rows in (("6", 6), ("0.5", 15))
        ],
        *[(ALL_DATA, "", seed, 30) for seed in (1, 2)],
        *[(NO_TRAINING, "", seed, 0) for seed in (1, 2)],
    ]


def test_a_subset_is_that_of_select_with_the_same_seed(tree):
    arms, _, files = planned(tree)
    run = Location.of(tree["run_dir"])

    for arm in arms[:8]:
        budget = 6 if arm.budget == "6" else 0.5
        expected = choose_subset(run, budget, arm.method, arm.seed).ids
        rows = [example_id for example_id, _ in selected_rows(files[arm.subset])]
        assert sorted(rows) == sorted(expected)


def test_arms_with_the_same_subset_and_seed_share_a_trial(tree):
    tree = put(tree, "comparison.budgets", [30])

    arms, trials, _ = planned(tree)

    whole = {arm.subset for arm in arms if arm.subset}
    assert len(whole) == 1  # a budget of 30 is all of the pool, whatever the method
    # Two seeds, trained and not: weights are random.
    assert len({trial.name for trial in trials}) == 2 + 2


@pytest.mark.parametrize(("steps", "expected"), [("equal", [5, 5, 5]), ("epochs", [6, 12, 24])])
def test_steps_are_equal_or_follow_the_epochs(tree, steps, expected):
    tree = put(tree, "comparison.steps", steps)
    tree = put(tree, "target.epochs", 3.0)

    arms, trials, _ = planned(tree)

    steps_of = {(arm.label, arm.budget): t.steps for arm, t in zip(arms, trials, strict=True)}
    assert [steps_of["random", "6"], steps_of["random", "0.5"], steps_of[ALL_DATA, ""]] == expected
    assert steps_of[NO_TRAINING, ""] == 0


def test_without_max_steps_all_take_the_steps_of_the_largest_budget(tree):
    tree = put(put(tree, "target.max_steps", None), "target.epochs", 2.0)

    arms, trials, _ = planned(tree)

    assert {t.steps for arm, t in zip(arms, trials, strict=True) if arm.subset} == {8}


def test_a_further_method_budget_or_seed_leaves_the_trials_that_there_are(tree):
    _, before, _ = planned(tree)
    more = {"methods": [*SECTION["methods"], "longest-responses"], "budgets": [6, 0.5, 9]}

    for key, value in {**more, "seeds": [1, 2, 3]}.items():
        _, after, _ = planned(put(tree, f"comparison.{key}", value))
        assert {trial.name for trial in before} < {trial.name for trial in after}


def test_trials_do_not_depend_on_the_spelling_of_paths(tree, tmp_path, monkeypatch):
    _, before, _ = planned(tree)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    spelled = {**tree["target"]["model"], "tokenizer": "../tokenizer"}
    tree = put(put(tree, "data.template", "../template.txt"), "target.model", spelled)

    assert planned(tree)[1] == before


def test_trials_that_an_older_version_began_go_on_under_their_names(tree):
    made = comparison_of(tree)
    _, trials, _ = planned(tree)
    old = {**shared_inputs(made.plan), "subset": "", "seed": 1, "steps": 0}
    assert old["data.template"] == tree["data"]["template"], "its spelling counted"
    (made.folder / "trials" / fingerprint(old) / "resume").write_bytes(b"1")

    _, after, _ = planned(tree)

    changed = [trial.name for trial in after if trial not in trials]
    assert changed == [fingerprint(old)]


def test_finished_losses_that_no_longer_fit_are_refused_before_rows_are_prepared(tree, tmp_path):
    prepared = Location.of(tree["run_dir"]) / "prepared" / "_manifest.json"
    before = prepared.read_bytes()
    (tmp_path / "template.txt").write_text("Question: {prompt} Answer: ")

    with pytest.raises(ConfigError, match=r"reference in .* is finished.*data\.template contents"):
        comparison.compare(from_tree(tree, "test"), say=lambda line: None)
    assert prepared.read_bytes() == before


def test_with_budgets_in_tokens_a_further_method_or_seed_changes_no_steps(tree):
    tree = put(put(tree, "target.max_steps", None), "target.batch_size", 1)
    tree = put(put(tree, "comparison.budgets", ["123 tokens"]), "comparison.seeds", [1])
    alone = [planned(put(tree, "comparison.methods", [name]))[1] for name in ("random", LONGEST)]
    tree = put(put(tree, "comparison.methods", ["random", LONGEST]), "comparison.seeds", [1, 2])

    arms, trials, _ = planned(tree)

    assert len({arm.num_rows for arm in arms if arm.budget}) > 1
    together = {trial.name for trial in trials}
    assert {trial.name for trials in alone for trial in trials} < together


def test_models_whose_commit_is_unknown_are_refused_before_a_trial(tree):
    made = comparison_of(tree)
    made.plan.contents.unknown.add("org/model")

    with pytest.raises(ModelError, match="org/model"):
        next(made._ended([Trial("a", "", 1, 0)], 0))


SHAPING = [
    key
    for key, (_, stages) in KEYS.items()
    if key.startswith(("target.", "evaluation."))
    and stages
    # How many steps a trial makes is among its own inputs; there is one engine.
    and key not in ("target.max_steps", "target.epochs", "evaluation.engine")
]
OF_DATA = ["data.template", "data.max_tokens", "data.fields.answer"]


@pytest.mark.parametrize("key", [*SHAPING, *OF_DATA])
def test_every_key_that_shapes_trials_is_among_their_inputs(tree, key):
    if key.startswith("target.lora"):
        tree = put(tree, "target.lora", {"rank": 2})
    changed = put(tree, key, KEYS[key][0])

    before, after = (shared_inputs(comparison_of(of).plan) for of in (tree, changed))
    assert before != after


def test_the_content_of_a_held_out_file_shapes_trials(tree, tmp_path):
    before = planned(tree)[1]
    (tmp_path / "held.jsonl").write_text('{"instruction": "add 9", "output": "z"}\n')

    assert not {t.name for t in before} & {t.name for t in planned(tree)[1]}


def test_the_content_of_rows_with_ids_of_their_own_shapes_the_trials_that_read_them(
    tree, tmp_path, monkeypatch
):
    arms, before, _ = planned(tree)
    rows = [{**row, "output": "y"} for row in handmade.ROWS]
    monkeypatch.setattr(handmade, "ROWS", rows)
    (tmp_path / "pool.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    handmade.finish(tree, until="clusters")

    _, after, files = planned(tree)

    same = [old.name == new.name for old, new in zip(before, after, strict=True)]
    assert same == [not arm.subset for arm in arms]
    read = [row["output"] for file in files.values() for _, row in selected_rows(file)]
    assert set(read) == {"y"}


def test_a_target_with_stored_weights_is_evaluated_untrained_once(tree, tmp_path):
    model = load_model(RandomModel(**tree["target"]["model"]))
    model.save_pretrained(tmp_path / "stored")
    load_tokenizer(RandomModel(**tree["target"]["model"])).save_pretrained(tmp_path / "stored")

    arms, trials, _ = planned(put(tree, "target.model", str(tmp_path / "stored")))

    untrained = [t.name for arm, t in zip(arms, trials, strict=True) if not arm.subset]
    assert len(untrained) == 2
    assert len(set(untrained)) == 1


@pytest.mark.parametrize(
    ("budget", "name"), [(384, "384"), (1e-05, "1e-05"), ("20M tokens", "20M tokens")]
)
def test_a_budget_has_the_name_that_the_configuration_gives_it(budget, name):
    assert name_of(budget) == name


def test_an_earlier_reference_costs_nothing_where_the_plan_has_none(tree):
    made = comparison_of(put(tree, "comparison.methods", ["s2l"]))
    both = made._cost_of_scoring()
    steps = [step for step in made.plan.steps if step.stage != "reference"]
    made.plan = replace(made.plan, steps=steps)

    assert made._cost_of_scoring().seconds == both.seconds / 2


def test_random_costs_nothing_to_select_and_s2l_the_reference_and_the_trajectories(tree):
    tree = put(tree, "comparison.methods", ["random", "least-confidence", "longest-responses"])

    arms, _, _ = planned(tree)

    cost = {arm.method: arm for arm in arms}
    assert cost["least-confidence"].seconds_selecting > 2 * 3661
    assert cost["least-confidence"].flops_selecting > 0
    for method in ("random", "longest-responses"):
        assert cost[method].seconds_selecting < 60
        assert cost[method].flops_selecting == 0


def test_a_budget_above_the_pool_is_refused_once_the_rows_are_counted(tree):
    config = from_tree(put(tree, "comparison.budgets", [31]), "test")

    with pytest.raises(DataError, match=r"^comparison\.budgets: 31 examples are more than"):
        comparison.compare(config, say=lambda line: None)


def test_a_subset_that_is_known_is_not_selected_again(tree, monkeypatch):
    first = planned(tree)[:2]
    monkeypatch.setattr(arms_module.selection, "rank", None)
    monkeypatch.setattr(arms_module.selection, "load_pool", None)

    assert planned(tree)[:2] == first


def test_rows_of_a_known_subset_are_written_again_for_a_new_trial(tree):
    arms, trials, files = planned(tree)
    before = {name: file.read_bytes() for name, file in files.items()}
    made = comparison_of(tree)
    selector = comparison.Selector(made.plan, made.folder, made._cost_of_scoring())
    (made.folder / arms_module.ROWS).remove()  # as at the end of a comparison

    made._write_rows(selector, arms, {trial.rows for trial in trials})

    assert {name: file.read_bytes() for name, file in files.items()} == before


def test_rows_that_an_interrupted_comparison_has_left_are_not_written_again(tree, monkeypatch):
    _, trials, _ = planned(tree)
    made = comparison_of(tree)
    selector = comparison.Selector(made.plan, made.folder, made._cost_of_scoring())
    monkeypatch.setattr(arms_module.selection, "write_selected", None)

    made._write_rows(selector, list(made._arms(selector)), {trial.rows for trial in trials})


def test_all_data_are_other_rows_where_the_pool_changed_and_brought_losses_did_not(tree):
    made = comparison_of(tree)
    before = comparison.Selector(made.plan, made.folder, made._cost_of_scoring())
    prepared, *others = made.plan.steps
    out = replace(prepared.out, inputs={**prepared.out.inputs, "data.train": ["other"]})
    changed = replace(made.plan, steps=[replace(prepared, out=out), *others])

    after = replace(before, plan=changed)

    assert after.whole_pool()["key"] != before.whole_pool()["key"]


def test_other_settings_of_a_method_are_another_subset(tree):
    keys = {arm.key for arm in planned(tree)[0]}
    changed = {
        "clusters.num_clusters": 4,
        "data.rows_per_part": 7,
        "selection.weights": {"math": 2},
    }

    for key, value in changed.items():
        other = put(tree, key, value)
        methods = ["balanced-random"]
        other = put(other, "comparison.methods", methods)
        handmade.finish(other, until="clusters")
        assert not keys & {arm.key for arm in planned(other)[0] if arm.budget}, key


class InThisProcess(_Comparison):
    """A comparison whose trials run here, one after the other; the first of them fails."""

    def _ended(self, todo, finished):
        config = self.plan.config
        staged = self.folder / "staged"
        files = {"held": expand([config.data.eval["held"]])}
        staged_units(config.evaluation, config.data, files, staged)
        runner = TrialRunner(
            self.target, config.data, config.evaluation, staged, self.folder / "trials", 0
        )
        yield Ended(todo[0].name, "random, 6, seed 1: the loss is nan")
        for trial in todo[1:]:
            yield Ended(**runner(asdict(trial)))


def test_a_trial_that_fails_does_not_stop_the_others(tree):
    tree = put(put(tree, "evaluation.precision", "fp32"), "target.precision", "fp32")
    config = from_tree(put(tree, "comparison.seeds", [1]), "test")
    steps = plan(config, Location.of(config.run_dir))
    said: list[str] = []

    with pytest.raises(DataError, match=r"1 of 6 trials failed, .* \(first: random, 6"):
        InThisProcess(steps, variants(config), None, said.append).make()

    assert said[0] == "  failed: random, 6, seed 1: the loss is nan"
    table = results.read_table(steps.run / "comparison")
    assert len(set(zip(table["label"].to_pylist(), table["budget"].to_pylist(), strict=True))) == 5
    with pytest.raises(DataError, match="1 of 1 trials failed"):
        InThisProcess(steps, variants(config), None, said.append).make()
