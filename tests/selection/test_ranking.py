"""What a selection looks at and how it is spread over strata, through the stage that writes it."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from s2l_ray import hashing
from s2l_ray.artifacts.tables import Parts, part_name
from s2l_ray.config.sections import SelectionConfig
from s2l_ray.errors import DataError
from s2l_ray.selection import columns, quotas
from s2l_ray.selection import stage as selection
from s2l_ray.selection.declaration import SELECTION
from s2l_ray.selection.methods import METHODS
from s2l_ray.storage.location import Location
from tests.pool_of_sixty import (
    CLUSTERS,
    IDS,
    LOSSES,
    NORM,
    NUM_ROWS,
    RESPONSE_TOKENS,
    ROWS,
    SQDIST,
    STRATA,
    TOKENS,
    WITHOUT_PROMPT,
    in_order,
    jsonl,
    order_of,
    ranking,
    selected,
    write_clusters,
    write_rows,
    write_trajectories,
)


@pytest.fixture
def folder(tmp_path) -> Location:
    return Location.of(tmp_path)


# --- what methods, orders and budgets look at -----------------------------------------------------


@pytest.mark.parametrize(
    ("method", "value"),
    [
        ("least-confidence", lambda row: -LOSSES[row, -1]),
        ("high-learnability", lambda row: LOSSES[row, -1] - LOSSES[row, 0]),
        ("confidence-curriculum", lambda row: -np.exp(-LOSSES[row].astype(float)).mean()),
        ("ifd", lambda row: in_order_of_ifd(LOSSES[row, -1] / WITHOUT_PROMPT[row])),
        ("ambiguous", lambda row: -np.exp(-LOSSES[row].astype(float)).std()),
        ("score", lambda row: -ROWS[row]["quality"]),
        ("longest-responses", lambda row: -RESPONSE_TOKENS[row]),
        ("el2n", lambda row: -NORM[row]),
    ],
)
def test_a_ranking_follows_the_losses_and_counts_of_the_examples_themselves(folder, method, value):
    rows = write_rows(folder / "rows", in_order(5))
    _, out = selected(folder / "out", rows=rows, method=method, stratify=False)

    found = [value(row) for row in order_of(out)]
    assert found == pytest.approx(sorted(found), abs=1e-6)


def in_order_of_ifd(ratio: float) -> float:
    """The first are just below 1, then 0; those above 1 come last."""
    return ratio if ratio >= 1 else -ratio


def test_ifd_asks_for_losses_without_prompts(folder):
    with_prompts = write_trajectories(folder / "losses", in_order(3))
    for file in with_prompts.files():
        file.write_table(file.read_table().drop_columns(["loss_without_prompt_nats"]))
    sources = selection.Sources(write_clusters(folder / "clusters", in_order(2)), with_prompts)
    out = SELECTION.directory(folder / "out")
    with pytest.raises(DataError, match=r"Set `trajectories\.without_prompt: true` and redo"):
        selection.run(SelectionConfig(budget=5, method="ifd"), sources, out, seed=1)


@pytest.mark.parametrize(
    ("within", "value"),
    [
        ("nearest", lambda row: SQDIST[row]),
        ("score", lambda row: -ROWS[row]["quality"]),
        ("lowest-variation", lambda row: np.abs(np.diff(LOSSES[row].astype(float))).sum()),
    ],
)
def test_examples_of_a_cluster_come_in_the_order_asked_for(folder, within, value):
    _, out = selected(folder / "out", rows=write_rows(folder / "rows", in_order(5)), within=within)

    for cell in set(zip(STRATA, CLUSTERS, strict=True)):
        found = [value(row) for row in order_of(out) if (STRATA[row], CLUSTERS[row]) == cell]
        assert found == pytest.approx(sorted(found), abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_of_tokens_is_the_longest_prefix_that_fits(folder, method):
    rows = write_rows(folder / "rows", in_order(4))
    by_rows, whole = selected(folder / "rows-budget", rows=rows, method=method, budget=1.0)
    summary, out = selected(folder / "out", rows=rows, method=method, budget="200 tokens")

    sums = np.cumsum([TOKENS[row] for row in order_of(whole)])
    taken = int((sums <= 200).sum())
    assert (summary["selected"], summary["selected_tokens"]) == (taken, sums[taken - 1])
    assert len(jsonl(out)) == taken
    assert ranking(out) == ranking(whole)
    assert "selected_tokens" not in by_rows


def test_subsets_of_tokens_are_nested_and_reach_the_whole_pool(folder):
    rows = write_rows(folder / "rows", in_order(4))
    budgets = [20, 77, 150, 151, sum(TOKENS)]
    outs = [
        selected(folder / f"{budget}", rows=rows, budget=f"{budget} tokens")[1]
        for budget in budgets
    ]
    chosen = [{row["example_id"] for row in jsonl(out)} for out in outs]
    assert all(less <= more for less, more in itertools.pairwise(chosen))
    assert len(chosen[-1]) == NUM_ROWS


def test_more_tokens_than_the_pool_has_are_refused(folder):
    rows = write_rows(folder / "rows", in_order(4))
    with pytest.raises(DataError, match=rf"more than the pool .*\({sum(TOKENS):,} tokens\)"):
        selected(folder / "out", rows=rows, budget=f"{sum(TOKENS) + 1} tokens")
    assert not (folder / "out" / "selection" / "ranking.parquet").exists()


@pytest.mark.parametrize("change", [{"budget": "50 tokens"}, {"method": "longest-responses"}])
def test_tokens_that_were_never_counted_are_asked_for(folder, change):
    with pytest.raises(DataError, match=r"no prepared rows\. Give `data` with `data\.tokenizer`"):
        selected(folder / "out", **change)
    rows = write_rows(folder / "rows", in_order(1))
    name = part_name(0)
    table = (rows.folder / name).read_table(["example_id"])
    zero = pa.array([0] * NUM_ROWS, pa.int32())
    uncounted = table.append_column("num_tokens", zero).append_column("num_prompt_tokens", zero)
    (rows.folder / name).write_table(uncounted)
    with pytest.raises(DataError, match="prepared without a tokenizer"):
        selected(folder / "other", rows=rows, **change)


def test_numbers_are_joined_by_id_wherever_they_lie(folder):
    rows = write_rows(folder / "rows", in_order(4))
    shuffled = np.array_split(np.random.default_rng(2).permutation(NUM_ROWS), 3)
    other_rows = write_rows(folder / "other", [shuffled[0], [], *shuffled[1:]])
    changes = {"method": "longest-responses", "budget": "150 tokens"}

    one, out = selected(folder / "one", rows=rows, **changes)
    other, other_out = selected(folder / "two", rows=other_rows, **changes)

    assert one == other and ranking(out) == ranking(other_out)


def test_an_example_without_a_count_is_named(folder):
    rows = write_rows(folder / "rows", [list(range(3, NUM_ROWS))])
    with pytest.raises(DataError, match=r"3 of 60 examples have no row in .*first: e0, e1, e2\)"):
        selected(folder / "out", rows=rows, budget="20 tokens")


def test_an_example_without_losses_is_not_laid_to_its_data(folder):
    losses, more = (write_trajectories(folder / n, [p]) for n, p in (("a", [0]), ("b", [1, 2])))
    clusters = write_clusters(folder / "clusters", in_order(4))
    config = SelectionConfig(budget=5, method="least-confidence")
    out = SELECTION.directory(folder / "out")
    message = r"57 of 60 .*/a and 1 more \(first: .*/b\) \(first: e3, .*redo them with `--from traj"

    with pytest.raises(DataError, match=message) as caught:
        both = Parts(losses.folder, more=(more.folder,))
        selection.run(config, columns.Sources(clusters, both), out, seed=1)
    assert "data.train" not in str(caught.value)


def test_an_example_with_two_counts_is_refused(folder):
    rows = write_rows(folder / "rows", [*in_order(2), [7, 8]])
    with pytest.raises(DataError, match=r"2 rows of .*rows repeat an example_id"):
        selected(folder / "out", rows=rows, budget="20 tokens")


def test_counts_of_examples_outside_the_pool_change_nothing(folder):
    rows = write_rows(folder / "rows", in_order(4))
    clusters = write_clusters(folder / "clusters", [range(20, 50)])
    whole = sum(TOKENS[20:50])
    summary, _ = selected(folder / "out", clusters, rows, budget=f"{whole} tokens")
    assert (summary["selected"], summary["selected_tokens"]) == (30, whole)


def test_losses_that_are_gone_are_asked_for(folder):
    config = SelectionConfig(budget=5, method="least-confidence")
    clusters = write_clusters(folder / "clusters", in_order(4))
    for gone in (None, Parts(folder / "nowhere")):
        with pytest.raises(DataError, match=r"last_loss .* no trajectories.*--from trajectories"):
            selection.run(
                config,
                columns.Sources(clusters, gone),
                SELECTION.directory(folder / "out"),
                seed=1,
            )


# --- weights, minima and maxima of strata: 15 examples are code and 45 math -----------------------


def test_a_stratum_of_weight_two_gives_twice_as_much(folder):
    summary, _ = selected(folder, budget=18, weights={"math": 2.0})
    assert summary["strata"] == {"code": 6, "math": 12}


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"random"}))
def test_weights_of_one_change_nothing(folder, method):
    rows = write_rows(folder / "rows", in_order(4))
    _, plain = selected(folder / "plain", rows=rows, method=method)
    _, even = selected(
        folder / "even", rows=rows, method=method, weights={"code": 1.0, "math": 1.0}
    )
    assert (plain / "ranking.parquet").read_bytes() == (even / "ranking.parquet").read_bytes()


@pytest.mark.parametrize(
    ("change", "budget", "expected"),
    [
        ({"minimum": 4}, 8, {"code": 4, "math": 4}),
        ({"minimum": {"code": 9}}, 9, {"code": 9}),
        ({"minimum": {"code": 9}}, 20, {"code": 10, "math": 10}),
        ({"minimum": 30}, 45, {"code": 15, "math": 30}),
        ({"minimum": 61}, 60, {"code": 15, "math": 45}),
        ({"minimum": 10**30}, 60, {"code": 15, "math": 45}),
        ({"maximum": 10**30}, 8, {"code": 4, "math": 4}),
        ({"maximum": {"code": 10**30}}, 8, {"code": 4, "math": 4}),
        ({"maximum": 7}, 14, {"code": 7, "math": 7}),
        ({"maximum": {"math": 3}}, 10, {"code": 7, "math": 3}),
        ({"maximum": {"math": 0}}, 10, {"code": 10}),
        ({"minimum": {"math": 5}, "maximum": {"math": 5}}, 6, {"code": 1, "math": 5}),
        ({"weights": {"code": 3.0}, "maximum": {"code": 6}}, 12, {"code": 6, "math": 6}),
    ],
)
def test_minima_and_maxima_of_strata_hold(folder, change, budget, expected):
    summary, _ = selected(folder, budget=budget, **change)
    assert summary["strata"] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weights": {"maths": 2.0}},
            r"selection\.weights: 1 of 1 .*'maths'\); did you mean 'math",
        ),
        ({"minimum": {"code": 1, "x": 1}}, r"selection\.minimum: 1 of 2 .*strata: code, math"),
        ({"maximum": {"cod": 5}}, r"selection\.maximum: .*did you mean 'code'"),
        ({"minimum": {"code": 16}}, r"selection\.minimum: 1 strata .*'code' has 15 of 16"),
        ({"minimum": 10**30}, r"budget of 12 .*selection\.minimum alone asks for 60 over 2"),
        ({"minimum": 7}, r"budget of 12 examples: selection\.minimum alone asks for 14 over 2"),
        ({"maximum": 5}, r"12 examples: selection\.maximum leaves 10, as 2 of 2 .*'code', 'math'"),
        ({"maximum": {"math": 1}, "budget": 17}, r"leaves 16, as 1 of 2 .*first: 'math'"),
        ({"maximum": {"math": 1}, "budget": "300 tokens"}, r"300 tokens: selection\.maximum leav"),
        ({"minimum": 2, "budget": "22 tokens"}, r"selection\.minimum alone asks for 4"),
        ({"maximum": 1, "budget": "6000 tokens"}, r"more than the pool of 60 examples"),
    ],
)
def test_what_strata_cannot_give_is_refused(folder, change, message):
    rows = write_rows(folder / "rows", in_order(4))
    with pytest.raises(DataError, match=message):
        selected(folder / "out", rows=rows, **change)
    assert not (folder / "out" / "selection" / "ranking.parquet").exists()


def test_a_maximum_holds_for_every_budget_of_tokens_up_to_it(folder):
    rows = write_rows(folder / "rows", in_order(4))
    whole, _ = selected(folder / "rows-budget", rows=rows, budget=18, maximum={"math": 3})
    _, out = selected(folder / "again", rows=rows, budget=18, maximum={"math": 3})
    most = sum(TOKENS[row] for row in order_of(out)[:18])
    summary, _ = selected(
        folder / "tokens", rows=rows, budget=f"{most} tokens", maximum={"math": 3}
    )
    assert summary["strata"] == whole["strata"] == {"code": 15, "math": 3}


def test_a_stratum_of_extensions_alone_may_be_named_and_changes_nothing(folder):
    clusters = write_clusters(folder / "clusters", in_order(4))
    sizes = {"code": 15, "math": 45}

    def run(name: str, new_strata: set[str], **change):
        config = SelectionConfig(budget=12, **change)
        quotas.check_strata(config, sizes, new_strata)
        out = SELECTION.directory(folder / name)
        selection.run(config, columns.Sources(clusters), out, seed=1, new_strata=new_strata)
        return (folder / name / "selection" / "ranking.parquet").read_bytes()

    plain = run("plain", set(), weights={"math": 2.0}, minimum={"code": 1})
    named = run("named", {"art"}, weights={"math": 2.0, "art": 9.0}, minimum={"code": 1, "art": 5})
    assert named == plain
    with pytest.raises(DataError, match=r"selection\.weights: 1 of 2 names .*first: 'arts'"):
        run("typing-error", {"art"}, weights={"math": 2.0, "arts": 9.0})


def test_error_norms_that_are_missing_are_asked_for(folder):
    clusters = write_clusters(folder / "clusters", in_order(4))
    key_N = hashing.example_keys(IDS)
    for gone in (None, Parts(folder / "nowhere")):
        with pytest.raises(DataError, match=r"none.*error_norms: true`.*--from trajectories"):
            columns.read(["error_norm"], key_N, columns.Sources(clusters, gone))
    old, new = (write_trajectories(folder / n, [p]) for n, p in (("a", [0]), ("b", [1, 2])))
    both = Parts(old.folder, more=(new.folder,))
    message = r"57 of 60 .*\(first: e3, .*error_norms: true`.*and extend the run again\."
    with pytest.raises(DataError, match=message):
        columns.read(["error_norm"], key_N, columns.Sources(clusters, both))
