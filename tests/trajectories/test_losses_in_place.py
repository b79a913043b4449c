"""Large losses stay in the files that a user brings, as long as these are what was checked."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import Parts
from s2l_ray.distributed.datasets import parquet_dataset
from s2l_ray.errors import DataError, StorageError
from s2l_ray.progress import Progress
from s2l_ray.selection import columns
from s2l_ray.storage import row_groups
from s2l_ray.storage.location import Location
from s2l_ray.tables import Table
from s2l_ray.trajectories import footers, import_existing
from tests.trajectories.brought import (
    IDS,
    KINDS,
    LOSS_NT,
    STRATA,
    files_of,
    list_column,
    parquet,
    rows,
)


def a_run_of(folder, uris, pool=None):
    stage = StageDir(folder, "trajectories", {"trajectories.path": "the same"})
    stage.begin()
    shown = Progress("trajectories")
    return import_existing.run(files_of(uris), stage, progress=shown, pool=pool)


def valid_files(folder):
    """Two files as parts are, of row groups of 4 and of 9 rows."""
    losses = pa.array(LOSS_NT.tolist(), KINDS["fixed-size list of float32"])
    return [
        parquet(folder / f"{number}.parquet", losses, IDS, size, stratum=STRATA)
        for number, size in enumerate((4, 9))
    ]


def test_a_large_valid_pool_is_read_where_it_lies_with_the_rows_of_a_copy(tmp_path, monkeypatch):
    uris = valid_files(tmp_path)
    copied = a_run_of(Location.of(tmp_path / "copied"), uris)
    monkeypatch.setattr(import_existing, "BYTES_COPIED", 0)
    monkeypatch.setattr(import_existing, "ROWS_PER_PART", 8)

    stayed = a_run_of(Location.of(tmp_path / "stayed"), uris)

    parts = Parts(Location.of(tmp_path / "stayed"))
    assert [table.num_rows for table in parts.tables()] == [8, 8, 7, 9, 9, 5]
    assert rows(tmp_path / "stayed") == rows(tmp_path / "copied")
    assert [table.column_names for table in parts.tables(["stratum"])] == [["stratum"]] * 6
    assert parts.folder.names() == ["_places.json", "attempts", "unfinished.json"]
    assert "read where they lie, in 2 file(s)" in stayed.pop("notes")[0]
    assert stayed == copied


@pytest.mark.parametrize(
    ("kind", "more", "bytes_copied"),
    [
        ("fixed-size list of float32", {"stratum": STRATA}, 23 * 5 * 4),
        ("fixed-size list of float32", {"stratum": [None, *STRATA[1:]]}, 0),
        ("fixed-size list of float32", {"stratum": pa.array(STRATA).dictionary_encode()}, 0),
        ("fixed-size list of float32", {}, 0),
        ("fixed-size list of float64", {"stratum": STRATA}, 0),
        ("list of float32", {"stratum": STRATA}, 0),
    ],
    ids=["small", "null stratum", "categories", "no stratum", "float64", "lists"],
)
def test_a_pool_that_is_small_or_of_other_columns_is_copied(
    tmp_path, monkeypatch, kind, more, bytes_copied
):
    monkeypatch.setattr(import_existing, "BYTES_COPIED", bytes_copied)
    uri = parquet(tmp_path / "t.parquet", list_column(LOSS_NT, KINDS[kind]), **more)
    a_run_of(Location.of(tmp_path / "out"), [uri])
    assert (tmp_path / "out" / "part-000000.parquet").exists()
    assert not (tmp_path / "out" / "_places.json").exists()


def test_a_row_group_that_no_worker_should_read_at_once_is_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(import_existing, "BYTES_COPIED", 0)
    monkeypatch.setattr(import_existing, "ROWS_PER_GROUP", 8)
    a_run_of(Location.of(tmp_path / "out"), valid_files(tmp_path))
    assert [row["example_id"] for row in rows(tmp_path / "out")] == IDS * 2
    assert not (tmp_path / "out" / "_places.json").exists()


def test_losses_that_stay_are_checked_as_those_that_are_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(import_existing, "BYTES_COPIED", 0)
    losses = LOSS_NT.copy()
    losses[9, 2] = np.nan
    column = pa.array(losses.tolist(), KINDS["fixed-size list of float32"])
    uri = parquet(tmp_path / "t.parquet", column, row_group_size=4, stratum=STRATA)
    with pytest.raises(DataError, match=r"1 examples in .* NaN or infinite loss \(first: e9\)"):
        a_run_of(Location.of(tmp_path / "out"), [uri])


@pytest.mark.parametrize("limits", [(1 << 40, 0), (0, 1 << 40)], ids=["copied", "in place"])
def test_nothing_stays_of_an_interrupted_import_that_did_otherwise(tmp_path, monkeypatch, limits):
    uris, out = valid_files(tmp_path), Location.of(tmp_path / "out")
    for bytes_copied in limits:
        monkeypatch.setattr(import_existing, "BYTES_COPIED", bytes_copied)
        a_run_of(out, uris)
    assert [row["example_id"] for row in rows(tmp_path / "out")] == IDS * 2


def required(name, kind):
    return pa.field(name, kind, nullable=False)


@pytest.mark.parametrize(
    "field",
    [
        required("example_id", pa.string()),
        required("loss_nats", pa.list_(pa.float32(), 5)),
        pa.field("loss_nats", pa.list_(required("element", pa.float32()), 5)),
        pa.field("loss_nats", pa.list_(pa.field("item", pa.float32()), 5)),
        pa.field("loss_nats", pa.list_(pa.float32(), 5), metadata={"unit": "nats"}),
    ],
    ids=["id", "losses", "values", "name of values", "metadata"],
)
def test_files_of_one_pool_make_one_table_whatever_their_fields_are(tmp_path, monkeypatch, field):
    monkeypatch.setattr(import_existing, "BYTES_COPIED", 0)
    uris = valid_files(tmp_path)
    table = pq.read_table(uris[1])
    schema = table.schema.set(table.schema.get_field_index(field.name), field)
    pq.write_table(pa.table([column.combine_chunks().to_pylist() for column in table.columns],
                            schema=schema), uris[1])  # fmt: skip
    a_run_of(Location.of(tmp_path / "out"), uris)

    files = Parts(Location.of(tmp_path / "out")).files()
    loss_NT = Table(files, ("example_id", "stratum", "loss_nats"), "loss_nats").to_arrow()

    assert loss_NT["loss_nats"].to_pylist() == LOSS_NT.tolist() * 2


def test_losses_in_place_are_no_error_norms(tmp_path, monkeypatch):
    monkeypatch.setattr(import_existing, "BYTES_COPIED", 0)
    out = Location.of(tmp_path / "trajectories")
    a_run_of(out, valid_files(tmp_path))
    sources = columns.Sources(Parts(out), Parts(out))
    with pytest.raises(DataError, match=r"norms are needed, and there are none in .*imported have"):
        columns.scored_parts("error_norms", sources, "norms are needed", "Redo them")
    assert Parts(out, "error_norms").stored() == []


@pytest.fixture
def in_place(tmp_path, monkeypatch):
    """The second of two files that stay where they lie, and the folder of the stage."""
    monkeypatch.setattr(import_existing, "BYTES_COPIED", 0)
    uris = valid_files(tmp_path)
    a_run_of(Location.of(tmp_path / "out"), uris)
    return Path(uris[1]), tmp_path / "out"


def test_a_file_that_changed_where_it_lies_is_refused_by_all_readers(in_place):
    path, out = in_place
    parquet(path, list_column(LOSS_NT[:9]))
    message = r"1\.parquet has changed .*: it has [\d,]+ bytes of .* `--from trajectories`"
    with pytest.raises(StorageError, match=message) as refused:
        rows(out)
    assert "touch" not in str(refused.value)
    with pytest.raises(StorageError, match=message):
        parquet_dataset(Parts(Location.of(out)).files())


def test_a_file_that_is_not_seen_is_not_said_to_have_changed(in_place):
    path, out = in_place
    path.unlink()
    with pytest.raises(StorageError, match=r"1\.parquet is not there, as .* mount its folder"):
        rows(out)


def test_a_file_with_another_date_is_read_again_after_the_command_of_the_message(in_place):
    path, out = in_place
    os.utime(path, ns=(0, 1))
    with pytest.raises(StorageError, match=r"1970-01-01T00:00:00\.000000001Z.*If only") as refused:
        rows(out)
    command = re.search("`(touch .*?)`", str(refused.value))
    subprocess.run(shlex.split(command[1]), check=True)
    assert [row["example_id"] for row in rows(out)] == IDS * 2


def test_a_file_that_grew_after_the_plan_is_not_imported(tmp_path, monkeypatch):
    monkeypatch.setattr(import_existing, "BYTES_COPIED", 0)
    files = files_of(valid_files(tmp_path))
    footers.read(files)
    losses = pa.array(LOSS_NT.tolist() * 2, KINDS["fixed-size list of float32"])
    parquet(files[0].uri, losses, IDS * 2, 4, stratum=STRATA * 2)
    stage = StageDir(Location.of(tmp_path / "out"), "trajectories", {})
    with pytest.raises(DataError, match=r"0\.parquet has changed since this run was planned"):
        import_existing.run(files, stage, progress=Progress("trajectories"))


@pytest.mark.parametrize(
    ("rows_of_group", "expected"),
    [
        ([], []),
        ([0], [(0, 1)]),
        ([5], [(0, 1)]),
        ([3, 2, 1, 9, 5], [(0, 2), (2, 3), (3, 4), (4, 5)]),
        ([1] * 11, [(0, 5), (5, 10), (10, 11)]),
    ],
)
def test_row_groups_are_put_together_up_to_the_size_of_a_part(rows_of_group, expected):
    assert list(row_groups.runs(rows_of_group, 5)) == expected
