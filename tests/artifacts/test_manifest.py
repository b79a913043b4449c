"""Manifests decide which stages are finished."""

import pytest

from s2l_ray.artifacts.manifest import MANIFEST, StageDir, check_run, open_run, section_inputs
from s2l_ray.config.sections import TrajectoriesConfig
from s2l_ray.errors import StorageError
from s2l_ray.storage.location import Location


@pytest.fixture
def folder(tmp_path):
    return Location.of(tmp_path / "stage")


def test_a_stage_is_current_until_one_of_its_inputs_changes(folder):
    stage = StageDir(folder, "clusters", {"clusters.num_clusters": 10, "seed": 1})
    stage.begin()
    assert not stage.is_current()
    stage.finish({"rows": 3}, 1.5)
    assert stage.is_current()
    other = StageDir(folder, "clusters", {"clusters.num_clusters": 11, "seed": 1, "new": 0})
    assert not other.is_current()
    assert other.changed_keys() == ["clusters.num_clusters", "new"]


def test_a_manifest_of_a_newer_version_is_read(folder):
    stage = StageDir(folder, "clusters", {"seed": 1})
    stage.finish({"rows": 3}, 1.5)
    written = (folder / MANIFEST).read_json()
    (folder / MANIFEST).write_json({**written, "of_tomorrow": 1})
    assert stage.is_current() and stage.manifest().summary == {"rows": 3}
    del written["parts"]
    (folder / MANIFEST).write_json(written)
    assert stage.manifest().parts == {}, "older versions recorded none"


@pytest.mark.parametrize("content", ["{}", "[]", "5", '{"stage": 1}', "{"])
def test_what_is_no_manifest_is_named(folder, content):
    stage = StageDir(folder, "clusters", {"seed": 1})
    stage.finish({"rows": 3}, 1.5)
    (folder / MANIFEST).write_bytes(content.encode())
    with pytest.raises(StorageError, match=f"^{folder / MANIFEST} is not "):
        stage.manifest()


@pytest.mark.parametrize("name", ["summary", "seconds", "inputs"])
def test_a_manifest_with_a_value_of_another_type_is_named(folder, name):
    stage = StageDir(folder, "clusters", {"seed": 1})
    stage.finish({"rows": 3}, 1.5)
    written = (folder / MANIFEST).read_json()
    (folder / MANIFEST).write_json({**written, name: "text"})
    with pytest.raises(StorageError, match=f"^{folder / MANIFEST} is not a manifest"):
        stage.manifest()


def test_work_of_an_interrupted_stage_is_kept_only_for_the_same_inputs(folder):
    stage = StageDir(folder, "clusters", {"seed": 1})
    stage.begin()
    (folder / "unit").write_bytes(b"1")
    stage.begin()
    assert (folder / "unit").exists()
    StageDir(folder, "clusters", {"seed": 2}).begin()
    assert not (folder / "unit").exists()


def test_keys_that_only_change_the_speed_are_no_inputs():
    slow, fast = TrajectoriesConfig(workers=1), TrajectoriesConfig(workers=8)
    assert section_inputs("t", slow) == section_inputs("t", fast)
    assert "t.cpus_per_worker" in section_inputs("t", slow)


def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StorageError, match=r"not a run of s2l_ray.*thesis\.tex"):
        open_run(Location.of(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    open_run(Location.of(tmp_path / "new"))
    check_run(Location.of(tmp_path / "new"))


@pytest.mark.parametrize("name", ["embeddings-000000.parquet", "queries", "_centroids.npy"])
def test_what_an_older_version_began_with_other_file_names_is_begun_anew(folder, name):
    further = ("embeddings", "queries")
    stage = StageDir(folder, "trajectories", {"seed": 1}, further)
    stage.begin()
    (folder / name.removeprefix("_") / "left").write_bytes(b"...")
    (folder.parent / "embeddings" / "left").write_bytes(b"...")

    stage.begin()

    assert folder.names() == ["unfinished.json"]
    assert not (folder.parent / "embeddings").exists()


def test_a_report_of_an_older_run_is_left_with_one_manifest(folder):
    stage = StageDir(folder, "report", {})
    (folder / "manifest.json").write_json({"stage": "report"})
    stage.finish({}, 1.0)
    assert folder.names() == ["_manifest.json"]
    stage.forget()
    assert folder.names() == []
