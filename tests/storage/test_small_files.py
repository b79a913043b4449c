"""Small files of a run are read once while nobody else writes them."""

import pytest

from s2l_ray.artifacts.manifest import StageDir, read_manifest
from s2l_ray.errors import StorageError
from s2l_ray.storage import small_files
from s2l_ray.storage.location import Location


@pytest.fixture
def run(tmp_path):
    return Location.of(tmp_path / "run")


def test_a_file_is_read_once_inside_the_block_and_again_after_it(run):
    file = run / "clusters" / "_manifest.json"
    file.write_json({"rows": 1})
    with small_files.read_once(run):
        first = small_files.read(file)
        first["rows"] = 7  # changes what was returned, and nothing else
        file.write_json({"rows": 2})
        assert small_files.read(file) == {"rows": 1}
    assert small_files.read(file) == {"rows": 2}


def test_that_a_file_is_missing_is_seen_once_as_well(run):
    file = run / "clusters" / "_manifest.json"
    with small_files.read_once(run):
        assert small_files.read(file) is None
        file.write_json({})
        assert small_files.read(file) is None
    assert small_files.read(file) == {}


def test_what_the_program_writes_and_removes_itself_is_seen_at_once(run):
    file, other = run / "clusters" / "_manifest.json", run / "clusters2" / "_manifest.json"
    with small_files.read_once(run):
        assert small_files.read(file) is None
        small_files.write(other, 2)
        small_files.write(file, 1)
        assert small_files.read(file) == 1
        small_files.remove(run / "clusters")
        assert (small_files.read(file), small_files.read(other)) == (None, 2)


def test_files_of_another_run_are_read_again(run, tmp_path):
    file = Location.of(tmp_path / "run-2") / "_manifest.json"
    with small_files.read_once(run):
        assert small_files.read(file) is None
        file.write_json(1)
        assert small_files.read(file) == 1


def test_a_block_inside_another_sees_the_same(run):
    file = run / "_manifest.json"
    with small_files.read_once(run):
        with small_files.read_once(run):
            small_files.write(file, 1)
        assert small_files.read(file) == 1


def test_a_damaged_file_is_an_error_and_no_missing_one(run):
    (run / "_manifest.json").write_bytes(b"{")
    with small_files.read_once(run), pytest.raises(StorageError, match="is not JSON"):
        small_files.read(run / "_manifest.json")


def test_all_that_becomes_of_a_stage_is_seen_while_its_run_is_held(run):
    first, other = (StageDir(run / "clusters", "clusters", {"seed": n}) for n in (1, 2))
    redone = StageDir(run / "redone" / "clusters", "clusters", {"seed": 2})
    with small_files.read_once(run):
        assert (first.is_new(), first.is_current()) == (True, False)
        first.begin()
        assert not first.is_new()
        first.finish({"rows": 1}, 1.0)
        assert first.is_current()
        first.replace_summary({"rows": 2})
        assert first.manifest().summary == {"rows": 2}
        first.outdate({first.fingerprint})
        assert (first.is_current(), first.is_outdated()) == (False, True)
        redone.begin()
        redone.finish({"rows": 3}, 1.0)
        other.replace_by(redone)
        assert (other.is_current(), redone.manifest()) == (True, None)
        other.begin()
        assert read_manifest(run / "clusters") is None


class Overtaken(Location):
    """A file of a store, which is read or written while another thread writes it."""

    def read_json(self):
        before = super().read_json()
        small_files.write(Location(self.uri), "the other's")
        return before

    def write_json(self, value):
        super().write_json(value)
        small_files.write(Location(self.uri), "the other's")


def test_what_was_read_beside_a_write_is_not_kept(run):
    file = run / "_manifest.json"
    file.write_json("before")
    with small_files.read_once(run):
        assert small_files.read(Overtaken(file.uri)) == "before"
        assert small_files.read(file) == "the other's"


def test_of_two_writes_beside_each_other_the_last_is_seen(run):
    file = run / "_manifest.json"
    with small_files.read_once(run):
        small_files.write(Overtaken(file.uri), "before")
        assert small_files.read(file) == "the other's"
