"""Imported: trajectories of any documented form become the same parts; others are refused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import Parts
from s2l_ray.errors import DataError, from_message
from s2l_ray.progress import Progress
from s2l_ray.storage.location import Location
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


def importing(uri, folder, first_part=0):
    """What one worker says of one file; its refusal is raised."""
    folder.mkdir(exist_ok=True)
    num_rows = pq.read_metadata(uri).num_rows
    unit = {"uri": uri, "first_part": first_part, "rows": [0, num_rows]}
    found = import_existing.Importer(Location.of(folder))(unit)
    if (refused := found.pop("refused")) is not None:
        raise from_message(refused)
    return found


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("row_group_size", [23, 4])
def test_every_documented_type_becomes_the_same_part(tmp_path, kind, row_group_size):
    losses = list_column(LOSS_NT, kind)
    uri = parquet(tmp_path / "t.parquet", losses, row_group_size=row_group_size, stratum=STRATA)
    (footer,) = footers.read(files_of([uri]))
    assert (footer.rows, footer.checkpoints, footer.has_stratum) == (23, 5, True)
    assert importing(uri, tmp_path / "out") == {
        "uri": uri,
        "first_row": 0,
        "rows": 23,
        "checkpoints": 5,
    }
    [table] = Parts(Location.of(tmp_path / "out")).tables()
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("example_id", "string"),
        ("stratum", "string"),
        ("loss_nats", "fixed_size_list<element: float>[5]"),
    ]
    assert (table["example_id"].to_pylist(), table["stratum"].to_pylist()) == (IDS, STRATA)
    np.testing.assert_array_equal(np.array(table["loss_nats"].to_pylist(), np.float32), LOSS_NT)


def test_other_columns_are_ignored_and_their_order_does_not_matter(tmp_path):
    columns = {
        "text": ["x"] * 23,
        "loss_nats": list_column(LOSS_NT),
        "nested": [{"a": [1]}] * 23,
        "example_id": IDS,
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    importing(str(tmp_path / "t.parquet"), tmp_path / "out")
    assert [row["example_id"] for row in rows(tmp_path / "out")] == IDS
    assert list(rows(tmp_path / "out")[0]) == ["example_id", "stratum", "loss_nats"]


def test_without_a_stratum_there_is_one_and_a_null_belongs_to_it(tmp_path):
    bare = parquet(tmp_path / "bare.parquet", list_column(LOSS_NT))
    nulls = parquet(tmp_path / "nulls.parquet", list_column(LOSS_NT), stratum=[None, *STRATA[1:]])
    importing(bare, tmp_path / "bare")
    importing(nulls, tmp_path / "nulls")
    assert [row["stratum"] for row in rows(tmp_path / "bare")] == [""] * 23
    assert [row["stratum"] for row in rows(tmp_path / "nulls")] == ["", *STRATA[1:]]


def test_numbers_and_categories_become_text(tmp_path):
    uri = parquet(
        tmp_path / "t.parquet",
        list_column(LOSS_NT),
        ids=list(range(23)),
        stratum=pa.array(STRATA).dictionary_encode(),
    )
    importing(uri, tmp_path / "out")
    assert [(row["example_id"], row["stratum"]) for row in rows(tmp_path / "out")] == [
        (str(row), STRATA[row]) for row in range(23)
    ]


@pytest.mark.parametrize("row_group_size", [1, 4, 7, 23])
def test_a_long_file_is_cut_into_parts_of_as_many_rows_whatever_its_row_groups(
    tmp_path, monkeypatch, row_group_size
):
    monkeypatch.setattr(import_existing, "ROWS_PER_PART", 5)
    losses = list_column(LOSS_NT, KINDS["fixed-size list of float32"])
    uri = parquet(tmp_path / "t.parquet", losses, row_group_size=row_group_size)
    importing(uri, tmp_path / "out", first_part=7)
    parts = Parts(Location.of(tmp_path / "out"))
    names = [f"part-{number:06d}.parquet" for number in range(7, 12)]
    assert [file.name for file in parts.files()] == names
    assert [table.num_rows for table in parts.tables()] == [5, 5, 5, 5, 3]
    assert [row["example_id"] for row in rows(tmp_path / "out")] == IDS
    found_NT = np.array([row["loss_nats"] for row in rows(tmp_path / "out")], np.float32)
    np.testing.assert_array_equal(found_NT, LOSS_NT)


@pytest.mark.parametrize("missing", ["example_id", "loss_nats"])
def test_a_missing_column_is_named_with_those_there_are(tmp_path, missing):
    table = pa.table({"example_id": IDS, "loss_nats": list_column(LOSS_NT), "n": range(23)})
    pq.write_table(table.drop_columns(missing), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=rf"no column '{missing}' \(it has .*, n\)"):
        importing(str(tmp_path / "t.parquet"), tmp_path / "out")


@pytest.mark.parametrize("row", [4, 5, 22])
def test_a_row_of_another_length_is_named(tmp_path, monkeypatch, row):
    monkeypatch.setattr(import_existing, "ROWS_PER_PART", 5)
    losses = LOSS_NT.tolist()
    losses[row:] = [values[:3] for values in losses[row:]]
    uri = parquet(tmp_path / "t.parquet", pa.array(losses))
    with pytest.raises(DataError, match=rf"5 values in the first row .* and 3 in row {row}\b"):
        importing(uri, tmp_path / "out")


def test_files_of_unequal_lengths_are_both_named():
    assert import_existing.common_length({5: "a.parquet"}) == 5
    with pytest.raises(DataError, match=r"5 values per row in a\.parquet and 4 in b\.parquet"):
        import_existing.common_length({5: "a.parquet", 4: "b.parquet"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), None, 1e39])
@pytest.mark.parametrize("kind", ["list of float64", "fixed-size list of float64"])
def test_a_loss_that_is_no_finite_float32_names_its_examples(tmp_path, value, kind):
    losses = LOSS_NT.tolist()
    for row in (2, 9, 11, 20):
        losses[row][3] = value
    uri = parquet(tmp_path / "t.parquet", pa.array(losses, KINDS[kind]))
    with pytest.raises(DataError, match=r"4 examples .*\(first: e2, e9, e11, \.\.\.\)"):
        importing(uri, tmp_path / "out")
    assert rows(tmp_path / "out") == []


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_null_instead_of_losses_names_its_example(tmp_path, kind):
    losses = [*LOSS_NT.tolist()[:7], None]
    uri = parquet(tmp_path / "t.parquet", pa.array(losses, kind))
    with pytest.raises(DataError, match=r"1 examples .* no loss_nats \(first: e7\)"):
        importing(uri, tmp_path / "out")


def test_a_row_without_an_id_is_named_by_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(import_existing, "ROWS_PER_PART", 5)
    uri = parquet(tmp_path / "t.parquet", list_column(LOSS_NT), ids=[*IDS[:12], None, *IDS[13:]])
    with pytest.raises(DataError, match=r"row 12 \(from 0\) of .* has no example_id"):
        importing(uri, tmp_path / "out")


WRONG = {
    "loss_nats in .* is float, not a list": {"loss_nats": LOSS_NT[:, 0]},
    r"loss_nats in .* is list<.*int64>, not a list": {"loss_nats": [[1, 2]] * 23},
    "no checkpoint at all": {"loss_nats": pa.array([[]] * 23, pa.list_(pa.float32()))},
    r"stratum in .* is list<.*>, not text": {"stratum": [["s"]] * 23},
    r"example_id in .* is struct<.*>, not text": {"example_id": [{"id": 1}] * 23},
    "example_id in .* is binary, not text": {"example_id": [b"\xff"] * 23},
    "example_id in .* not text in UTF-8": {
        "example_id": pa.array([b"\xff"] * 23).view(pa.string())
    },
}


@pytest.mark.parametrize("message", WRONG)
def test_a_column_of_another_type_is_refused(tmp_path, message):
    columns = {"example_id": IDS, "loss_nats": list_column(LOSS_NT)} | WRONG[message]
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=message):
        importing(str(tmp_path / "t.parquet"), tmp_path / "out")


def run(uris, folder):
    out = StageDir(Location.of(folder), "trajectories", {"trajectories.path": "the same"})
    out.begin()
    with Progress("trajectories") as progress:
        return import_existing.run(files_of(uris), out, progress=progress)


def test_what_is_no_parquet_file_is_named(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"example_id,loss_nats\n")
    whole = parquet(tmp_path / "whole.parquet", list_column(LOSS_NT))
    for name in ("t.parquet", "nowhere.parquet"):
        with pytest.raises(DataError, match=rf"{name} cannot be read as parquet"):
            run([whole, str(tmp_path / name)], tmp_path / "out")


def test_a_damaged_page_names_the_file(tmp_path):
    uri = parquet(tmp_path / "t.parquet", list_column(LOSS_NT))
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    content[4:200] = bytes(196)
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"t\.parquet cannot be read as parquet"):
        importing(uri, tmp_path / "out")


def test_files_without_rows_are_refused(tmp_path):
    uris = [parquet(tmp_path / f"{n}.parquet", list_column(LOSS_NT[:0])) for n in range(4)]
    with pytest.raises(DataError, match=r"no rows in 4 file\(s\) \(.*0\.parquet, .*, \.\.\.\)"):
        run(uris, tmp_path / "out")


@pytest.mark.ray
def test_two_files_become_parts_numbered_by_file_and_place(tmp_path, ray_cluster):
    empty = parquet(tmp_path / "empty.parquet", list_column(LOSS_NT[:0]))
    one = parquet(tmp_path / "one.parquet", list_column(LOSS_NT[:9]), ids=IDS[:9])
    two = parquet(tmp_path / "two.parquet", list_column(LOSS_NT[9:]), ids=IDS[9:])
    summary = run([one, empty, two], tmp_path / "out")
    assert summary == {"steps": [1, 2, 3, 4, 5], "rows": 23}
    assert [row["example_id"] for row in rows(tmp_path / "out")] == IDS
    short = parquet(tmp_path / "short.parquet", list_column(LOSS_NT[:, :4]))
    with pytest.raises(DataError, match="the same checkpoints"):
        run([one, short], tmp_path / "unequal")
