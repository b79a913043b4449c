"""Ranges of response tokens, against sets of positions; files of older versions have one range."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from s2l_ray.artifacts.token_tables import (
    RANGES,
    flat_tokens,
    num_response_tokens,
    rows_of_tokens,
    token_table,
)
from s2l_ray.storage.location import Location


@st.composite
def rows(draw):
    """Tokens of a row, and ascending, disjoint, non-empty ranges in it."""
    length = draw(st.integers(1, 12))
    bounds = sorted(draw(st.sets(st.integers(0, length), max_size=6)))
    pairs = list(zip(bounds[::2], bounds[1::2], strict=False))
    return list(range(100, 100 + length)), pairs


@given(st.lists(rows(), max_size=5), st.integers(0, 2))
def test_learned_are_the_tokens_of_the_ranges_without_the_first(pool, skipped):
    table = token_table(
        [str(n) for n in range(len(pool))],
        [""] * len(pool),
        [ids for ids, _ in pool],
        [ranges for _, ranges in pool],
    ).slice(skipped)
    expected = [
        [any(start <= place < end for start, end in ranges) and place > 0 for place in range(n)]
        for n, ranges in ((len(ids), ranges) for ids, ranges in pool[skipped:])
    ]

    ids, learned = rows_of_tokens(table)

    assert [row.tolist() for row in ids] == [ids for ids, _ in pool[skipped:]]
    assert [row.tolist() for row in learned] == expected
    assert num_response_tokens(table).tolist() == [sum(row) for row in expected]


def test_an_old_file_has_one_range_after_the_prompt(tmp_path):
    file = Location.of(tmp_path / "part-000000.parquet")
    table = token_table(["a", "b"], ["", ""], [[5, 6, 7], [8, 9]], [[(1, 2)], [(0, 2)]])
    file.write_table(table.drop_columns(list(RANGES)))

    old = file.read_table(["input_ids", "num_prompt_tokens", "num_tokens"], optional=RANGES)

    _, _, learned = flat_tokens(old)
    assert learned.tolist() == [False, True, True, False, True]
    assert num_response_tokens(old).tolist() == [2, 1]


def test_a_new_file_is_read_with_its_ranges(tmp_path):
    file = Location.of(tmp_path / "part-000000.parquet")
    file.write_table(token_table(["a"], ["s"], [[5, 6, 7, 8]], [[(1, 2), (3, 4)]]))

    table = file.read_table(["input_ids", "num_prompt_tokens"], optional=RANGES)

    assert flat_tokens(table)[2].tolist() == [False, True, False, True]
    assert table["num_prompt_tokens"].to_pylist() == [1]


def test_rows_without_tokens_have_no_ranges():
    table = token_table(["a", "b"], ["s", "t"], [[], []], [[], []])
    assert table.schema == token_table([], [], [], []).schema
    assert table["num_tokens"].to_pylist() == [0, 0]
    assert num_response_tokens(table).tolist() == [0, 0]
    np.testing.assert_array_equal(flat_tokens(table)[2], np.empty(0, bool))
    assert pa.types.is_int32(table.schema.field("response_starts").type.value_type)
