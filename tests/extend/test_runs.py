"""New data for a finished run: scored and placed, whatever happens on the way; the run stays."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.small_extension import KNOWN, NEW, RENAMED, SPELT, content, folder, kill_at
from tests.small_run import (
    NOBODY,
    manifest,
    refusal,
    rows,
    schema,
    sets,
    stages_done,
    state,
    table,
    write_rows,
)

pytestmark = pytest.mark.ray


def test_the_run_is_still_finished_and_the_same_data_again_is_nothing_to_do(
    extended, config, new_data, s2l
):
    before = state(extended)
    again = s2l("run", config, "--address", NOBODY, *sets(run_dir=extended))
    assert again.returncode == 0 and "nothing to do" in again.stdout
    copy = shutil.copy(new_data, Path(new_data).parent / "other.jsonl")
    same = s2l("extend", extended, copy, "--address", NOBODY)
    assert same.returncode == 0 and "nothing to do" in same.stdout, same.stderr
    assert "new rows  47 of 58; 10 already in the pool, 1 rejected" in same.stdout
    assert state(extended) == before


def test_only_new_rows_are_prepared_and_scored(extended):
    place = folder(extended)
    prepared, losses = table(place / "prepared"), table(place / "trajectories")
    originals = table(place / "prepared", "rows-*.parquet")
    assert originals["instruction"].to_pylist() == [row["instruction"] for row in NEW]
    assert prepared["example_id"].to_pylist() == losses["example_id"].to_pylist()
    old = set(table(extended / "prepared")["example_id"].to_pylist())
    assert not old & set(prepared["example_id"].to_pylist())
    assert schema(losses) == schema(table(extended / "trajectories"))
    assert manifest(place / "prepared")["summary"]["known"] == len(KNOWN)


def test_a_row_has_the_losses_and_the_embedding_that_it_has_in_the_run(extended):
    """Other rows of its part make other batches, so the last bits may differ."""
    old, new = table(extended / "trajectories"), table(folder(extended) / "trajectories")
    first = new["example_id"].to_pylist().index("again-0")
    again_NT = np.stack(new["loss_nats"].to_numpy()[first : first + len(RENAMED)])
    np.testing.assert_allclose(again_NT, np.stack(old["loss_nats"].to_numpy()[20:30]), rtol=1e-5)
    old_NH, again_NH = (
        np.stack(table(place / "embeddings", "embeddings-*")["embedding"].to_numpy())
        for place in (extended, folder(extended))
    )
    assert not (folder(extended) / "queries").exists()
    old_N, again_N = (
        table(place / "error_norms", "error_norms-*")["error_norm"].to_numpy()
        for place in (extended, folder(extended))
    )
    np.testing.assert_allclose(again_N[first : first + len(RENAMED)], old_N[20:30], rtol=1e-4)
    np.testing.assert_allclose(again_NH[first : first + len(RENAMED)], old_NH[20:30], atol=1e-3)


def test_rows_are_in_the_nearest_stored_cluster_of_their_stratum(extended):
    place = folder(extended)
    centroid_KT = np.load(extended / "clusters" / "_centroids.npy")
    strata = manifest(extended / "clusters")["summary"]["stratum_of_cluster"]
    now = manifest(place / "clusters")["summary"]["stratum_of_cluster"]
    assert now[: len(strata)] == strata and set(now[len(strata) :]) == {"spell"}
    np.testing.assert_array_equal(
        np.load(place / "clusters" / "_centroids.npy")[: len(strata)], centroid_KT
    )
    losses = np.stack(table(place / "trajectories")["loss_nats"].to_numpy()).astype(float)
    for loss_T, item in zip(losses, table(place / "clusters").to_pylist(), strict=True):
        if item["stratum"] == "spell":
            assert item["cluster"] >= len(strata)
            continue
        sqdist_K = ((loss_T - centroid_KT.astype(float)) ** 2).sum(axis=1)
        sqdist_K[np.array(strata) != item["stratum"]] = np.inf
        assert item["cluster"] == sqdist_K.argmin()
        assert item["sqdist"] == pytest.approx(sqdist_K.min(), rel=1e-5)


def test_the_budget_is_spread_over_all_rows(extended, finished):
    place = folder(extended) / "selection"
    ranking = table(place, "ranking.parquet").to_pylist()
    assert len({row["example_id"] for row in ranking}) == 60 + len(NEW)
    assert {row["stratum"] for row in ranking} == {"add", "copy", "shout", "spell"}
    head = {row["example_id"] for row in ranking if row["rank"] < int(0.4 * 107)}
    chosen = [
        json.loads(line)
        for line in (place.parent / "subset" / "selected.jsonl").read_text().splitlines()
    ]
    assert {row["example_id"] for row in chosen} == head and len(chosen) == len(head)
    untouched = [{k: v for k, v in row.items() if k != "example_id"} for row in chosen]
    assert all(row in rows() + NEW for row in untouched)


def test_a_subset_comes_from_old_and_new_rows(extended, finished, s2l, tmp_path):
    places = {}
    for flag in ("--without-extensions", None):
        out = tmp_path / f"{flag}.jsonl"
        done = s2l("select", extended, "--budget", 0.4, "--out", out, *filter(None, [flag]))
        assert done.returncode == 0, done.stderr
        assert ("the run with 1 extension(s)" in done.stdout) == (flag is None)
        places[flag] = out.read_bytes()
    assert places[None] == (folder(extended) / "subset" / "selected.jsonl").read_bytes()
    done = s2l("export", extended, tmp_path / "export", "--to", "trl")
    assert "note      these are rows of the run with 1 extension(s)" in done.stdout
    assert places["--without-extensions"] == (finished / "subset" / "selected.jsonl").read_bytes()


@pytest.mark.cluster
def test_whatever_is_killed_the_end_is_the_same(extended, copied, new_data, s2l, s2l_environment):
    run = copied()
    for beginning in (
        "prepared/staged/tokenised-",
        "trajectories/units/losses-",
        "clusters/_manifest",
    ):
        kill_at(beginning, run, new_data, s2l_environment)
    done = s2l("extend", run, new_data)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "prepare" not in stages_done(done.stdout)
    assert content(run) == content(extended)


def test_a_second_extension_knows_the_first(extended, new_data, s2l, tmp_path):
    run = Path(shutil.copytree(extended, tmp_path / "run"))
    before = state(run)
    del before[str(run / "extensions" / "contents.json")]
    more = rows(first=300)[30:36] + SPELT
    done = s2l("extend", run, new_data, write_rows(tmp_path / "more.jsonl", more))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = manifest(folder(run, 2) / "prepared")["summary"]
    # What is spelt is twice in these files, and so once more than was known.
    assert summary["kept"] == 6 + len(SPELT) and summary["known"] == len(KNOWN) + len(NEW)
    spelt = [item for item in table(folder(run, 2) / "clusters").to_pylist()]
    first = manifest(folder(run) / "clusters")["summary"]["num_clusters"]
    assert manifest(folder(run, 2) / "clusters")["summary"]["num_clusters"] == first
    assert {item["stratum"] for item in spelt} >= {"spell"}
    ranking = table(folder(run, 2) / "selection", "ranking.parquet")
    assert ranking.num_rows == 60 + len(NEW) + 6 + len(SPELT)
    assert {path: found for path, found in state(run).items() if path in before} == before


@pytest.mark.parametrize("options", [[], ["--update-centroids"]])
def test_rows_that_are_all_known_leave_the_pool_as_it_is(copied, s2l, tmp_path, options):
    run = copied()
    done = s2l("extend", run, write_rows(tmp_path / "old.jsonl", rows()[::-1]), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert stages_done(done.stdout) == {"prepare"}
    assert "new rows  0 of 60; 60 already in the pool, 0 rejected" in done.stdout
    assert ("the centroids stay as they are" in done.stdout) == bool(options)
    assert [path.name for path in folder(run).iterdir()] == ["prepared"]


def test_rows_that_cannot_be_used_are_explained(copied, s2l, tmp_path):
    run = copied()
    before = state(run)
    bad = write_rows(tmp_path / "bad.jsonl", rows(first=200)[:4], bad="{\n{\n")
    message = refusal(s2l("extend", run, bad))
    assert "the new data: 2 of 6 rows cannot be used" in message and "bad.jsonl row 4" in message
    assert {path: found for path, found in state(run).items() if path in before} == before
