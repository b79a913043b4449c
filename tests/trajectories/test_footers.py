"""Footers of trajectories: read once, at the same time, and again when a file has changed."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ray.artifacts.tables import Parts, part_name
from s2l_ray.errors import DataError
from s2l_ray.progress import Progress
from s2l_ray.storage.input_files import expand
from s2l_ray.storage.location import Location
from s2l_ray.trajectories import footers
from s2l_ray.trajectories.footers import Footer


def write(folder, name, num_rows, **more):
    losses = [[1.0, 2.0, 3.0]] * num_rows
    ids = [f"e{row}" for row in range(num_rows)]
    pq.write_table(pa.table({"example_id": ids, "loss_nats": losses, **more}), folder / name)


def test_many_files_are_read_in_order_and_the_progress_says_so(tmp_path):
    for number in range(50):
        write(tmp_path, f"{number:02d}.parquet", number + 1)
    files = expand([str(tmp_path)])

    with Progress("trajectories") as progress:
        found = footers.read(files)
        assert progress.state().doing == "reading the footers of 50 files"

    assert found == [Footer((number + 1,), 3, False, False) for number in range(50)]
    assert footers.loss_bytes(files) == 4 * 3 * sum(range(51))


def test_a_footer_is_remembered_until_its_file_changes(tmp_path):
    write(tmp_path, "t.parquet", 4)
    before = expand([str(tmp_path)])
    assert footers.read(before) == [Footer((4,), 3, False, False)]

    write(tmp_path, "t.parquet", 9, stratum=["s"] * 9)

    assert footers.read(before) == [Footer((4,), 3, False, False)]
    assert footers.read(expand([str(tmp_path)])) == [Footer((9,), 3, True, False)]


def test_one_bad_file_among_many_is_named(tmp_path):
    for number in range(5):
        write(tmp_path, f"{number}.parquet", 2)
    (tmp_path / "3.parquet").write_text("no parquet")

    with pytest.raises(DataError, match=r"3\.parquet cannot be read as parquet"):
        footers.read(expand([str(tmp_path)]))


def test_parts_are_the_files_as_they_are_stored(tmp_path):
    (tmp_path / "attempts").mkdir()
    for number in range(3):
        write(tmp_path, part_name(number), number)
        write(tmp_path / "attempts", part_name(number), number)
    parts = Parts(Location.of(tmp_path), more=(Location.of(tmp_path / "nowhere"),))

    assert [file.uri for file in parts.stored()] == [str(file) for file in parts.files()]
    assert [footer.rows for footer in footers.read(parts.stored())] == [0, 1, 2]


def test_a_file_is_closed_after_its_footer_is_read(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    with footers.open_parquet(str(tmp_path / "x.parquet")) as file:
        assert file.read().num_rows == 1
    with pytest.raises(ValueError, match="closed"):
        file.read()
