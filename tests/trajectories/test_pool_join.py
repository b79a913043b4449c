"""Brought trajectories fit the pool: none is missing, others are left out, strata are joined."""

import numpy as np
import pyarrow as pa
import pytest

from s2l_ray.artifacts.tables import Parts, part_name, trajectory_table
from s2l_ray.errors import DataError
from s2l_ray.storage.location import Location
from s2l_ray.trajectories import pool_join

IDS = [f"e{row}" for row in range(30)]
STRATA = [f"s{row % 3}" for row in range(30)]


@pytest.fixture
def prepared(tmp_path):
    """A pool of thirty rows in parts of seven."""
    folder = Location.of(tmp_path / "prepared")
    for number, start in enumerate(range(0, 30, 7)):
        columns = {"example_id": IDS[start : start + 7], "stratum": STRATA[start : start + 7]}
        (folder / part_name(number)).write_table(pa.table(columns))
    return Parts(folder)


def brought(folder, ids, strata=None):
    """Trajectories in parts of eleven rows, each loss the number of its example."""
    folder = Location.of(folder)
    for number, start in enumerate(range(0, len(ids), 11)):
        own = ids[start : start + 11]
        loss_NT = np.array([[float(name[1:])] * 2 for name in own], np.float32)
        kinds = strata[start : start + 11] if strata else [""] * len(own)
        table = trajectory_table(pa.array(own, pa.string()), pa.array(kinds, pa.string()), loss_NT)
        (folder / part_name(number)).write_table(table)
    return Parts(folder)


def rows(parts):
    return [row for table in parts.tables() for row in table.to_pylist()]


def test_strata_come_from_the_row_with_the_same_id_whatever_the_order(tmp_path, prepared):
    shuffled = [IDS[i] for i in np.random.default_rng(1).permutation(30)]
    parts = brought(tmp_path / "t", shuffled)
    names = {file.name for file in parts.files()}
    for _ in range(2):  # an interrupted import does it again
        assert pool_join.join(parts, prepared, names) == (30, [])
        found = rows(parts)
        assert [row["example_id"] for row in found] == shuffled
        stratum_by_id = dict(zip(IDS, STRATA, strict=True))
        assert all(row["stratum"] == stratum_by_id[row["example_id"]] for row in found)
        assert all(row["loss_nats"] == [float(row["example_id"][1:])] * 2 for row in found)


def test_strata_of_a_files_own_stay(tmp_path, prepared):
    parts = brought(tmp_path / "t", IDS, ["own"] * 30)
    assert pool_join.join(parts, prepared, {part_name(1)}) == (30, [])
    assert [row["stratum"] for row in rows(parts)] == ["own"] * 11 + STRATA[11:22] + ["own"] * 8


def test_a_row_of_the_pool_without_losses_is_an_error_that_names_it(tmp_path, prepared):
    parts = brought(tmp_path / "t", IDS[::2])
    message = r"15 of 30 rows of the pool have no loss there \(first: e1, e3, e5, \.\.\.\)"
    with pytest.raises(DataError, match=message):
        pool_join.join(parts, prepared, set())


def test_losses_of_other_rows_are_left_out_and_counted(tmp_path, prepared):
    parts = brought(tmp_path / "t", ["e90", *IDS, *(f"e{n}" for n in range(100, 120))])
    kept, [note] = pool_join.join(parts, prepared, set())
    assert kept == 30 and [row["example_id"] for row in rows(parts)] == IDS
    assert note.startswith("21 trajectories are left out") and "e90, e100, e101, ..." in note


@pytest.mark.parametrize(
    ("ids", "number", "names"),
    [([*IDS, "e29", "e90", "e90"], 1, "e29"), ([*IDS, *IDS], 30, r"e0, e1, e2, \.\.\.")],
)
def test_a_second_trajectory_of_a_row_is_an_error_that_names_it(
    tmp_path, prepared, ids, number, names
):
    parts = brought(tmp_path / "t", ids)
    message = rf"{number} trajectories repeat the example_id of another one \(first: {names}\)"
    with pytest.raises(DataError, match=message):
        pool_join.join(parts, prepared, set())
