"""Columns of a ranking in the rows of a subset: the run's own, `select`'s, and what is refused."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import s2l_ray as s2l
from s2l_ray import cli
from s2l_ray.artifacts.tables import rows_name, rows_table
from tests import handmade
from tests.command_line import refused
from tests.handmade import IDS, NUM_CLUSTERS, NUM_TOKENS, ROWS, STRATA, changed, finish

ALL = ["tokens", "rank", "stratum", "cluster"]
TYPES = [pa.int32(), pa.int64(), pa.string(), pa.int32()]


@pytest.fixture
def tree(tmp_path):
    tree = changed(handmade.inputs(tmp_path), "target", None)
    return changed(tree, "evaluation", None)


@pytest.fixture
def run(tree) -> s2l.Run:
    return s2l.load(finish(tree, until="clusters").uri)


def expected(selection) -> list[dict]:
    """The rows of the input with the columns that the arrays of the run by hand say."""
    rank = {example_id: rank for rank, example_id in enumerate(selection.ids)}
    return [
        ROWS[row]
        | {"example_id": IDS[row], "tokens": NUM_TOKENS[row], "rank": rank[IDS[row]]}
        | {"stratum": STRATA[row], "cluster": row % NUM_CLUSTERS}
        for row in range(len(ROWS))
        if IDS[row] in rank
    ]


def lines(path) -> list[dict]:
    return [json.loads(line) for line in open(path, encoding="utf-8")]


def test_columns_are_added_after_the_fields_of_a_row(run, tmp_path):
    selection = run.select(11, columns=ALL)

    assert list(selection.rows()) == expected(selection)
    assert lines(selection.write(tmp_path / "x.jsonl")) == expected(selection)
    assert list(lines(tmp_path / "x.jsonl")[0]) == [*ROWS[0], "example_id", *ALL]
    table = pq.read_table(selection.write(tmp_path / "x.parquet"))
    assert table.to_pylist() == expected(selection)
    assert [table.schema.field(name).type for name in ALL] == TYPES
    assert selection.to_datasets().to_list() == expected(selection)


def test_without_columns_rows_are_as_they_were(run):
    assert list(run.select(11).rows()) == [
        {key: value for key, value in row.items() if key not in ALL}
        for row in expected(run.select(11, columns=ALL))
    ]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_run_s_own_columns_are_in_its_subset_and_in_those_of_select(tree, suffix):
    tree = changed(tree, "selection", {"budget": 8, "columns": ALL, "format": suffix})
    run = s2l.load(finish(tree, until="clusters").uri)
    handmade.run(tree, until="selection")

    file = f"{run.path}/subset/selected.{suffix}"
    found = lines(file) if suffix == "jsonl" else pq.read_table(file).to_pylist()
    assert found == expected(run.select(8))
    assert list(run.select(4).rows()) == expected(run.select(4))
    assert next(iter(run.select(4, columns=[]).rows())).keys() == {*ROWS[0], "example_id"}


def test_columns_are_no_part_of_old_fingerprints_and_of_new_ones(tree):
    finish(tree, until="selection")
    config = s2l.load(tree["run_dir"]).config
    assert handmade.run(tree, until="selection") == []
    assert config.selection.columns == []
    assert handmade.run(changed(tree, "selection.columns", ["rank"]), until="selection") == [
        "selection"
    ]


def test_the_command_takes_names_with_commas(run, capsys):
    arguments = ["select", run.path, "--budget", "5", "--columns"]
    assert cli.main([*arguments, "rank,cluster"]) == 0
    found = lines(f"{run.path}/subsets/s2l-5-42/selected.jsonl")
    assert sorted(row["rank"] for row in found) == [0, 1, 2, 3, 4]
    assert list(found[0])[-2:] == ["rank", "cluster"]

    assert "column 'loss' is unknown; known: rank, cluster, stratum, tokens" in refused(
        capsys, *arguments, "loss"
    )
    assert "a column is named twice" in refused(capsys, *arguments, "rank,rank")


def test_a_field_of_that_name_is_refused_before_anything_is_ranked(tree, run):
    rows = [row | ({"rank": 7} if number == 25 else {}) for number, row in enumerate(ROWS)]
    part = rows_table(rows[20:], IDS[20:], "pool.jsonl", range(20, 30))
    (run.location / "prepared" / rows_name(2)).write_table(part)

    message = r"1 of 2 columns have the name of a field of the rows \(rank\)"
    with pytest.raises(s2l.UserError, match=message):
        run.select(5, columns=["rank", "cluster"])
    assert len(list(run.select(30, columns=["cluster"]).rows())) == 30
    with pytest.raises(s2l.UserError, match="1 of 1 columns"):
        handmade.run(changed(tree, "selection.columns", ["rank"]), until="selection")
    assert not (run.location / "selection" / "ranking.parquet").exists()


def test_a_field_of_that_name_is_refused_as_soon_as_rows_are_prepared(tree, run):
    manifest = (run.location / "prepared" / "_manifest.json").read_json()
    manifest["summary"]["fields"] = {"instruction": "string", "tokens": "int64"}
    (run.location / "prepared" / "_manifest.json").write_json(manifest)
    section = {"budget": 5, "columns": ["tokens"]}
    with pytest.raises(s2l.UserError, match=r"name of a field of the rows \(tokens\)"):
        handmade.run(changed(tree, "selection", section))


def test_a_name_that_data_fields_has_is_refused_at_the_start(tree):
    tree = changed(tree, "data", tree["data"] | {"fields": {"stratum": "stratum"}})
    tree = changed(tree, "selection", {"budget": 5, "columns": ["stratum"]})
    with pytest.raises(s2l.UserError, match=r"name of a field of the rows \(stratum\)"):
        handmade.run(tree)


def test_without_the_data_columns_follow_the_ids(tree, tmp_path):
    (tmp_path / "losses.parquet").write_bytes(b"1")
    brought = {key: tree[key] for key in ("run_dir", "clusters", "selection")}
    brought["trajectories"] = {"path": str(tmp_path / "losses.parquet")}
    selection = s2l.load(finish(brought, until="clusters").uri).select(
        4, columns=["cluster", "rank"]
    )

    rows = list(selection.rows())
    assert [row["rank"] for row in rows] == [0, 1, 2, 3]
    assert list(rows[0]) == ["example_id", "stratum", "cluster", "rank"]
    assert pq.read_table(selection.write(tmp_path / "x.parquet")).to_pylist() == rows
    with pytest.raises(s2l.UserError, match="for the column tokens"):
        s2l.load(brought["run_dir"]).select(4, columns=["tokens"]).write(tmp_path / "y.jsonl")
