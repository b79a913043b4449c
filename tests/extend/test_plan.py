"""Extensions of a run made by hand: their inputs, and the steps that are done without Ray."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ray.artifacts import extensions
from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import part_name, trajectory_table
from s2l_ray.config.load import from_tree
from s2l_ray.distributed import resources
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.extend import plan as extending
from s2l_ray.extend.base_run import load_base_run
from s2l_ray.pipeline import run as pipeline
from s2l_ray.pipeline import staleness
from s2l_ray.report.extensions import subset_files, summary_lines
from s2l_ray.storage.location import Location
from tests import handmade
from tests.extended_by_hand import (
    NUM_NEW,
    content,
    data,
    extend,
    finished_run,
    given,
    ids,
    inputs,
    new_rows,
    redo,
)
from tests.handmade import changed, planned, write_subset


@pytest.fixture
def tree(tmp_path):
    return inputs(tmp_path)


@pytest.fixture
def run(tree, tmp_path) -> Location:
    return finished_run(tree, tmp_path)


def test_the_budget_is_spread_over_old_and_new_rows_and_the_run_stays_as_it_was(
    run, tree, tmp_path
):
    before = content(run)
    extension = given(run, data(tmp_path))
    result = extend(run, data(tmp_path))

    assert [step.label for step in result.done] == [f"selection ({extension.name})"]
    ranking = (extension.folder("selection") / "ranking.parquet").read_table()
    everyone = handmade.IDS + [row["id"] for row in new_rows(0)]
    assert sorted(ranking["example_id"].to_pylist()) == sorted(everyone)
    head = set(ranking["example_id"].to_pylist()[:6])
    (place,) = subset_files(run)
    assert set(ids(place)) == head
    assert {path: found for path, found in content(run).items() if path in before} == before
    assert staleness.stale(planned(tree)[:-1], None) == []


def test_a_finished_extension_is_left_as_it_is_whatever_its_file_is_called(run, tmp_path):
    given(run, data(tmp_path))
    extend(run, data(tmp_path))
    before = content(run)

    assert extend(run, data(tmp_path, name="copy")).done == []
    assert extend(run).done == []
    assert content(run) == before


def test_the_order_in_which_files_are_named_changes_nothing(run, tmp_path):
    one, two = data(tmp_path, 0), data(tmp_path, 10)
    contents = extending.cached_contents(run)
    hashes = [contents.file_hash(file) for file in extending.input_files.expand([one, two])]
    names = {extending.extension_of(run, order).name for order in (hashes, hashes[::-1])}
    assert len(names) == 1


def test_a_second_extension_ranks_the_rows_of_the_first_as_well(run, tmp_path):
    given(run, data(tmp_path, 0))
    extend(run, data(tmp_path, 0))
    second = given(run, data(tmp_path, 10))
    extend(run, data(tmp_path, 10))

    assert [item.number for item in extensions.list_prepared(run)] == [1, 2]
    ranking = (second.folder("selection") / "ranking.parquet").read_table()
    assert ranking.num_rows == handmade.NUM_ROWS + 2 * NUM_NEW
    # The first one's files, named again, are the first one.
    assert extend(run, data(tmp_path, 0)).extension.number == 1


def test_another_subset_comes_from_the_extended_pool_unless_told_otherwise(run, tmp_path):
    own, _ = write_subset(run, 1.0, "s2l", None, None)
    given(run, data(tmp_path))
    extended, count = write_subset(run, 1.0, "s2l", None, None)
    without, _ = write_subset(run, 1.0, "s2l", None, None, extended=False)

    assert count == handmade.NUM_ROWS + NUM_NEW
    assert ids(extended) == handmade.IDS + [row["id"] for row in new_rows(0)]
    assert without == own and ids(own) == handmade.IDS
    assert (run / "subsets").names() == ["s2l-1.0-42", "s2l-1.0-42-with-001"]


def test_the_extended_ranking_follows_the_selection_of_the_run(run, tree, tmp_path):
    given(run, data(tmp_path))
    extend(run, data(tmp_path))
    loaded = from_tree(changed(tree, "selection.budget", 20), "test")
    pipeline.run(loaded, until="selection", say=lambda line: None)

    assert [step.stage for step in extend(run).done] == ["selection"]
    assert len(ids(subset_files(run)[0])) == 20


def test_scores_and_conditions_hold_for_old_and_new_rows(tree, tmp_path):
    score = str(tmp_path / "scores.parquet")
    new = [row["id"] for row in new_rows(0)]

    def write(ids):
        pq.write_table(pa.table({"example_id": ids, "reward": range(len(ids))}), score)

    write(handmade.IDS)
    keys = {"budget": 6, "method": "score", "score": f"{score}#reward", "stratify": False}
    where = "not instruction like 'new 5'"
    run = finished_run(changed(tree, "selection", {**keys, "where": where}), tmp_path)
    parts = given(run, data(tmp_path)).folder("prepared")
    (parts / part_name(0)).write_table(pa.table({"example_id": new}))
    with pytest.raises(DataError, match=r"35 examples 5 have no score \(first: n0, n1, n2"):
        extend(run, data(tmp_path))
    with pytest.raises(DataError, match="5 have no score"):
        extending.check_selection(load_base_run(run))

    write([*handmade.IDS, *new])
    extend(run, data(tmp_path))
    (place,) = subset_files(run)
    assert set(ids(place)) == {*new[:-1], handmade.IDS[-1]}
    assert extend(run).done == []
    write([*new, *handmade.IDS])
    assert [step.stage for step in extend(run).done] == ["selection"]
    assert set(ids(place)) == set(handmade.IDS[-6:])


def test_rows_placed_in_clusters_that_are_no_more_are_placed_again(run, tree, tmp_path):
    given(run, data(tmp_path))
    extend(run, data(tmp_path))
    redo(planned(tree)[3], seed=8)

    with pytest.raises(DataError, match=r"1 of 1 extension\(s\).*clusters that no longer exist"):
        write_subset(run, 5, "s2l", None, None)
    steps = extending.plan(load_base_run(run), None)
    extending.refuse_outdated(steps)
    assert [step.stage for step in staleness.stale(steps, None)] == ["clusters", "selection"]


def redo_otherwise(step, **summary):
    """Finish a step again with equal inputs and another summary."""
    manifest = step.out.manifest()
    step.out.finish({**manifest.summary, **summary}, 1.0)


def test_rows_are_placed_again_when_the_same_inputs_gave_other_clusters(run, tree, tmp_path):
    given(run, data(tmp_path))
    extend(run, data(tmp_path))
    clusters = planned(tree)[3].out
    (clusters.location / "_centroids.npy").write_npy(
        np.full((handmade.NUM_CLUSTERS, 3), 2, np.float32)
    )

    with pytest.raises(DataError, match=r"1 of 1 extension\(s\).*clusters that no longer exist"):
        write_subset(run, 5, "s2l", None, None)
    steps = extending.plan(load_base_run(run), None)
    assert [step.stage for step in staleness.stale(steps, None)] == ["clusters", "selection"]


@pytest.mark.parametrize(
    ("number", "summary", "key"),
    [
        (0, {"kept": 29}, "prepare of the run"),
        (2, {"mean_loss_nats": [1.5]}, "trajectories of the run"),
    ],
)
def test_rows_scored_for_another_outcome_of_the_same_inputs_no_longer_count(
    run, tree, tmp_path, number, summary, key
):
    given(run, data(tmp_path))
    extend(run, data(tmp_path))
    redo_otherwise(planned(tree)[number], **summary)

    assert staleness.stale(planned(tree)[:-1], None) == []
    with pytest.raises(ConfigError, match=f"no longer fit the run: {key} changed"):
        extend(run)


def test_a_stage_that_came_out_the_same_again_leaves_extensions_as_they_are(run, tree, tmp_path):
    given(run, data(tmp_path))
    extend(run, data(tmp_path))
    for step in planned(tree)[:4]:
        redo_otherwise(step, notes=["in smaller batches"], num_losses_before=3)
    assert extend(run).done == []
    write_subset(run, 5, "s2l", None, None)


def test_an_extension_that_is_gone_is_missed(run, tmp_path):
    first = given(run, data(tmp_path, 0))
    second = given(run, data(tmp_path, 10))
    (run / "extensions" / first.name).remove()

    missed = rf"1 of 1 .* came after others that are gone .*first: {second.name}\)"
    with pytest.raises(DataError, match=missed):
        write_subset(run, 5, "s2l", None, None)
    write_subset(run, 5, "s2l", None, None, extended=False)


def test_a_later_extension_is_placed_again_after_an_earlier_one(run, tmp_path):
    first = given(run, data(tmp_path, 0))
    second = given(run, data(tmp_path, 10))
    out = StageDir(first.folder("clusters"), "clusters", {})
    manifest = out.manifest()
    StageDir(out.location, "clusters", {**manifest.inputs, "seed": 8}).finish(manifest.summary, 1.0)

    with pytest.raises(
        DataError, match=rf"1 of 2 extension.*no longer exist.* \(first: {second.name}\)"
    ):
        write_subset(run, 5, "s2l", None, None)


def test_losses_at_checkpoints_that_are_no_more_are_not_thrown_away(run, tree, tmp_path):
    given(run, data(tmp_path))
    steps = planned(tree)
    reference = redo(steps[1], seed=8)
    trajectories = redo(steps[2], reference=reference)
    redo(steps[3], trajectories=trajectories)

    before = content(run)
    with pytest.raises(ConfigError, match="trajectories of the run changed") as caught:
        extend(run)
    assert f"Remove {run}/extensions," in str(caught.value)
    assert content(run) == before


def test_rows_that_are_all_known_make_no_extension(run, tmp_path):
    path = data(tmp_path)
    base, files = load_base_run(run), extending.input_files.expand([path])
    extension = extending.extension_of(run, (extending.cached_contents(run).file_hash(files[0]),))
    (prepare, *_) = extending.plan(base, extension, files)
    prepare.out.begin()
    prepare.out.finish({"rows": 6, "kept": 0, "known": 6, "rejected": {}, "strata": {}}, 1.0)

    assert extend(run, path).done == []
    assert summary_lines(extension) == [("new rows", "0 of 6; 6 already in the pool, 0 rejected")]
    assert extensions.extended_pool(run).extensions == []
    with pytest.raises(DataError, match="has no extensions yet"):
        extend(run)


def test_what_was_begun_with_data_that_was_then_mended_makes_way(run, tmp_path):
    begun = run / "extensions" / "001-0123456789abcdef"
    (begun / "prepared" / "staged" / "file.json").write_bytes(b"")
    said = []
    extending.remove_unprepared(run, extensions.Extension(run, 1, ("0",)), said.append)
    assert begun.name not in (run / "extensions").names()
    assert said == [
        f"removing extensions/{begun.name}: begun with other data, its rows never prepared"
    ]


def test_what_was_begun_stays_where_no_new_extension_is(run, tmp_path):
    given(run, data(tmp_path))
    begun = run / "extensions" / "002-0123456789abcdef"
    (begun / "prepared" / "staged" / "file.json").write_bytes(b"")
    # Something is to do, whether the data is named again or not.
    for paths in ([], [data(tmp_path)]):
        assert [step.stage for step in extend(run, *paths).done] == ["selection"]
        extensions.list_prepared(run)[0].folder("selection").remove()
    assert begun.name in (run / "extensions").names()


def test_a_ranking_by_clusters_that_are_no_more_does_not_stay(run, tmp_path):
    first = given(run, data(tmp_path, 0))
    extend(run, data(tmp_path, 0))
    second = given(run, data(tmp_path, 10))
    extend(run, data(tmp_path, 10))
    assert first.folder("selection").names() and second.folder("selection").names()

    base = load_base_run(run)
    placing, *_ = staleness.stale(extending.plan(base, None, moving=first), None)
    by_hand = replace(placing, work=lambda progress: {})
    extending.carry_out(base, [by_hand], None, lambda line: None)
    assert not first.folder("selection").names() and second.folder("selection").names()


def test_rows_that_are_scored_are_assigned_in_this_process_where_their_losses_fit(
    run, tmp_path, monkeypatch
):
    extension = given(run, data(tmp_path))
    ids = pa.array([row["id"] for row in new_rows(0)])
    losses = trajectory_table(ids, ids, np.ones((NUM_NEW, 3), np.float32))
    (extension.folder("trajectories") / part_name(0)).write_table(losses)
    (placing,) = (
        step for step in extending.plan(load_base_run(run), None) if step.stage == "clusters"
    )
    assert not pipeline.needs_ray([placing], None)
    monkeypatch.setattr(resources, "MAX_BYTES_HERE", 4 * 3 * NUM_NEW - 1)
    assert pipeline.needs_ray([placing], None)
