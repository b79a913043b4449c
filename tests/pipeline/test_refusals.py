"""Refusals, before anything is done or as soon as possible; the run stays as it was."""

import sys

import pytest

from s2l_ray.artifacts.manifest import MANIFEST, StageDir, open_run
from s2l_ray.errors import ConfigError, DataError, StorageError, UserError
from s2l_ray.storage.location import Location
from s2l_ray.storage.lock import exclusive
from tests import handmade
from tests.handmade import changed, finish, run
from tests.small_run import NOBODY

HOWEVER_FAR = [{"address": NOBODY, "until": until} for until in ("trajectories", None)]


@pytest.fixture
def tree(tmp_path):
    return handmade.inputs(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("selection.budget", 31, "more than the pool"),
        ("selection.budget", "1235 tokens", r"more than the pool .* \(1,234 tokens\)"),
        ("reference.checkpoints", 7, "7 checkpoints cannot come from 6 optimizer steps"),
    ],
)
def test_what_the_pool_is_too_small_for_costs_no_finished_work(tree, key, value, message):
    place = finish(tree, until="selection")

    with pytest.raises(UserError, match=message):
        run(changed(tree, key, value), from_stage=key.partition(".")[0])
    assert (place / "selection" / MANIFEST).exists()


def test_an_end_before_the_beginning_is_refused_and_nothing_is_lost(tree):
    place = finish(tree, until="selection")

    with pytest.raises(ConfigError, match="--until reference stops before --from selection"):
        run(changed(tree, "seed", 7), from_stage="selection", until="reference")
    assert (place / "selection" / MANIFEST).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"maths": 2.0}}, r"'maths'\); did you mean 'math'"),
        ({"minimum": {"code": 11}}, "'code' has 10 of 11"),
        ({"minimum": 4}, "alone asks for 8 over 2"),
        ({"maximum": 2}, "leaves 4"),
        ({"maximum": {"math": 2}, "method": "random", "baselines": ["s2l"], "budget": 13}, "s 12"),
    ],
)
def test_strata_that_will_not_do_are_refused_as_soon_as_they_are_counted(tree, changes, message):
    run_dir = finish(tree, until="prepare")
    place = run_dir / "prepared" / MANIFEST
    manifest = place.read_json()
    manifest["summary"]["strata"] = {"code": 10, "math": 20}
    place.write_json(manifest)

    with pytest.raises(DataError, match=message):
        run(changed(tree, "selection", {"budget": 6, **changes}))
    assert not (run_dir / "reference").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"budget": "5 tokens"},
        {"budget": 5, "method": "longest-responses"},
        {"budget": 5, "baselines": ["longest-responses"]},
    ],
)
def test_tokens_that_nothing_would_count_are_asked_for_before_anything_is_done(
    tree, tmp_path, changes
):
    (tmp_path / "losses.parquet").write_bytes(b"1")
    brought = {"trajectories": {"path": str(tmp_path / "losses.parquet")}, "selection": changes}
    without = {
        "run_dir": tree["run_dir"],
        "clusters": {"num_clusters": 3, "rows_per_cluster": 1},
        **brought,
    }

    with pytest.raises(DataError, match="there is no `data`"):
        run(without)
    with pytest.raises(DataError, match=r"`data\.tokenizer` is not given"):
        run({**without, "data": tree["data"]})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", HOWEVER_FAR)
@pytest.mark.parametrize("key", ["method", "baselines"])
def test_embeddings_that_nothing_would_leave_are_asked_for_before_anything_is_done(
    tree, tmp_path, key, options
):
    method = "facility-location"
    section = {"budget": 5, key: method if key == "method" else [method]}
    with pytest.raises(ConfigError, match=rf"{method} compares .*`trajectories\.embeddings: true`"):
        run(changed(tree, "selection", section), **options)
    embedded = changed(tree, "trajectories.embeddings", True)
    with pytest.raises(ConfigError, match=r"rds-plus compares .* `trajectories\.queries`"):
        run(changed(embedded, "selection", {"budget": 5, "method": "rds-plus"}), **options)
    (tmp_path / "losses.parquet").write_bytes(b"1")
    brought = {"trajectories": {"path": str(tmp_path / "losses.parquet")}, "selection": section}
    with pytest.raises(ConfigError, match=rf"{method} compares .*Choose another method"):
        run(
            {
                "run_dir": tree["run_dir"],
                "clusters": {"num_clusters": 3, "rows_per_cluster": 1},
                **brought,
            },
            **options,
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", HOWEVER_FAR)
@pytest.mark.parametrize("key", ["method", "baselines"])
def test_error_norms_that_nothing_would_leave_are_asked_for_before_anything_is_done(
    tree, tmp_path, key, options
):
    section = {"budget": 5, key: "el2n" if key == "method" else ["el2n"]}
    asked = r"el2n looks at error norms .*`trajectories\.error_norms: true`.*--from trajectories"
    with pytest.raises(ConfigError, match=asked):
        run(changed(tree, "selection", section), **options)
    (tmp_path / "losses.parquet").write_bytes(b"1")
    brought = {"trajectories": {"path": str(tmp_path / "losses.parquet")}, "selection": section}
    with pytest.raises(ConfigError, match=r"el2n looks at .*Choose another method"):
        run(
            {
                "run_dir": tree["run_dir"],
                "clusters": {"num_clusters": 3, "rows_per_cluster": 1},
                **brought,
            },
            **options,
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"question": "1"}\n', "none of the first 1 rows .* no 'instruction'"),
        ("", r"data\.eval\.held: there are no rows"),
        (
            '{"instruction": "1", "output": "2"}\n{\n',
            "1 of 2 rows cannot be used",
        ),
    ],
)
def test_held_out_rows_that_cannot_be_used_cost_no_training(tree, tmp_path, rows, message):
    (tmp_path / "held.jsonl").write_text(rows)

    with pytest.raises(DataError, match=message):
        run(tree)
    assert not (tmp_path / "run").exists()


def test_a_package_that_only_the_target_needs_is_asked_for_at_the_start(
    tree, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "peft", None)

    with pytest.raises(ConfigError, match=r"target\.lora needs the package peft: pip install"):
        run(changed(tree, "target.lora", {"rank": 2}))
    assert not (tmp_path / "run").exists()


def test_trajectories_that_are_brought_anew_are_not_counted_by_the_old_ones(tree, tmp_path):
    brought = tmp_path / "losses.parquet"
    tree = {"run_dir": tree["run_dir"], "trajectories": {"path": str(brought)}}
    tree |= {"clusters": {"num_clusters": 3, "rows_per_cluster": 1}, "selection": {"budget": 31}}
    brought.write_bytes(b"new")
    old = StageDir(Location.of(tree["run_dir"]) / "trajectories", "trajectories", {"old": 1})
    open_run(Location.of(tree["run_dir"]))
    old.begin()
    old.finish({"rows": 30, "steps": None}, 1.0)

    # It comes as far as joining a cluster, which is not there.
    with pytest.raises(ConfigError, match="no Ray cluster answers"):
        run(tree, from_stage="trajectories", address=NOBODY)


@pytest.mark.parametrize("content", ["thesis.tex", "prepared"])
def test_a_folder_that_is_not_a_run_is_refused_and_left_alone(tree, tmp_path, content):
    (tmp_path / "run" / content).mkdir(parents=True)

    with pytest.raises(StorageError, match=f"run is not a run of s2l_ray.*{content}"):
        run(tree)
    assert [path.name for path in (tmp_path / "run").rglob("*")] == [content]


def test_a_run_that_another_process_holds_is_refused_and_left_alone(tree):
    place = finish(tree, until="clusters")

    # A lock is held by an open file, so the one taken here keeps out the run below as well.
    with (
        exclusive(place),
        pytest.raises(StorageError, match=r"run is in use by another run"),
    ):
        run(tree, until="selection")
    assert not (place / "selection").exists()
    assert run(tree, until="selection") == ["selection"]


def test_an_input_that_is_not_there_makes_no_run(tree, tmp_path):
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        run(changed(tree, "data.train", [str(tmp_path / "missing.jsonl")]))
    assert not (tmp_path / "run").exists()
