"""Selection: one ranking whose prefixes are the subsets, and the chosen rows as they came."""

import tempfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ray import hashing
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.selection import stage as selection
from s2l_ray.selection.examples import Examples
from s2l_ray.selection.methods import METHODS
from s2l_ray.selection.summaries import SUMMARIES
from s2l_ray.storage.location import Location
from tests.pool_of_sixty import (
    ASKED,
    CLUSTERS,
    EMBEDDED,
    IDS,
    LOSSES,
    NORM,
    NUM_ROWS,
    RESPONSE_TOKENS,
    ROWS,
    STRATA,
    WITHOUT_PROMPT,
    in_order,
    jsonl,
    ranking,
    selected,
    write_clusters,
    write_rows,
)


@pytest.fixture
def folder(tmp_path) -> Location:
    return Location.of(tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_a_ranking_holds_every_example_once_in_order_of_rank(folder, method):
    rows = write_rows(folder / "rows", in_order(4))
    summary, out = selected(folder / method, rows=rows, method=method)

    table = ranking(out)
    assert dict(zip(table.column_names, table.schema.types, strict=True)) == {
        "example_id": pa.string(),
        "stratum": pa.string(),
        "cluster": pa.int32(),
        "rank": pa.int64(),
    }
    assert table["rank"].to_pylist() == list(range(NUM_ROWS))
    assert sorted(table["example_id"].to_pylist()) == sorted(IDS)
    for row in table.to_pylist():
        number = IDS.index(row["example_id"])
        assert (row["stratum"], row["cluster"]) == (STRATA[number], CLUSTERS[number])
    assert summary["rows"] == NUM_ROWS and summary["selected"] == 12


@pytest.mark.parametrize("method", METHODS)
def test_the_subset_of_a_smaller_budget_lies_inside_that_of_a_larger_one(folder, method):
    rows = write_rows(folder / "rows", in_order(4))
    _, small = selected(folder / "small", rows=rows, method=method, budget=7)
    _, large = selected(folder / "large", rows=rows, method=method, budget=0.5)

    chosen, more = ({row["example_id"] for row in jsonl(out)} for out in (small, large))
    assert len(chosen) == 7 and len(more) == 30 and chosen < more
    assert chosen == set(ranking(large)["example_id"].to_pylist()[:7])
    assert ranking(small) == ranking(large)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_depends_on_how_examples_lie_in_parts(folder, method):
    rows = write_rows(folder / "rows", in_order(4))
    shuffled = np.array_split(np.random.default_rng(0).permutation(NUM_ROWS), 3)
    other_rows = write_rows(folder / "other_rows", in_order(9))
    others = write_clusters(folder / "other_clusters", [shuffled[0], [], *shuffled[1:]])

    _, one = selected(folder / "one", rows=rows, method=method)
    _, other = selected(folder / "other", others, other_rows, method=method)

    for name in ("selection/ranking.parquet", "subset/selected.jsonl"):
        assert (one.parent / name).read_bytes() == (other.parent / name).read_bytes()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stratify", [True, False])
def test_strata_are_numbered_in_the_order_of_their_names(folder, method, stratify):
    # By code points; no two parts see them first in the same order.
    names = ["z", "Übung", "數學", "", "Zahl", "\U0001f600", "\uffee", "a b"]
    strata = [names[number * number % 11 % 8] for number in range(NUM_ROWS)]
    parts = [[50, 3, 7, 9], *in_order(5)[1:], [0, 1, 2, 4, 5, 6, 8, 10, 11]]
    parts[-2] = [row for row in parts[-2] if row != 50]
    clusters = write_clusters(folder / "clusters", parts, strata=strata)
    prepared = write_rows(folder / "rows", in_order(4))
    _, out = selected(folder / "out", clusters, prepared, method=method, stratify=stratify)

    rows = [row for part in parts for row in part]
    _, stratum_N = np.unique(np.array(strata)[rows], return_inverse=True)
    examples = Examples(
        hashing.example_keys([IDS[row] for row in rows]),
        np.array(CLUSTERS)[rows],
        stratum_N,
        {
            **{name: of(LOSSES[rows]) for name, of in SUMMARIES.items()},
            "error_norm": NORM[rows],
            "ifd": LOSSES[rows, -1] / WITHOUT_PROMPT[rows],
            "response_tokens": np.array(RESPONSE_TOKENS)[rows],
            "score": -np.array([ROWS[row]["quality"] for row in rows]),
        },
        settings={"quantile": 0.5},
        vectors={"embeddings": EMBEDDED[rows], "queries": ASKED},
    )
    order_N = METHODS[method].ranking(examples, 1, stratify=stratify)
    expected = [(IDS[rows[row]], strata[rows[row]], CLUSTERS[rows[row]]) for row in order_N]
    table = ranking(out)
    assert list(
        zip(*(table[name].to_pylist() for name in table.column_names[:3]), strict=True)
    ) == (expected)


@pytest.mark.parametrize("rows_per_table", [1, 7, NUM_ROWS - 1, NUM_ROWS, 1_000])
@pytest.mark.parametrize("num_wanted", [1, 13, NUM_ROWS])
def test_tables_in_order_of_rank_are_those_of_the_whole_pool(folder, rows_per_table, num_wanted):
    clusters = write_clusters(folder / "clusters", [*in_order(4), []])
    whole = pa.concat_tables(clusters.tables(selection.RANKED.names))
    order_R = np.random.default_rng(3).permutation(NUM_ROWS)[:num_wanted]

    pool = selection.load_pool(clusters)
    tables = list(selection.tables_by_rank(pool, order_R, rows_per_table=rows_per_table))

    assert pa.concat_tables(tables) == whole.take(pa.array(order_R))
    assert [table.num_rows for table in tables[:-1]] == [rows_per_table] * (len(tables) - 1)


def test_nothing_of_a_ranking_stays_beside_it(folder, tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    clusters = write_clusters(folder / "clusters", in_order(4))
    _, out = selected(folder / "out", clusters)
    pool = selection.load_pool(clusters)
    interrupted = selection.tables_by_rank(pool, np.arange(NUM_ROWS), rows_per_table=5)
    next(interrupted)
    interrupted.close()

    assert list((tmp_path / "scratch").iterdir()) == []
    assert out.names() == ["ranking.parquet"]


def test_another_seed_ranks_otherwise(folder):
    _, one = selected(folder / "one", seed=1)
    _, two = selected(folder / "two", seed=2)

    assert ranking(one)["example_id"] != ranking(two)["example_id"]


def test_stratified_budgets_are_spread_over_strata(folder):
    # 15 examples are code and 45 math, so 20 are 10 and 10.
    summary, _ = selected(folder, budget=20, stratify=True)

    assert summary["strata"] == {"code": 10, "math": 10}
    assert sum(summary["selected_of_cluster"]) == 20


def test_selected_rows_are_the_originals_with_their_ids_in_input_order(folder):
    _, out = selected(folder, rows=write_rows(folder / "rows", in_order(4)), budget=40)

    chosen = set(ranking(out)["example_id"].to_pylist()[:40])
    expected = [
        row | {"example_id": example_id}
        for example_id, row in zip(IDS, ROWS, strict=True)
        if example_id in chosen
    ]
    assert jsonl(out) == expected


def test_parquet_holds_what_jsonl_holds(folder):
    rows = write_rows(folder / "rows", in_order(7))
    # Not one example of the first parts is chosen, and only a late row has an `input`.
    late = write_clusters(folder / "clusters", [range(45, NUM_ROWS)])
    _, as_jsonl = selected(folder / "jsonl", late, rows, budget=1.0)
    _, as_parquet = selected(folder / "parquet", late, rows, budget=1.0, format="parquet")

    table = pq.read_table(str(as_parquet.parent / "subset" / "selected.parquet"))
    found = [
        {name: value for name, value in row.items() if value is not None}
        for row in table.to_pylist()
    ]
    assert found == jsonl(as_jsonl)
    assert [row["example_id"] for row in found if "input" in row] == ["e55"]


def test_values_of_two_types_are_refused_as_parquet_and_their_field_named(folder):
    mixed = [row | {"level": number if number % 2 else "?"} for number, row in enumerate(ROWS)]
    rows = write_rows(folder / "rows", in_order(2), mixed)
    parts = write_clusters(folder / "clusters", in_order(2))

    with pytest.raises(DataError, match=r"'level'.*selection\.format: jsonl"):
        selected(folder / "parquet", parts, rows, format="parquet")
    _, out = selected(folder / "jsonl", parts, rows)
    assert jsonl(out)


def test_types_that_differ_between_parts_are_refused_as_parquet(folder):
    mixed = [row | {"level": number if number < 30 else "?"} for number, row in enumerate(ROWS)]
    rows = write_rows(folder / "rows", in_order(2), mixed)

    with pytest.raises(DataError, match=r"selection\.format: jsonl"):
        selected(folder / "out", rows=rows, format="parquet")
    assert not (folder / "out" / "subset" / "selected.parquet").exists()


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_selected_rows_load_as_a_dataset(folder, tmp_path, kind):
    _, out = selected(folder, rows=write_rows(folder / "rows", in_order(4)), format=kind)

    loaded = datasets.load_dataset(
        {"jsonl": "json", "parquet": "parquet"}[kind],
        data_files=f"{out.parent}/subset/selected.{kind}",
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert set(loaded["example_id"]) == set(ranking(out)["example_id"].to_pylist()[:12])
    assert set(loaded.column_names) >= {"example_id", "instruction", "output", "notes"}


def test_without_the_original_rows_there_is_a_ranking_alone(folder):
    _, out = selected(folder / "out", write_clusters(folder / "clusters", in_order(4)))

    assert out.names() == ["ranking.parquet"]


def test_a_budget_above_the_pool_is_refused(folder):
    with pytest.raises(DataError, match="budget 61 is more than the pool of 60 examples"):
        selected(folder / "out", budget=61)
    assert not (folder / "out" / "selection" / "ranking.parquet").exists()


@pytest.mark.parametrize("budget", [0, -1, 1.5, True])
def test_a_budget_that_no_pool_can_give_is_refused(folder, budget):
    with pytest.raises((ConfigError, ValueError), match="budget"):
        selected(folder, budget=budget)


def test_an_example_that_appears_twice_is_refused_and_named(folder):
    parts = write_clusters(folder / "clusters", in_order(4), [*IDS[:-2], "e3", "e20"])

    with pytest.raises(DataError, match=r"2 examples appear more than once .*\(first: e20, e3\)"):
        selected(folder, parts)


def test_selected_examples_without_a_row_are_refused(folder):
    rows = write_rows(folder / "rows", in_order(4)[:2])

    with pytest.raises(DataError, match=r"30 of 60 selected examples have no row in .*/rows"):
        selected(folder / "out", rows=rows, budget=1.0)
    assert not (folder / "out" / "subset" / "selected.jsonl").exists()
