"""Ranges of rows of one file, which several workers check, give what one worker gives."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.errors import DataError
from s2l_ray.progress import Progress
from s2l_ray.storage.location import Location
from s2l_ray.trajectories import footers, import_existing
from tests.trajectories.brought import IDS, KINDS, LOSS_NT, STRATA, files_of, list_column, parquet

ROWS_PER_PART = 5


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(import_existing, "ROWS_PER_PART", ROWS_PER_PART)


def parts_of(folder, uris):
    """The bytes of every part that an import of these files writes, by name."""
    stage = StageDir(Location.of(folder), "trajectories", {})
    stage.begin()
    import_existing.run(files_of(uris), stage, progress=Progress("trajectories"))
    return {path.name: path.read_bytes() for path in folder.glob("part-*")}


@pytest.mark.parametrize("row_group_size", [1, 4, 5, 7, 23])
@pytest.mark.parametrize("rows_per_unit", [1, 5, 9, 10])
def test_parts_are_the_same_bytes_however_files_are_cut(
    tmp_path, monkeypatch, row_group_size, rows_per_unit
):
    kinds = KINDS["list of float64"], KINDS["fixed-size list of float32"]
    uris = [
        parquet(tmp_path / f"{n}.parquet", list_column(LOSS_NT, kind), IDS, row_group_size)
        for n, kind in enumerate(kinds)
    ]
    whole = parts_of(tmp_path / "whole", uris)
    monkeypatch.setattr(import_existing, "ROWS_PER_UNIT", rows_per_unit)
    assert parts_of(tmp_path / "cut", uris) == whole
    assert len(whole) == 10


@pytest.mark.parametrize("stays", [True, False])
@pytest.mark.parametrize("rows_per_unit", [1, 7, 20, 1000])
def test_ranges_are_whole_parts_or_groups_that_follow_one_another(
    monkeypatch, rows_per_unit, stays
):
    monkeypatch.setattr(import_existing, "ROWS_PER_UNIT", rows_per_unit)
    rng = np.random.default_rng(3)
    for _ in range(200):
        rows_of_group = rng.integers(0, 12, size=rng.integers(0, 9)).tolist()
        ranges = list(import_existing.row_ranges(rows_of_group, stays=stays))
        borders = [0, *(end for _, end in ranges)]
        assert [begin for begin, _ in ranges] == borders[:-1]
        assert borders[-1] == sum(rows_of_group)
        assert all(begin < end for begin, end in ranges)
        starts = range(0, borders[-1] + 1, ROWS_PER_PART)
        starts = {0, *np.cumsum(rows_of_group).tolist()} if stays else starts
        assert all(begin in starts for begin, _ in ranges)
        most = max([rows_per_unit, *rows_of_group]) + ROWS_PER_PART
        assert all(end - begin < most for begin, end in ranges)


def test_one_row_group_is_checked_by_one_worker_and_many_by_several(monkeypatch):
    monkeypatch.setattr(import_existing, "ROWS_PER_UNIT", 10)
    for stays in (True, False):
        assert list(import_existing.row_ranges([40], stays=stays)) == [(0, 40)]
    in_place = [(0, 8), (8, 16), (16, 24), (24, 32), (32, 40)]
    assert list(import_existing.row_ranges([4] * 10, stays=True)) == in_place
    copied = [(0, 10), (10, 20), (20, 25), (25, 35), (35, 40)]
    assert list(import_existing.row_ranges([4] * 10, stays=False)) == copied


def results_of(uri, rows_per_unit):
    """The units of a file, and what a worker says of each."""
    (footer,) = footers.read(files_of([uri]))
    checker = import_existing.Checker(Location.of(uri).parent)
    units = [
        {"uri": uri, "first_part": 0, "rows": list(rows)}
        for rows in import_existing.row_ranges(footer.rows_of_group, stays=False)
    ]
    assert len(units) == -(-footer.rows // rows_per_unit)
    return units, list(map(checker, units))


def lengths_from(row, length=3):
    losses = LOSS_NT.tolist()
    losses[row:] = [values[:length] for values in losses[row:]]
    return pa.array(losses)


def two_bad_rows():
    losses = LOSS_NT.copy()
    losses[[8, 21], 0] = np.nan
    return list_column(losses)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (two_bad_rows(), r"1 examples in .* NaN or infinite loss \(first: e8\)"),
        (lengths_from(10), r"5 values in the first row of .* and 3 in row 10\b"),
        (
            lengths_from(12),
            r"5 values in row 10 \(from 0\) of .* and 3 in row 12 \(from 0, example e12\)",
        ),
    ],
)
def test_the_first_error_is_raised_in_whatever_order_workers_finish(
    tmp_path, monkeypatch, losses, message
):
    monkeypatch.setattr(import_existing, "ROWS_PER_UNIT", 5)
    uri = parquet(tmp_path / "t.parquet", losses, row_group_size=5)
    units, results = results_of(uri, 5)
    for order in itertools.permutations(results):
        with pytest.raises(DataError, match=message):
            import_existing.checked_length(units, iter(order), Progress("trajectories"))


def test_a_row_of_another_length_in_a_later_part_is_compared_with_the_first_row(tmp_path):
    losses = LOSS_NT.tolist()
    losses[10:12] = [values[:3] for values in losses[10:12]]
    uri = parquet(tmp_path / "t.parquet", pa.array(losses))
    with pytest.raises(
        DataError, match=r"5 values in the first row .* 3 in row 10 \(from 0, example e10"
    ):
        parts_of(tmp_path / "out", [uri])


def test_a_file_with_fewer_rows_than_were_planned_is_refused(tmp_path):
    uri = parquet(tmp_path / "t.parquet", list_column(LOSS_NT), stratum=STRATA)
    files = files_of([uri])
    footers.read(files)
    pq.write_table(pq.read_table(uri).slice(0, 12), uri)
    stage = StageDir(Location.of(tmp_path / "out"), "trajectories", {})
    stage.begin()
    with pytest.raises(DataError, match=r"t\.parquet has changed .* it has 12 rows, and had 23"):
        import_existing.run(files, stage, progress=Progress("trajectories"))
