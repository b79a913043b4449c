"""Extensions of a run made by hand: what they depend on, and what is done with them without Ray."""

import io

import numpy as np
import pytest

from s2l_ray import config, extending, extensions, finished, outcomes, pipeline, placing
from s2l_ray.artifacts import StageDir
from s2l_ray.errors import ConfigError, DataError, ModelError, StorageError
from s2l_ray.extendable import base_of
from s2l_ray.report.extended import ExtensionLine, OldAndNew
from s2l_ray.storage import Location, exclusive
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
)
from tests.handmade import changed, finish, planned


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
    outcome = extend(run, data(tmp_path))

    assert [step.label for step in outcome.done] == [f"selection ({extension.name})"]
    ranking = (extension.folder("selection") / "ranking.parquet").read_table()
    everyone = handmade.IDS + [row["id"] for row in new_rows(0)]
    assert sorted(ranking["example_id"].to_pylist()) == sorted(everyone)
    head = set(ranking["example_id"].to_pylist()[:6])
    (place,) = outcomes.selected(run)
    assert set(ids(place)) == head
    assert {path: found for path, found in content(run).items() if path in before} == before
    assert pipeline.stale(planned(tree)[:-1], None) == []


def test_a_finished_extension_is_left_as_it_is_whatever_its_file_is_called(run, tmp_path):
    given(run, data(tmp_path))
    extend(run, data(tmp_path))
    before = content(run)

    assert extend(run, data(tmp_path, name="copy")).done == []
    assert extend(run).done == []
    assert content(run) == before


def test_the_order_in_which_files_are_named_changes_nothing(run, tmp_path):
    one, two = data(tmp_path, 0), data(tmp_path, 10)
    contents = extending._contents(run)
    shas = [contents.sha(file) for file in extending.sources.expand([one, two])]
    names = {extending._given(run, tuple(sorted(order))).name for order in (shas, shas[::-1])}
    assert len(names) == 1


def test_a_second_extension_ranks_the_rows_of_the_first_as_well(run, tmp_path):
    given(run, data(tmp_path, 0))
    extend(run, data(tmp_path, 0))
    second = given(run, data(tmp_path, 10))
    extend(run, data(tmp_path, 10))

    assert [item.number for item in extensions.of_run(run)] == [1, 2]
    ranking = (second.folder("selection") / "ranking.parquet").read_table()
    assert ranking.num_rows == handmade.NUM_ROWS + 2 * NUM_NEW
    # The first one's files, named again, are the first one.
    assert extend(run, data(tmp_path, 0)).extension.number == 1


def test_another_subset_comes_from_the_extended_pool_unless_told_otherwise(run, tmp_path):
    own, _ = finished.write_subset(run, 1.0, "s2l", None, None)
    given(run, data(tmp_path))
    extended, count = finished.write_subset(run, 1.0, "s2l", None, None)
    without, _ = finished.write_subset(run, 1.0, "s2l", None, None, extended=False)

    assert count == handmade.NUM_ROWS + NUM_NEW
    assert ids(extended) == handmade.IDS + [row["id"] for row in new_rows(0)]
    assert without == own and ids(own) == handmade.IDS
    assert (run / "subsets").names() == ["s2l-1.0-42-with-001.jsonl", "s2l-1.0-42.jsonl"]


def test_the_extended_ranking_follows_the_selection_of_the_run(run, tree, tmp_path):
    given(run, data(tmp_path))
    extend(run, data(tmp_path))
    loaded = config.from_tree(changed(tree, "selection.budget", 20), "test")
    pipeline.run(loaded, until="selection", say=lambda line: None)

    assert [step.stage for step in extend(run).done] == ["selection"]
    assert len(ids(outcomes.selected(run)[0])) == 20


def redo(step, **inputs):
    """As if the stage had come out with other inputs."""
    manifest = step.out.manifest()
    out = StageDir(step.out.location, step.stage, {**manifest.inputs, **inputs})
    out.finish(manifest.summary, 1.0)
    return out.fingerprint


def test_rows_placed_in_clusters_that_are_no_more_are_placed_again(run, tree, tmp_path):
    given(run, data(tmp_path))
    extend(run, data(tmp_path))
    redo(planned(tree)[3], seed=8)

    with pytest.raises(DataError, match=r"1 of 1 extension\(s\).*clusters that are no more"):
        finished.write_subset(run, 5, "s2l", None, None)
    steps = extending.plan(base_of(run), None)
    extending.refuse_outdated(steps)
    assert [step.stage for step in pipeline.stale(steps, None)] == ["clusters", "selection"]


def redo_otherwise(step, **summary):
    """As if the stage had been done again with equal inputs, and another outcome."""
    manifest = step.out.manifest()
    step.out.finish({**manifest.summary, **summary}, 1.0)


def test_rows_are_placed_again_when_the_same_inputs_gave_other_clusters(run, tree, tmp_path):
    given(run, data(tmp_path))
    extend(run, data(tmp_path))
    clusters = planned(tree)[3].out
    buffer = io.BytesIO()
    np.save(buffer, np.full((handmade.NUM_CLUSTERS, 3), 2, np.float32))
    (clusters.location / "centroids.npy").write_bytes(buffer.getvalue())

    with pytest.raises(DataError, match=r"1 of 1 extension\(s\).*clusters that are no more"):
        finished.write_subset(run, 5, "s2l", None, None)
    steps = extending.plan(base_of(run), None)
    assert [step.stage for step in pipeline.stale(steps, None)] == ["clusters", "selection"]


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

    assert pipeline.stale(planned(tree)[:-1], None) == []
    with pytest.raises(ConfigError, match=f"no longer fit the run: {key} changed"):
        extend(run)


def test_a_stage_that_came_out_the_same_again_leaves_extensions_as_they_are(run, tree, tmp_path):
    given(run, data(tmp_path))
    extend(run, data(tmp_path))
    for step in planned(tree)[:4]:
        redo_otherwise(step, notes=["in smaller batches"], num_losses_before=3)
    assert extend(run).done == []
    finished.write_subset(run, 5, "s2l", None, None)


def test_an_extension_that_is_gone_is_missed(run, tmp_path):
    first = given(run, data(tmp_path, 0))
    second = given(run, data(tmp_path, 10))
    (run / "extensions" / first.name).remove()

    missed = rf"1 of 1 .* came after others that are gone .*first: {second.name}\)"
    with pytest.raises(DataError, match=missed):
        finished.write_subset(run, 5, "s2l", None, None)
    finished.write_subset(run, 5, "s2l", None, None, extended=False)


def test_a_later_extension_is_placed_again_after_an_earlier_one(run, tmp_path):
    first = given(run, data(tmp_path, 0))
    second = given(run, data(tmp_path, 10))
    out = StageDir(first.folder("clusters"), "clusters", {})
    manifest = out.manifest()
    StageDir(out.location, "clusters", {**manifest.inputs, "seed": 8}).finish(manifest.summary, 1.0)

    with pytest.raises(DataError, match=rf"1 of 2 extension.*no more \(first: {second.name}\)"):
        finished.write_subset(run, 5, "s2l", None, None)


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
    base, files = base_of(run), extending.sources.expand([path])
    extension = extending._given(run, (extending._contents(run).sha(files[0]),))
    (prepare, *_) = extending.plan(base, extension, files)
    prepare.out.begin()
    prepare.out.finish({"rows": 6, "kept": 0, "known": 6, "rejected": {}, "strata": {}}, 1.0)

    assert extend(run, path).done == []
    assert outcomes.summary_lines(extension) == [("new rows", "0 of 6; 6 were known, 0 rejected")]
    assert extensions.extended_pool(run).extensions == []
    with pytest.raises(DataError, match="has no extensions yet"):
        extend(run)


def prepare_alone(run: Location, path: str, strata: dict[str, int]) -> extensions.Extension:
    """The extension of a file whose rows are prepared and not scored."""
    base, files = base_of(run), extending.sources.expand([path])
    extension = extending._given(run, (extending._contents(run).sha(files[0]),))
    (prepare, *_) = extending.plan(base, extension, files)
    prepare.out.begin()
    told = {"rows": 6, "kept": sum(strata.values()), "known": 0, "rejected": {}, "strata": strata}
    prepare.out.finish(told, 1.0)
    return extension


def reselect(tree: dict, run: Location, **selection: object) -> dict:
    """Another selection of the run, in its own pool."""
    tree = {**tree, "selection": {**tree["selection"], **selection}}
    pipeline.run(config.from_tree(tree, "test"), until="selection", say=lambda line: None)
    return tree


def test_minima_that_new_strata_make_too_many_are_refused_before_any_scoring(run, tree, tmp_path):
    reselect(tree, run, minimum=3)
    extension = prepare_alone(run, data(tmp_path), {"art": 6})
    with pytest.raises(DataError, match=r"budget of 6 .*minimum alone asks for 9 over 3 strata"):
        extend(run, data(tmp_path))
    assert not extension.folder("trajectories").names()


def test_minima_are_looked_at_once_more_when_new_rows_are_prepared(run, tree, tmp_path):
    reselect(tree, run, minimum=3)
    extension = prepare_alone(run, data(tmp_path), {"art": 6})
    base = base_of(run)
    scoring = [step for step in extending.plan(base, extension) if step.stage == "trajectories"]
    with pytest.raises(DataError, match="minimum alone asks for 9 over 3 strata"):
        extending._carry_out(base, scoring, extension, lambda line: None)


def test_a_stratum_that_only_an_extension_has_can_be_named(run, tree, tmp_path):
    weighed = {"weights": {"art": 5.0}, "minimum": {"art": 4}}
    with pytest.raises(DataError, match=r"selection\.weights: 1 of 1 names are no strata"):
        reselect(tree, run, **weighed)
    extension = given(run, data(tmp_path), stratum="art")
    extend(run, data(tmp_path))
    reselect(tree, run, **weighed)
    extend(run)
    ranking = (extension.folder("selection") / "ranking.parquet").read_table()
    assert ranking["stratum"].to_pylist()[:4] == ["art"] * 4
    _, count = finished.write_subset(run, 5, "s2l", None, None, extended=False)
    assert count == 5
    with pytest.raises(DataError, match=r"selection\.weights: 1 of 1 names are no strata"):
        reselect(tree, run, weights={"arts": 5.0})


def test_an_extension_with_a_stratum_that_is_named_can_be_made_again(run, tree, tmp_path):
    extension = given(run, data(tmp_path), stratum="art")
    extend(run, data(tmp_path))
    reselect(tree, run, weights={"art": 5.0})
    (run / "extensions").remove()
    # Nothing is prepared yet, so no one knows of the stratum.
    extending._check_strata(base_of(run))
    assert extension.summary("prepare") is None


def test_what_was_begun_with_data_that_was_then_mended_makes_way(run, tmp_path):
    begun = run / "extensions" / "001-0123456789abcdef"
    (begun / "prepared" / "staged" / "file.json").write_bytes(b"")
    given(run, data(tmp_path))
    extend(run, data(tmp_path))
    assert begun.name not in (run / "extensions").names()


def test_a_run_in_use_is_refused(run, tmp_path):
    with exclusive(run):
        # Whoever uses it may be redoing its stages: nothing is said of them.
        (run / "clusters" / "manifest.json").remove()
        with pytest.raises(StorageError, match="is in use by another run"):
            extend(run, data(tmp_path))


def test_data_that_is_not_there_is_refused(run, tmp_path):
    with pytest.raises(DataError, match=r"DATA: .*nothing\.jsonl matches no file"):
        extend(run, str(tmp_path / "nothing.jsonl"))


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere is no run of s2l_ray"):
        extend(Location.of(tmp_path / "nowhere"), data(tmp_path))
    assert not (tmp_path / "nowhere").exists()


def test_brought_trajectories_have_no_checkpoints(tree, tmp_path):
    (tmp_path / "losses.parquet").write_bytes(b"1")
    brought = {key: tree[key] for key in ("run_dir", "clusters", "selection")}
    brought["trajectories"] = {"path": str(tmp_path / "losses.parquet")}
    run = finish(brought, until="clusters")
    with pytest.raises(DataError, match=r"no checkpoints.*trajectories were computed elsewhere"):
        extend(run, data(tmp_path))


def test_a_run_without_clusters_is_refused(tree, tmp_path):
    run = finish(changed(changed(tree, "selection", None), "clusters", None), until="trajectories")
    with pytest.raises(DataError, match="has no clusters to place new rows in"):
        extend(run, data(tmp_path))


@pytest.mark.parametrize("until", ["prepare", "reference", "trajectories"])
def test_a_run_that_is_not_finished_is_refused(tree, tmp_path, until):
    run = finish(tree, until=until)
    with pytest.raises(DataError, match="are not finished"):
        extend(run, data(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [("tokenizer/tokenizer.json", "data.tokenizer is not what"), ("template.txt", "data.template")],
)
def test_rows_that_would_be_read_in_another_way_are_refused(run, tmp_path, name, message):
    (tmp_path / name).write_text("{prompt} of another kind")
    with pytest.raises(DataError, match=message):
        extend(run, data(tmp_path))


def test_a_checkpoint_that_is_gone_is_named(run, tmp_path):
    (run / "reference" / "step-000002").remove()
    with pytest.raises(ModelError, match=r"1 of 1 checkpoints .* are gone .*step-000002"):
        extend(run, data(tmp_path))


def test_the_report_shows_what_came_of_every_extension(run, tree, tmp_path):
    assert outcomes.extensions_view(run) is None
    first = given(run, data(tmp_path, 0))
    out = StageDir(first.folder("clusters"), "clusters", first_inputs(first))
    fit = {
        "rows": 6,
        "median_distance_nats": {"old": 1.0, "new": 2.0},
        "p95_distance_nats": {"old": 3.0, "new": 4.0},
        "share_beyond_p95": {"old": 0.04, "new": 0.5},
        "reclustering_due": True,
    }
    out.finish({**first.summary("clusters"), "fit": fit}, 1.0)
    given(run, data(tmp_path, 10))
    view = outcomes.extensions_view(run)
    assert view.lines[0] == ExtensionLine(
        first.name,
        num_new=NUM_NEW,
        num_known=2,
        num_rejected=1,
        num_clusters_used=5,
        num_clusters=5,
        median_nats=OldAndNew(1.0, 2.0),
        p95_nats=OldAndNew(3.0, 4.0),
        share_beyond_p95=0.5,
        reclustering_due=True,
    )
    assert view.lines[1].median_nats is None and view.hindrance == ""
    assert view.fit.startswith("cannot be judged")
    redo(planned(tree)[3], seed=8)
    assert "were placed in clusters that are no more" in outcomes.extensions_view(run).hindrance


def test_the_page_of_an_extended_run_has_the_section(run, tmp_path):
    given(run, data(tmp_path))
    assert '<section id="extensions">' in finished.rebuild_report(run).read_bytes().decode()


def first_inputs(extension: extensions.Extension) -> dict:
    return StageDir(extension.folder("clusters"), "clusters", {}).manifest().inputs


def test_stored_centroids_come_by_stratum_in_the_order_of_their_numbers(tmp_path):
    centroid_KT = np.arange(10, dtype=np.float32).reshape(5, 2)
    buffer = io.BytesIO()
    np.save(buffer, centroid_KT)
    (Location.of(tmp_path) / "centroids.npy").write_bytes(buffer.getvalue())
    stored = placing._stored(Location.of(tmp_path), ["b", "b", "c", "a", "a"])

    assert list(stored) == ["b", "c", "a"]
    np.testing.assert_array_equal(np.concatenate(list(stored.values())), centroid_KT)
