"""Runs from Python: tables, subsets and extensions of runs made by hand, without Ray."""

import json

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import s2l_ray as s2l
from s2l_ray.artifacts.tables import rows_name, rows_table
from s2l_ray.config.load import from_tree
from s2l_ray.storage.location import Location
from tests import extended_by_hand, handmade
from tests.handmade import IDS, NUM_ROWS, ROWS, changed, finish, write_subset

REJECTED = {"file": ["a", "a"], "row": [3, 9], "reason": ["empty field"] * 2, "excerpt": ["", "x"]}


@pytest.fixture
def tree(tmp_path):
    return extended_by_hand.inputs(tmp_path)


@pytest.fixture
def run(tree) -> s2l.Run:
    return s2l.load(finish(tree, until="clusters").uri)


@pytest.fixture
def extended(tree, tmp_path) -> s2l.Run:
    """A run with six new rows, which are not ranked yet."""
    location = extended_by_hand.finished_run(tree, tmp_path)
    extended_by_hand.given(location, extended_by_hand.data(tmp_path))
    return s2l.load(location.uri)


def silent(line: str) -> None:
    pass


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(s2l.UserError, match="is no run of s2l_ray"):
        s2l.load(tmp_path)


def test_a_run_knows_its_path_and_configuration(tree, run):
    assert run.path == tree["run_dir"]
    assert run.config.clusters.num_clusters == 3


def test_values_show_themselves_in_one_line(run):
    assert repr(run) == f"Run({run.path!r})"
    assert repr(run.clusters()) == "Table(example_id, stratum, cluster, sqdist; 3 files)"
    assert repr(run.select(5)) == "Selection('s2l-5-42', 5 examples)"


def test_trajectories_are_float32_in_stored_order(run):
    table = run.trajectories()
    losses = table.to_numpy()
    assert losses.shape == (NUM_ROWS, 3) and losses.dtype == np.float32
    frame = table.to_pandas()
    assert list(frame.columns) == ["example_id", "stratum", "loss_nats"]
    assert frame["example_id"].tolist() == IDS
    np.testing.assert_array_equal(np.stack(frame["loss_nats"]), losses)
    assert table.to_numpy("example_id").tolist() == IDS
    assert table.to_arrow(["stratum"]).column_names == ["stratum"]


def test_a_table_is_read_when_it_is_asked_for(run):
    table = run.clusters()
    (run.location / "clusters").remove()
    with pytest.raises(s2l.UserError, match="cannot read"):
        table.to_numpy()


def test_clusters_stand_in_the_order_of_trajectories(run):
    clusters = run.clusters().to_pandas()
    assert clusters["example_id"].tolist() == run.trajectories().to_numpy("example_id").tolist()
    assert run.clusters().to_numpy().dtype == np.int32
    assert clusters.dtypes["sqdist"] == np.float32 and isinstance(clusters, pd.DataFrame)


def test_an_unknown_column_is_refused(run):
    with pytest.raises(s2l.UserError, match="column 'loss' is unknown; columns: example_id"):
        run.trajectories().to_numpy("loss")


def test_a_ranking_begins_with_every_subset(tree, run):
    handmade.run(tree, until="selection")
    ranking = run.ranking().to_pandas()
    assert ranking["rank"].tolist() == list(range(NUM_ROWS))
    assert run.select(9).ids == run.ranking().to_numpy()[:9].tolist()
    assert s2l.load(run.path).results() == {"selected": f"{run.path}/subset/selected.jsonl"}


def test_rejected_rows_are_those_of_the_run_and_its_extensions(extended):
    for folder in (extended.location / "prepared", *extension_folders(extended, "prepared")):
        (folder / "rejected.parquet").write_table(pa.table(REJECTED))
    assert extended.rejected().to_numpy().tolist() == ["empty field"] * 4
    own = s2l.load(extended.path, with_extensions=False)
    assert own.rejected().to_pandas()["row"].tolist() == [3, 9]


def extension_folders(run: s2l.Run, stage: str) -> list[Location]:
    extensions = run.location / "extensions"
    return [extensions / name / stage for name in extensions.names() if name[:3].isdecimal()]


@pytest.mark.parametrize(
    ("table", "stage"),
    [
        ("trajectories", "trajectories"),
        ("clusters", "clusters"),
        ("ranking", "selection"),
        ("rejected", "prepare"),
    ],
)
def test_a_table_of_an_unfinished_stage_is_refused(tree, table, stage):
    finish(tree, until="prepare")
    run = s2l.load(tree["run_dir"])
    (run.location / "prepared").remove()
    with pytest.raises(s2l.UserError, match=f"has no finished {stage} that fits its data"):
        getattr(run, table)()


def test_trajectories_can_be_read_before_there_are_clusters(tree):
    finish(tree, until="trajectories")
    assert s2l.load(tree["run_dir"]).trajectories().to_numpy().shape == (NUM_ROWS, 3)


def test_metrics_have_the_methods_as_keys(tmp_path):
    tree = handmade.inputs(tmp_path)
    run = s2l.load(finish(tree, until="target").uri)
    with pytest.raises(s2l.UserError, match="no finished evaluation"):
        run.metrics()
    finish(tree)
    numbers = {"held": {"items": 4, "loss_nats": {"mean": 1.5, "low": 1.0, "high": 2.0}}}
    (run.location / "evaluation" / "metrics.json").write_json({"sets": numbers})
    assert run.metrics() == {"s2l": numbers}


@pytest.mark.parametrize("budget", [5, 0.3, np.int64(7), "500 tokens", "0.5K tokens"])
def test_a_selection_is_what_the_command_writes(run, tmp_path, budget):
    selection = run.select(budget, seed=3)
    plain = {"500 tokens": "500 tokens", "0.5K tokens": "500 tokens"}.get(budget, budget)
    plain = plain.item() if isinstance(plain, np.generic) else plain
    location, count = write_subset(run.location, plain, None, 3, None)
    before = location.read_bytes()

    assert len(selection) == len(selection.ids) == count
    rows = [json.loads(line) for line in before.splitlines()]
    assert list(selection.rows()) == rows
    assert sorted(selection.ids) == sorted(row["example_id"] for row in rows)
    assert selection.write() == location.uri and location.read_bytes() == before
    assert selection.write(tmp_path / "mine.jsonl") == str(tmp_path / "mine.jsonl")
    assert (tmp_path / "mine.jsonl").read_bytes() == before


def test_a_selection_says_what_it_took(run):
    selection = run.select(9)
    taken = [IDS.index(example_id) for example_id in selection.ids]
    tokens = sum(handmade.NUM_TOKENS[row] for row in taken)
    prompts = sum(handmade.NUM_PROMPT_TOKENS[row] for row in taken)
    math = sum(handmade.STRATA[row] == "math" for row in taken)

    assert selection.tokens == (tokens, tokens - prompts)
    assert list(selection.strata.items()) == [("math", math), ("code", 9 - math)]
    assert selection.summary() == {
        "rows": "9 of 30 (30.0%)",
        "tokens": f"{tokens:,}, {tokens - prompts:,} of them in responses",
        "strata": f"math {math}, code {9 - math}",
    }


def test_a_selection_becomes_a_dataset_and_parquet(run, tmp_path):
    selection = run.select(8, "random")
    dataset = selection.to_datasets()
    assert isinstance(dataset, datasets.Dataset)
    assert dataset.to_list() == list(selection.rows())
    assert pq.read_table(selection.write(tmp_path / "x.parquet")).to_pylist() == dataset.to_list()


def test_a_dataset_holds_fields_of_several_types(tmp_path):
    pool = tmp_path / "run" / "prepared"
    rows = [row | {"notes": [number, "x"]} for number, row in enumerate(ROWS)]
    run = s2l.load(finish(extended_by_hand.inputs(tmp_path), until="clusters").uri)
    for part in range(3):
        table = rows_table(rows[10 * part :][:10], IDS[10 * part :][:10], "pool.jsonl", range(10))
        pq.write_table(table, pool / rows_name(part))
    selection = run.select(12)
    assert selection.to_datasets().to_list() == list(selection.rows())


def test_rows_are_the_original_ones(run):
    assert list(run.select(1.0).rows()) == [row | {"example_id": row["id"]} for row in ROWS]


def test_without_data_the_rows_are_ids_with_their_clusters(tree, tmp_path):
    (tmp_path / "losses.parquet").write_bytes(b"1")
    existing = {key: tree[key] for key in ("run_dir", "clusters", "selection")}
    existing["trajectories"] = {"path": str(tmp_path / "losses.parquet")}
    selection = s2l.load(finish(existing, until="clusters").uri).select(4)
    rows = list(selection.rows())
    assert [row["example_id"] for row in rows] == selection.ids
    assert rows[0].keys() == {"example_id", "stratum", "cluster"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 31}, "more than the pool of 30 examples"),
        ({"budget": 0}, "from 1 to 30"),
        ({"budget": "many"}, "'many' is no budget"),
        ({"budget": 5, "method": "randm"}, "method 'randm' is unknown; did you mean 'random'"),
        ({"budget": 5, "within": "far"}, "within 'far' is unknown; known: random, nearest"),
        ({"budget": 5, "seed": -1}, "seed -1 is below zero"),
    ],
)
def test_a_selection_that_cannot_be_made_is_refused(run, arguments, message):
    with pytest.raises(s2l.UserError, match=message):
        run.select(**arguments)


def test_a_selection_is_not_written_over_the_run(run, tmp_path):
    selection = run.select(3)
    with pytest.raises(s2l.UserError, match=r"config\.json: that file belongs to the run"):
        selection.write(f"{run.path}/config.json")
    with pytest.raises(s2l.UserError, match=r"must end in \.jsonl or \.parquet"):
        selection.write(tmp_path / "x.csv")


def test_extensions_are_shown_and_selected_from_unless_left_out(extended):
    new = [row["id"] for row in extended_by_hand.new_rows(0)]
    own = s2l.load(extended.path, with_extensions=False)
    with pytest.raises(s2l.UserError, match="extensions that are not ranked yet"):
        extended.ranking()

    done = extended.extend(say=silent)
    assert done.extension is not None or done.selected
    for run, ids in ((extended, [*IDS, *new]), (own, IDS)):
        assert run.clusters().to_numpy("example_id").tolist() == ids
        assert sorted(run.ranking().to_numpy()) == sorted(ids)
        assert sorted(run.select(1.0).ids) == sorted(ids)
    assert extended.select(1.0).extensions and not own.select(1.0).extensions


def test_a_run_says_what_it_does_and_that_there_is_nothing_to_do(tree):
    finish(tree)
    said: list[str] = []
    run = s2l.run(handmade_config(tree), say=said.append)
    assert said[0].startswith("s2l_ray 0.") and said[0].endswith(tree["run_dir"])
    assert said[1].startswith("nothing to do")
    assert run.path == tree["run_dir"]


def handmade_config(tree):
    """The configuration as a file has it: a stored one names every key."""
    return from_tree(tree, "test")


@pytest.mark.parametrize("as_mapping", [True, False])
def test_overrides_are_texts_or_a_mapping(tree, tmp_path, as_mapping):
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(tree))
    finish(changed(changed(tree, "selection.budget", 0.2), "selection.method", "random"))
    overrides = {"selection.budget": 0.2, "selection.method": "random"}
    texts = [f"{key}={value}" for key, value in overrides.items()]
    said: list[str] = []
    run = s2l.run(path, overrides=overrides if as_mapping else texts, say=said.append)
    assert said[1].startswith("nothing to do")
    assert run.config.selection.method == "random"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"from_stage": "scoring"}, "from_stage 'scoring' is no stage; stages: prepare, "),
        ({"until": "scoring"}, "until 'scoring' is no stage"),
        ({"overrides": ["seed=1"]}, "overrides go with a file"),
    ],
)
def test_what_cannot_be_run_is_refused(tree, options, message):
    finish(tree)
    with pytest.raises(s2l.UserError, match=message):
        s2l.run(handmade_config(tree), say=silent, **options)


def test_a_report_is_built_again(tree):
    run = s2l.load(finish(tree, until="clusters").uri)
    assert run.report() == f"{run.path}/report/index.html"
    assert run.results()["report"] == run.report()
