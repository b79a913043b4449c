"""Rows that a pool has are told from new ones, wherever they come from, and left out."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ray.artifacts.tables import Parts, part_name
from s2l_ray.data import duplicates
from s2l_ray.data.raw_parts import digest_of_id
from s2l_ray.errors import DataError
from s2l_ray.storage.location import Location
from tests.data.test_prepare import all_rows, jsonl, prepare_here, rejected, row
from tests.data.test_prepare import settings as prepare_settings

MD5 = "d41d8cd98f00b204e9800998ecf8427e"


def ids(folder):
    return [item["example_id"] for item in all_rows(folder)]


def pool_of(tmp_path, *batches):
    """The prepared parts of these lists of rows, one folder for each."""
    folders = []
    for number, rows in enumerate(batches):
        folder = tmp_path / f"pool-{number}"
        folder.mkdir()
        prepare_here(folder, [jsonl(folder / "pool.jsonl", rows)], prepare_settings())
        folders.append(Location.of(folder))
    return Parts(folders[0], more=tuple(folders[1:]))


def prepare_new(tmp_path, rows, pool, **changes):
    folder = tmp_path / "new"
    folder.mkdir()
    path = jsonl(folder / "new.jsonl", rows)
    summary = prepare_here(folder, [path], prepare_settings(**changes), pool=pool)
    return folder, summary


@pytest.mark.parametrize("identity", [{}, {"id": True}], ids=["by content", "by id"])
def test_known_rows_are_left_out_and_counted(tmp_path, identity):
    rows = [row(n) | ({"id": f"e{n}"} if identity else {}) for n in range(12)]
    pool = pool_of(tmp_path, rows[:3], rows[3:7])
    folder, summary = prepare_new(tmp_path, rows[9:] + rows[5:9] + rows[:2], pool)

    assert [item["instruction"] for item in all_rows(folder, "rows")] == [
        f"say {n}" for n in (9, 10, 11, 7, 8)
    ]
    assert not set(ids(folder)) & {
        name for table in pool.tables() for name in table["example_id"].to_pylist()
    }
    counts = {key: summary[key] for key in ("rows", "kept", "known", "rejected")}
    assert counts == {"rows": 9, "kept": 5, "known": 4, "rejected": {}}


def test_an_id_counts_whatever_else_its_row_says(tmp_path):
    pool = pool_of(tmp_path, [row(1, id="a"), row(2)])
    folder, summary = prepare_new(tmp_path, [row(5, id="a"), row(2, id="b"), row(1)], pool)

    assert summary["known"] == 1 and ids(folder)[0] == "b" and len(ids(folder)) == 2


def test_a_pool_is_known_by_the_digests_of_its_ids_and_of_contents_that_they_show(tmp_path):
    ids = ["a", "", "größe" * 40, MD5, f"{MD5}-12", f"{MD5}-", f"x{MD5}", MD5.upper(), f"{MD5}\n"]
    parts = Parts(Location.of(tmp_path))
    for number, names in enumerate((ids[:5], ids[5:])):
        (parts.folder / part_name(number)).write_table(pa.table({"example_id": names}))
    digests = [digest_of_id(name) for name in ids] + [bytes.fromhex(MD5)] * 2
    expected = sorted(int.from_bytes(digest[:8], "big") for digest in digests)
    assert duplicates.identities(parts).tolist() == expected


def test_ids_that_look_like_hashes_of_content_are_known_too(tmp_path):
    pool = pool_of(tmp_path, [row(1, id=MD5), row(2, id=f"{MD5}-1")])
    folder, summary = prepare_new(
        tmp_path, [row(1, id=MD5), row(2, id=f"{MD5}-1"), row(2, id=f"{MD5}-2")], pool
    )
    assert ids(folder) == [f"{MD5}-2"] and summary["known"] == 2


@settings(max_examples=25, deadline=None)
@given(old=st.lists(st.integers(0, 3), min_size=1), new=st.lists(st.integers(0, 3), min_size=1))
def test_of_repeated_content_only_what_goes_beyond_the_pool_is_new(tmp_path_factory, old, new):
    tmp_path = tmp_path_factory.mktemp("repeats")
    pool = pool_of(tmp_path, [row(n) for n in old])
    folder, summary = prepare_new(tmp_path, [row(n) for n in new], pool)

    beyond = Counter(new) - Counter(old)
    kept = Counter(item["instruction"] for item in all_rows(folder, "rows"))
    assert kept == {f"say {n}": count for n, count in beyond.items()}
    every_id = ids(folder) + [
        name for table in pool.tables() for name in table["example_id"].to_pylist()
    ]
    assert len(set(every_id)) == len(every_id) == (Counter(old) | Counter(new)).total()
    assert summary["known"] == len(new) - beyond.total()


def test_bad_rows_and_repeated_ids_among_new_rows_are_rejected_as_ever(tmp_path):
    pool = pool_of(tmp_path, [row(1, id="a")])
    rows = [row(1, id="a"), b"{not JSON", row(3, id="b"), row(4, id="b")]
    folder, summary = prepare_new(tmp_path, rows, pool)

    assert ids(folder) == ["b"]
    assert [(number, why) for _, number, why in rejected(folder)] == [
        (1, "malformed JSON"),
        (3, "duplicate id"),
    ]
    assert summary["known"] == 1


def test_rows_that_are_all_known_leave_nothing(tmp_path):
    rows = [row(n) for n in range(9)]
    folder, summary = prepare_new(tmp_path, rows[::-1], pool_of(tmp_path, rows))
    assert (summary["kept"], summary["known"], ids(folder)) == (0, 9, [])


def checked(tmp_path, old, new):
    pool = pool_of(tmp_path, old)
    folder, _ = prepare_new(tmp_path, new, pool)
    rows = Parts(pool.folder, "rows", pool.more)
    return duplicates.check_ids(Location.of(folder) / "staged", rows, prepare_settings().fields)


def test_ids_that_number_the_rows_of_each_file_are_refused(tmp_path):
    old, new = ([row(n + start, id=str(n)) for n in range(9)] for start in (0, 50))
    with pytest.raises(
        DataError, match=r"4 of 4 compared rows .* other content \(first: 0, 1, 2, \.\.\.\)"
    ):
        checked(tmp_path, old, new)


def test_a_few_rows_that_were_changed_are_worth_a_note(tmp_path):
    old = [row(n, id=str(n)) for n in range(4)]
    (note,) = checked(tmp_path, old, [row(77, id="2"), *old[:2], old[3], row(9)])
    assert "1 of 4 compared rows" in note and "(first: 2); they are left out" in note


@pytest.mark.parametrize("identity", [{}, {"id": "a"}])
def test_the_same_rows_are_worth_none(tmp_path, identity):
    assert checked(tmp_path, [row(1, **identity)], [row(1, **identity), row(2)]) == []


def test_identities_take_eight_or_sixteen_bytes_each(tmp_path):
    pool = pool_of(tmp_path, [row(1, id="a"), row(2, id="b")], [row(3)])
    assert duplicates.identities(pool).nbytes == 8 + 8 + 16


def test_a_mask_of_known_rows_survives_as_text():
    known_P = np.array([True, False] * 9 + [True])
    text = np.packbits(known_P).tobytes().hex()
    np.testing.assert_array_equal(duplicates.unpacked(text, 19), known_P)
