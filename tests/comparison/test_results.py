"""Tables of a comparison, from trials that are written by hand."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from s2l_ray.comparison import results, shown
from s2l_ray.comparison.arms import ALL_DATA, NO_TRAINING, Arm
from s2l_ray.comparison.results import Outcome
from s2l_ray.storage.location import Location

RNG = np.random.default_rng(11)
NUM_ITEMS, SEEDS = 12, (3, 5)
STRATA = ["a"] * 9 + ["b"] * 3
LOSSES = {
    (label, seed): RNG.gamma(2.0, size=NUM_ITEMS) + level
    for label, level in (("random", 1.0), ("s2l", 0.2), ("worse", 3.0), (ALL_DATA, 0.0))
    for seed in SEEDS
}


def write_trial(
    trials: Location,
    name: str,
    losses: list[float | None],
    strata: Sequence[str] = STRATA,
    **numbers: Any,
) -> None:
    size = len(losses)
    items = pa.table(
        {
            "set": ["held"] * size,
            "item": range(size),
            "file": ["held.jsonl"] * size,
            "stratum": strata[:size],
            "completion": ["a long text"] * size,
            "correct": [place % 2 == 0 for place in range(size)],
            "loss_nats": pa.array(losses, pa.float32()),
            "num_response_tokens": pa.array([7] * size, pa.int32()),
            "rouge_l": pa.array([0.5] * size, pa.float32()),
        }
    )
    (trials / name / "items.parquet").write_table(items)
    counted = {"rows": 6, "training_tokens": 600, "seconds_training": 2.0, "flops_training": 1e9}
    (trials / name / "result.json").write_json({**counted, **numbers})


def arm(label: str, seed: int, **more: Any) -> Arm:
    given = {"method": label, "settings": {}, "budget": "6", "subset": "x", "num_rows": 6}
    return Arm(label=label, seed=seed, **{**given, **more})


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Location, list[Outcome]]:
    """Two seeds of three methods, all data, and a target that is not trained."""
    folder = Location.of(tmp_path)
    outcomes = []
    for (label, seed), loss_I in LOSSES.items():
        budget = "" if label == ALL_DATA else "6"
        cost = {"seconds_selecting": 4.0, "flops_selecting": 5e9} if label == "s2l" else {}
        outcomes.append(Outcome(arm(label, seed, budget=budget, **cost), f"{label}-{seed}"))
        write_trial(folder / "trials", f"{label}-{seed}", loss_I.tolist())
    untrained = arm(NO_TRAINING, SEEDS[0], budget="", subset="")
    outcomes.append(Outcome(untrained, "untrained"))
    write_trial(folder / "trials", "untrained", [9.0] * NUM_ITEMS, rows=0)
    return folder, outcomes


def rows_of(folder: Location, **wanted: Any) -> list[dict[str, Any]]:
    rows = results.read_table(folder).to_pylist()
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def write(finished: tuple[Location, list[Outcome]]) -> Location:
    folder, outcomes = finished
    results.write(folder, folder / "trials", outcomes)
    return folder


def test_every_arm_seed_set_and_metric_has_a_row(finished):
    table = (write(finished) / "results.parquet").read_table()

    metrics = {"loss", "exact-match", "rouge-l"}
    assert table.num_rows == 9 * 6
    assert set(table["metric"].to_pylist()) == metrics | {f"macro-{name}" for name in metrics}
    s2l = [row for row in table.to_pylist() if row["label"] == "s2l" and row["seed"] == 5]
    by_metric = {row["metric"]: row for row in s2l}
    loss_I = LOSSES["s2l", 5]
    assert by_metric["loss"]["value"] == pytest.approx(loss_I.mean(), rel=1e-6)
    expected = (loss_I[:9].mean() + loss_I[9:].mean()) / 2
    assert by_metric["macro-loss"]["value"] == pytest.approx(expected, rel=1e-6)
    assert by_metric["exact-match"]["value"] == 0.5
    row = by_metric["loss"]
    assert (row["items"], row["examples"], row["training_tokens"]) == (12, 6, 600)
    assert (row["seconds_selecting"], row["seconds_training"], row["flops"]) == (4.0, 2.0, 6e9)


def test_the_table_has_means_over_seeds_and_differences_to_random(finished):
    folder = write(finished)

    (s2l,) = rows_of(folder, label="s2l", metric="loss")
    mine = np.stack([LOSSES["s2l", seed] for seed in SEEDS])
    random = np.stack([LOSSES["random", seed] for seed in SEEDS])
    assert s2l["mean"] == pytest.approx(mine.mean(), rel=1e-6)
    assert s2l["difference"] == pytest.approx((mine - random).mean(), rel=1e-5)
    assert s2l["difference_low"] < s2l["difference"] < s2l["difference_high"]
    (baseline,) = rows_of(folder, label="random", metric="loss")
    assert baseline["difference"] is None
    assert baseline["p"] is None


def test_strata_of_equally_many_items_have_one_line_for_a_mean_and_one_interval(finished):
    folder, outcomes = finished
    for outcome in outcomes:
        losses = LOSSES.get((outcome.arm.label, outcome.arm.seed), [9.0] * NUM_ITEMS)
        write_trial(folder / "trials", outcome.trial, list(losses), strata=["a", "b"] * 6)
    assert {row["metric"] for row in rows_of(write(finished))} == {"loss", "exact-match", "rouge-l"}


def test_p_values_of_one_seed_are_those_of_paired_t_tests_corrected_by_holm(finished):
    folder, outcomes = finished
    one = [outcome for outcome in outcomes if outcome.arm.seed == 3]
    results.write(folder, folder / "trials", one)

    by_label = {row["label"]: row["p"] for row in rows_of(folder, metric="loss", budget="6")}

    def p(label: str) -> float:
        return stats.ttest_rel(LOSSES[label, 3], LOSSES["random", 3]).pvalue

    smaller, larger = sorted([p("s2l"), p("worse")])
    assert by_label["random"] is None
    expected = sorted([min(2 * smaller, 1), max(2 * smaller, larger)])
    assert sorted([by_label["s2l"], by_label["worse"]]) == pytest.approx(expected, rel=1e-2)


def test_all_data_is_compared_with_random_of_the_only_budget(finished):
    (row,) = rows_of(write(finished), label=ALL_DATA, metric="loss")

    assert row["difference"] is not None


def test_items_without_a_loss_are_left_out_of_both_sides(finished):
    folder, outcomes = finished
    missing = [None, *LOSSES["random", 3][1:].tolist()]
    write_trial(folder / "trials", "random-3", missing)
    results.write(folder, folder / "trials", outcomes)

    (s2l,) = rows_of(folder, label="s2l", metric="loss")

    mine = np.stack([LOSSES["s2l", seed] for seed in SEEDS])[:, 1:]
    random = np.stack([LOSSES["random", seed] for seed in SEEDS])[:, 1:]
    assert s2l["difference"] == pytest.approx((mine - random).mean(), rel=1e-5)


def test_items_have_no_texts(finished):
    table = (write(finished) / "items.parquet").read_table()

    assert table.num_rows == 9 * NUM_ITEMS
    assert {"label", "seed", "stratum", "loss_nats", "correct", "rouge_l"} < set(table.column_names)
    assert "completion" not in table.column_names


def test_trials_that_are_not_finished_have_no_rows(finished):
    folder, outcomes = finished
    results.write(folder, folder / "trials", [*outcomes, Outcome(arm("late", 3), "late-3")])

    assert rows_of(folder, label="late") == []


def test_the_terminal_shows_costs_scores_and_a_sentence(finished):
    text = "\n".join(shown.lines(results.read_table(write(finished))))

    assert "held: loss, nats per token (items count the same)" in text
    assert "held: loss, nats per token (strata count the same)" in text
    assert "the best mean is that of s2l" in text
    assert "random" in text


def test_a_metric_over_strata_of_one_size_is_shown_once(finished):
    folder, outcomes = finished
    for outcome in outcomes:
        table = (folder / "trials" / outcome.trial / "items.parquet").read_table()
        even = pa.array(["a", "b"] * (NUM_ITEMS // 2))
        table = table.set_column(table.schema.get_field_index("stratum"), "stratum", even)
        (folder / "trials" / outcome.trial / "items.parquet").write_table(table)
    results.write(folder, folder / "trials", outcomes)

    text = "\n".join(shown.lines(results.read_table(folder)))

    assert "loss, nats per token (items count the same)" in text
    assert "loss, nats per token (strata count the same)" not in text


def test_without_random_there_is_nothing_to_tell_methods_from(finished):
    folder, outcomes = finished
    others = [outcome for outcome in outcomes if outcome.arm.method != "random"]
    results.write(folder, folder / "trials", others)

    text = "\n".join(shown.lines(results.read_table(folder)))

    assert "At 6 there is no random to compare with; the best mean is that of s2l" in text
    assert "cannot be told" not in text


def test_before_a_trial_is_finished_no_table_is_written(tmp_path):
    folder = Location.of(tmp_path)

    results.write(folder, folder / "trials", [Outcome(arm("late", 3), "late-3")])

    assert folder.names() == []


def test_labels_with_commas_quotes_and_words_for_nothing_are_read_as_written(finished):
    folder, outcomes = finished
    labels = {"random": 'a, "b"', "s2l": "null", "worse": "NA"}
    named = [
        replace(one, arm=replace(one.arm, label=labels.get(one.arm.label, one.arm.label)))
        for one in outcomes
    ]
    results.write(folder, folder / "trials", named)

    read = {row["label"] for row in rows_of(folder)}

    assert read == {*labels.values(), ALL_DATA, NO_TRAINING}


def test_calls_are_rationed_to_a_tenth_of_the_time():
    now, called = 0.0, []

    def call() -> None:
        nonlocal now
        called.append(now)
        now += 1.0

    rationed = results.Rationed(call, lambda: now)
    for _ in range(50):
        rationed()
        now += 0.5

    assert called == [0.0, 10.0, 20.0]


@pytest.mark.parametrize(
    ("difference", "p", "metric", "verdict"),
    [
        (-0.1, 0.01, "loss", "s2l is better than random"),
        (0.1, 0.01, "loss", "s2l is worse than random"),
        (0.1, 0.01, "exact-match", "s2l is better than random"),
        (-0.1, 0.2, "loss", "s2l cannot be told from random with 3 seeds"),
        (-0.1, None, "loss", "s2l cannot be told from random with 3 seeds"),
    ],
)
def test_a_verdict_needs_a_small_p_value(difference, p, metric, verdict):
    common = {"set": "held", "metric": metric, "budget": "6", "low": None, "high": None, "seeds": 3}
    rows = [
        {**common, "label": "random", "mean": 1.0, "difference": None, "p": None},
        {**common, "label": "s2l", "mean": 1.0 + difference, "difference": difference, "p": p},
    ]

    assert verdict in shown.sentences(rows)[0]


def test_a_label_is_shown_as_it_is_written():
    row = {"set": "held", "metric": "loss", "budget": "6", "label": "s2l [mine] :star:", "seeds": 1}
    row |= {"examples": 6, "training_tokens": 600, "mean": 1.0, "seconds_training": 2.0}
    table = pa.Table.from_pylist([{**row, "flops": 1.0, "seconds_selecting": 0.0}], results.TABLE)

    assert sum("s2l [mine] :star:" in line for line in shown.lines(table)) == 3
