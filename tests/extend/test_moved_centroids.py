"""Extensions that move the centroids: their labels count, and later rows are assigned again."""

import numpy as np
import pytest

from s2l_ray.artifacts import extensions
from s2l_ray.clusters import extension_drift, placement
from s2l_ray.errors import DataError
from s2l_ray.extend import plan as extending
from s2l_ray.extend.base_run import load_base_run
from s2l_ray.pipeline import staleness
from s2l_ray.report.extensions import extensions_view, summary_lines
from s2l_ray.storage.location import Location
from tests import handmade
from tests.extended_by_hand import (
    NUM_NEW,
    content,
    data,
    extend,
    finished_run,
    given,
    inputs,
    new_rows,
)
from tests.handmade import write_subset


@pytest.fixture
def run(tmp_path) -> Location:
    return finished_run(inputs(tmp_path), tmp_path)


def cluster_by_id(extension: extensions.Extension) -> dict[str, int]:
    ranking = (extension.folder("selection") / "ranking.parquet").read_table()
    assert len(set(ranking["example_id"].to_pylist())) == ranking.num_rows
    return dict(zip(ranking["example_id"].to_pylist(), ranking["cluster"].to_pylist(), strict=True))


def expected(further: int, *starts: tuple[int, int]) -> dict[str, int]:
    """Clusters by hand: so much further, for the run and for each (start of rows, further)."""
    number = handmade.NUM_CLUSTERS
    clusters = {example: (row + further) % number for row, example in enumerate(handmade.IDS)}
    for start, of_these in starts:
        rows = enumerate(new_rows(start))
        clusters |= {fields["id"]: (row + of_these) % number for row, fields in rows}
    return clusters


def to_do(run: Location, given=None, moving=None) -> list[str]:
    steps = extending.plan(load_base_run(run), given, moving=moving)
    return [step.label for step in staleness.stale(steps, None)]


def test_all_rows_are_ranked_by_the_labels_of_the_moved_clusters(run, tmp_path):
    before = content(run)
    extension = given(run, data(tmp_path), moving=True)
    assert [step.stage for step in extend(run, data(tmp_path)).done] == ["selection"]

    assert cluster_by_id(extension) == expected(1, (0, 0))
    assert {path: found for path, found in content(run).items() if path in before} == before
    own, _ = write_subset(run, 1.0, "s2l", None, None, extended=False)
    assert own.read_bytes() == (run / "subsets" / "s2l-1.0-42" / "selected.jsonl").read_bytes()


def test_the_last_labels_of_a_row_count(run, tmp_path):
    """The second extension moves the clusters, then a third stays in them, and a fourth moves."""
    given(run, data(tmp_path, 0))
    given(run, data(tmp_path, 10), moving=True)
    third = given(run, data(tmp_path, 20))
    extend(run, data(tmp_path, 20))
    assert cluster_by_id(third) == expected(1, (0, 1), (10, 0), (20, 0))

    fourth = given(run, data(tmp_path, 30), moving=True)
    extend(run, data(tmp_path, 30))
    assert cluster_by_id(fourth) == expected(2, (0, 2), (10, 1), (20, 1), (30, 0))
    _, count = write_subset(run, 1.0, "s2l", None, None)
    assert count == handmade.NUM_ROWS + 4 * NUM_NEW


def test_moved_centroids_stay_moved_without_the_option(run, tmp_path):
    given(run, data(tmp_path), moving=True)
    extend(run, data(tmp_path))
    before = content(run)
    for again in ({}, {"update_centroids": True}):
        assert extend(run, data(tmp_path), **again).done == []
        result = extend(run, **again)
        assert result.done == [] and (result.extension is not None) == bool(again)
    assert content(run) == before


def test_an_extension_that_was_placed_can_move_the_centroids_later(run, tmp_path):
    first = given(run, data(tmp_path, 0))
    second = given(run, data(tmp_path, 10))
    extend(run, data(tmp_path, 10))
    assert to_do(run) == []
    assert to_do(run, moving=second) == [
        f"clusters ({second.name})",
        f"selection ({second.name})",
    ]
    # Later extensions are assigned to the clusters that have moved.
    assert to_do(run, moving=first) == [
        f"clusters ({first.name})",
        f"clusters ({second.name})",
        f"selection ({second.name})",
    ]


def test_it_is_remembered_whatever_is_interrupted(run, tmp_path):
    extension = given(run, data(tmp_path))
    extend(run, data(tmp_path))
    extension.keep_moving()
    assert to_do(run) == [f"clusters ({extension.name})", f"selection ({extension.name})"]
    with pytest.raises(DataError, match=r"as their settings.json says \(first: 001-.*s2l extend"):
        write_subset(run, 1.0, "s2l", None, None)
    assert "as their settings.json says" in extensions_view(run).problem


@pytest.mark.parametrize("settings", [None, {}, {"update_centroids": False}])
def test_without_its_settings_an_extension_is_placed_as_any_other(run, tmp_path, settings):
    extension = given(run, data(tmp_path), moving=True)
    extend(run, data(tmp_path))
    place = run / extensions.FOLDER / extension.name / extensions.SETTINGS
    place.remove() if settings is None else place.write_json(settings)
    assert to_do(run) == [f"clusters ({extension.name})", f"selection ({extension.name})"]
    with pytest.raises(DataError, match=r"1 of 1 extension\(s\) .*as their settings.json says"):
        write_subset(run, 1.0, "s2l", None, None)


def test_what_is_said_again_is_kept_though_nothing_is_to_do(run, tmp_path):
    extension = given(run, data(tmp_path), moving=True)
    extend(run, data(tmp_path))
    settings = run / extensions.FOLDER / extension.name / extensions.SETTINGS
    settings.remove()
    assert extend(run, data(tmp_path), update_centroids=True).done == []
    assert settings.exists() and to_do(run) == []


@pytest.mark.parametrize("of_run", [True, False])
def test_old_trajectories_that_are_gone_are_named(run, tmp_path, of_run):
    first = given(run, data(tmp_path, 0))
    place = run / "trajectories" / "part-000001.parquet"
    if not of_run:
        place = first.folder("trajectories") / "part-000000.parquet"
        (first.folder("prepared") / place.name).write_bytes(b"")
    place.remove()
    before = content(run)
    with pytest.raises(DataError, match=r"1 parts of old trajectories are gone") as caught:
        extend(run, data(tmp_path, 10), update_centroids=True)
    assert str(place) in str(caught.value)
    assert content(run) == before


def test_without_extensions_there_is_nothing_to_move_by(run):
    with pytest.raises(DataError, match="has no extensions yet: name new data"):
        extend(run, update_centroids=True)


def test_rows_that_are_all_known_move_nothing(run, tmp_path):
    path = data(tmp_path)
    base, files = load_base_run(run), extending.input_files.expand([path])
    extension = extending.extension_of(run, (extending.cached_contents(run).file_hash(files[0]),))
    (prepare, *_) = extending.plan(base, extension, files)
    prepare.out.begin()
    # As when it is killed before it is known that no row is new.
    extension.keep_moving()
    prepare.out.finish({"rows": 6, "kept": 0, "known": 6, "rejected": {}, "strata": {}}, 1.0)
    said = []
    done = extending.extend(run, [path], update_centroids=True, say=said.append).done
    assert done == [] and said == ["no row of the data is new: the centroids stay as they are"]
    assert not extension.moves_centroids
    assert extensions.SETTINGS not in (run / extensions.FOLDER / extension.name).names()


def test_centroids_that_moved_were_fitted_to_all_rows_up_to_theirs(run, tmp_path):
    chain = [given(run, data(tmp_path, 0)), given(run, data(tmp_path, 10), moving=True)]
    chain.append(given(run, data(tmp_path, 20)))
    folder, known, fitted = placement.latest_centroids(load_base_run(run), chain[:1])
    assert folder == chain[0].folder("clusters")
    assert extension_drift.rows_fitted_by_stratum(fitted, known["stratum_of_cluster"]) == {
        "": handmade.NUM_ROWS
    }
    folder, known, fitted = placement.latest_centroids(load_base_run(run), chain)
    assert folder == chain[2].folder("clusters")
    assert extension_drift.rows_fitted_by_stratum(fitted, known["stratum_of_cluster"]) == {
        "": handmade.NUM_ROWS + 2 * NUM_NEW
    }
    assert len(fitted[0].files) == 5 and fitted[0].clusters == range(handmade.NUM_CLUSTERS)


def test_how_far_centroids_moved_and_how_many_rows_changed(run, tmp_path):
    extension = given(run, data(tmp_path), moving=True)
    old = extensions.pool(run, []).clusters.files()
    now = extension.folder("clusters")
    moved_KT = np.ones((2, 3), np.float32) * [[4.0], [1.0]]
    (now / "_centroids.npy").write_npy(moved_KT.astype(np.float32))
    stored = {"a": np.ones((1, 3), np.float32), "b": np.ones((1, 3), np.float32)}
    files = [now / f"part-{part:06d}.parquet" for part in range(3)]
    # Three nats in each of three checkpoints, and none.
    assert placement.movement_note(old, files, stored, now) == (
        "centroids moved by 2.6 nats (median; 5.2 at most); 30 of 30 old rows changed their cluster"
    )
    assert placement.movement_note(old, old, stored, now).endswith(
        "0 of 30 old rows changed their cluster"
    )


def test_the_summary_says_that_old_rows_were_placed_as_well(run, tmp_path):
    placed = summary_lines(given(run, data(tmp_path, 0)))
    moved = summary_lines(given(run, data(tmp_path, 10), moving=True))
    assert ("placed", "in 5 of 5 clusters, 0 new") in placed
    assert ("placed", "with all old rows, in 5 of 5 clusters, 0 new") in moved


def test_stored_centroids_come_by_stratum_in_the_order_of_their_numbers(tmp_path):
    centroid_KT = np.arange(10, dtype=np.float32).reshape(5, 2)
    (Location.of(tmp_path) / "_centroids.npy").write_npy(centroid_KT)
    stored = placement.stored_centroids(Location.of(tmp_path), ["b", "b", "c", "a", "a"])

    assert list(stored) == ["b", "c", "a"]
    np.testing.assert_array_equal(np.concatenate(list(stored.values())), centroid_KT)
