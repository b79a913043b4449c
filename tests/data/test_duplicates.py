"""Rows that repeat an earlier one, found by digests; the oracle counts them in a dictionary."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ray.data.duplicates import repeats
from s2l_ray.data.raw_parts import RawPart
from s2l_ray.storage.location import Location


def staged(folder, columns: list[list[bytes | None]]) -> list[RawPart]:
    parts = []
    for number, column in enumerate(columns):
        parts.append(RawPart(0, f"rows-{number}.parquet", len(column), 0))
        table = pa.table({"digest": pa.array(column, pa.binary())})
        pq.write_table(table, folder / parts[-1].name)
    return parts


def counted(columns: list[list[bytes | None]]) -> list[list[tuple[int, int]]]:
    seen: Counter[bytes] = Counter()
    found = []
    for column in columns:
        found.append([])
        for position, digest in enumerate(column):
            if digest is not None:
                found[-1] += [(position, seen[digest])] if seen[digest] else []
                seen[digest] += 1
    return found


@pytest.mark.parametrize("num_digests", [3, 40, 10**6])
def test_repeats_are_counted_in_the_order_of_parts_and_rows(tmp_path, num_digests):
    rng = np.random.default_rng(num_digests)
    # Many digests share their first half, as may happen among very many rows.
    halves = rng.integers(0, 2**63, 5).tolist()
    digests = [
        (halves[number % 5] if number % 2 else number).to_bytes(8, "big")
        + number.to_bytes(8, "big")
        for number in rng.integers(0, num_digests, 300).tolist()
    ]
    rows = [None if rng.random() < 0.1 else digest for digest in digests]
    columns = [rows[:100], [], [None], rows[100:]]
    assert repeats(Location.of(tmp_path), staged(tmp_path, columns)) == counted(columns)


def test_digests_that_share_a_half_alone_are_no_repeats(tmp_path):
    columns = [[b"a" * 16, b"a" * 8 + b"b" * 8], [b"b" * 8 + b"a" * 8, b"b" * 16]]
    assert repeats(Location.of(tmp_path), staged(tmp_path, columns)) == [[], []]
