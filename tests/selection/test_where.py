"""`selection.where`, through the stage: only examples for which it holds are ranked and counted."""

import numpy as np
import pytest

from s2l_ray.errors import ConfigError, DataError
from s2l_ray.selection.methods import METHODS
from s2l_ray.storage.location import Location
from tests.pool_of_sixty import (
    CLUSTERS,
    IDS,
    LOSSES,
    NUM_ROWS,
    ROWS,
    STRATA,
    TOKENS,
    in_order,
    jsonl,
    order_of,
    ranking,
    selected,
    write_clusters,
    write_rows,
)

OWN = [
    row
    | ({"grade": row["quality"] / 2} if number % 5 else {"grade": None})
    | {"meta": {"lang": "en" if number % 3 else "de"}, "tokens": 100 + number}
    for number, row in enumerate(ROWS)
]


@pytest.fixture
def folder(tmp_path) -> Location:
    return Location.of(tmp_path)


@pytest.fixture
def rows(folder):
    return write_rows(folder / "rows", in_order(5), OWN)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("quality >= 6", lambda n: ROWS[n]["quality"] >= 6),
        ("grade >= 3", lambda n: OWN[n]["grade"] is not None and OWN[n]["grade"] >= 3),
        ("meta.lang = 'de'", lambda n: n % 3 == 0),
        ("input is null and cluster < 4", lambda n: n != 55 and CLUSTERS[n] < 4),
        ("stratum = 'code' or cluster = 2", lambda n: STRATA[n] == "code" or CLUSTERS[n] == 2),
        ("run.tokens < 12 and row.tokens < 150", lambda n: TOKENS[n] < 12 and n < 50),
        ("last_loss > 1", lambda n: LOSSES[n, -1] > 1),
        ("loss_drop > 0", lambda n: LOSSES[n, 0] > LOSSES[n, -1]),
    ],
)
def test_only_examples_for_which_it_holds_are_ranked(folder, rows, condition, holds):
    summary, out = selected(folder / "out", rows=rows, where=condition)

    left = {number for number in range(NUM_ROWS) if holds(number)}
    assert set(order_of(out)) == left and 12 <= len(left) < NUM_ROWS
    assert {row["example_id"] for row in jsonl(out)} <= {IDS[number] for number in left}
    assert (summary["rows"], summary["remaining"], summary["selected"]) == (60, len(left), 12)


@pytest.mark.parametrize("method", ["s2l", "s2l-authors", "middle-perplexity", "rds-plus"])
def test_a_method_ranks_what_is_left_as_if_there_were_nothing_else(folder, rows, method):
    left = [number for number in range(NUM_ROWS) if ROWS[number]["quality"] >= 4]
    clusters = write_clusters(folder / "left", [left])
    keys = {"method": method, "budget": 9}

    _, out = selected(folder / "out", rows=rows, where="quality >= 4", **keys)
    _, alone = selected(folder / "alone", clusters, rows, **keys)

    assert ranking(out) == ranking(alone)


def test_what_is_missing_is_counted(folder, rows):
    summary, _ = selected(folder / "out", rows=rows, where="grade >= 0")
    assert summary["notes"] == [
        "selection.where holds for 48 of 60 examples; for 12 others a value is missing (null)"
    ]


def test_a_condition_does_not_depend_on_how_examples_lie_in_parts(folder, rows):
    shuffled = np.array_split(np.random.default_rng(4).permutation(NUM_ROWS), 3)
    other = write_rows(folder / "other", [shuffled[0], [], *shuffled[1:]], OWN)
    keys = {"where": "grade >= 2 and meta.lang = 'en' and run.tokens > 5"}

    one, out = selected(folder / "one", rows=rows, **keys)
    two, other_out = selected(folder / "two", rows=other, **keys)

    assert one == two and ranking(out) == ranking(other_out)


def test_a_fraction_is_one_of_the_whole_pool(folder, rows):
    summary, _ = selected(folder / "out", rows=rows, where="quality >= 4", budget=0.25)
    assert summary["selected"] == 15


def test_a_budget_of_tokens_counts_what_is_left(folder, rows):
    keys = {"where": "quality >= 4", "stratify": False, "method": "score", "score": "quality"}
    summary, out = selected(folder / "out", rows=rows, budget="90 tokens", **keys)
    sums = np.cumsum([TOKENS[row] for row in order_of(out)])
    assert summary["selected"] == (sums <= 90).sum()

    total = sums[-1]
    with pytest.raises(
        DataError, match=rf"{total + 1:,} tokens: .* and they have {total:,} tokens"
    ):
        selected(folder / "more", rows=rows, budget=f"{total + 1} tokens", **keys)


@pytest.mark.parametrize("budget", [15, 0.25])
def test_more_than_is_left_is_refused(folder, rows, budget):
    message = (
        r"budget of 15 examples: selection\.where holds for 10 of 60 examples; for 12 others a"
    )
    with pytest.raises(DataError, match=message):
        selected(folder / "out", rows=rows, where="grade >= 5", budget=budget)
    assert not (folder / "out" / "selection" / "ranking.parquet").exists()


def test_bounds_of_strata_count_what_is_left(folder, rows):
    message = r"selection\.minimum: 1 strata .*'code' has 8 of 12"
    with pytest.raises(DataError, match=message):
        selected(folder / "out", rows=rows, where="quality >= 5", minimum={"code": 12}, budget=20)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (
            "qualty > 3",
            r"where: qualty is no field of the rows .*did you mean quality\? Fields: gr",
        ),
        ("last_los > 3", r"did you mean last_loss\?"),
        ("zzz > 3", r"zzz is no field .*; fields: grade, input, .*names of the run: stratum, clu"),
        ("stratum = code", r"code is no field .*Texts stand in 'quotes'"),
        ("tokens < 5", r"tokens is a field of the rows, .*Write row\.tokens or run\.tokens"),
        ("run.quality > 3", r"run\.quality is no field"),
        ("meta.langs = 'de'", r"no 'langs' in meta; did you mean lang\? It has: lang"),
        ("quality.x = 1", r"no 'x' in quality; its values are no objects"),
        ("meta.lang > 3", r"meta\.lang \(text\) with 3 \(a number\)"),
        ("mixed > 3", r"values of the field 'mixed' have no common type \(.*str.*int64"),
    ],
)
def test_names_and_values_that_do_not_fit_are_refused(folder, condition, message):
    mixed = [row | {"mixed": "x" if n == 7 else n} for n, row in enumerate(OWN)]
    rows = write_rows(folder / "mixed", in_order(5), mixed)
    with pytest.raises(ConfigError, match=message):
        selected(folder / "out", rows=rows, where=condition)


def test_a_run_without_data_knows_its_own_names(folder):
    _, out = selected(folder / "out", where="cluster < 3")
    assert {CLUSTERS[row] for row in order_of(out)} == {0, 1, 2}
    with pytest.raises(ConfigError, match=r"quality is no field of the rows .*fields: none; names"):
        selected(folder / "other", where="quality < 3")


def test_an_example_without_a_row_is_named(folder):
    rows = write_rows(folder / "few", [list(range(3, NUM_ROWS))])
    with pytest.raises(DataError, match=r"3 of 60 examples have no row .*first: e0, e1, e2\)"):
        selected(folder / "out", rows=rows, where="quality > 0")


# --- examples whose loss does not fall -----------------------------------------------------------


WRONG = set(range(0, NUM_ROWS, 6))


@pytest.fixture
def planted(folder, monkeypatch):
    """Trajectories of right answers, which fall, and of ten wrong ones, which do not."""
    falling_T, rising_T = np.array([3.0, 2.0, 1.2, 1.0]), np.array([3.0, 3.1, 3.0, 3.2])
    noise_NT = np.random.default_rng(1).uniform(0, 0.1, (NUM_ROWS, 4))
    shape_NT = [rising_T if number in WRONG else falling_T for number in range(NUM_ROWS)]
    losses = (np.array(shape_NT) + noise_NT).astype(np.float32)
    monkeypatch.setattr("tests.pool_of_sixty.LOSSES", losses)
    return losses


@pytest.mark.parametrize("method", ["s2l", "random", "balanced-random", "rds-plus"])
@pytest.mark.parametrize("stratify", [True, False])
def test_wrong_answers_come_last(folder, planted, method, stratify):
    rows = write_rows(folder / "rows", in_order(4))
    keys = {"method": method, "stratify": stratify, "budget": 10}
    _, out = selected(folder / "out", rows=rows, unlearned="last", **keys)
    _, plain = selected(folder / "plain", rows=rows, **keys)

    order = order_of(out)
    spreads = METHODS[method].spreads(stratify)
    for stratum in {"code", "math"} if spreads else {""}:
        own = [row for row in order if stratum in ("", STRATA[row])]
        wrong = [row in WRONG for row in own]
        assert wrong == sorted(wrong) and any(wrong)
    assert sorted(order) == list(range(NUM_ROWS))
    if spreads:
        assert [STRATA[row] for row in order] == [STRATA[row] for row in order_of(plain)]


def test_wrong_answers_come_first_where_the_hardest_do(folder, planted):
    keys = {"method": "least-confidence", "stratify": False}
    _, plain = selected(folder / "plain", **keys)
    _, out = selected(folder / "out", unlearned="last", **keys)
    assert set(order_of(plain)[:10]) == WRONG == set(order_of(out)[-10:])


def test_the_learned_ones_are_ranked_as_if_there_were_no_others(folder, planted):
    learned = [row for row in range(NUM_ROWS) if row not in WRONG]
    clusters = write_clusters(folder / "learned", [learned])
    for method in ("s2l", "s2l-authors", "middle-perplexity"):
        _, out = selected(folder / method, unlearned="last", method=method, stratify=False)
        _, alone = selected(folder / f"{method}-alone", clusters, method=method, stratify=False)
        assert order_of(out)[: len(learned)] == order_of(alone)


def test_minima_of_strata_hold_with_unlearned_examples_last(folder, planted):
    keys = {"unlearned": "last", "minimum": {"code": 13}, "budget": 13}
    summary, out = selected(folder / "out", **keys)
    assert summary["strata"] == {"code": 13}
    assert [row in WRONG for row in order_of(out)[:13]] == [False] * 10 + [True] * 3


def test_a_pool_of_which_nothing_was_learned_is_refused(folder, monkeypatch):
    monkeypatch.setattr("tests.pool_of_sixty.LOSSES", np.ones((NUM_ROWS, 4), np.float32))
    with pytest.raises(DataError, match=r"unlearned: the loss of none of 60 examples falls"):
        selected(folder / "out", unlearned="last")
