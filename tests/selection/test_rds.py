"""Turns of queries: the oracle takes them, one after the other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ray.selection import rds

RNG = np.random.default_rng(4)


def vectors(num_rows, width=5, *, rng=RNG):
    drawn_NH = rng.normal(size=(num_rows, width))
    return (drawn_NH / np.linalg.norm(drawn_NH, axis=1, keepdims=True)).astype(np.float16)


def taken_by_turns(vector_NH, query_QH, order):
    """Rows as they are taken: a query whose next nearest is taken already has had its turn."""

    def cosine(a_H, b_H):
        a_H, b_H = a_H.astype(float), b_H.astype(float)
        return round(float(a_H @ b_H / (np.linalg.norm(a_H) * np.linalg.norm(b_H))), 7)

    lists = [
        sorted(order, key=lambda row: (-cosine(vector_NH[row], query_H), order.index(row)))
        for query_H in query_QH
    ]
    taken = []
    for in_round in zip(*lists, strict=True):
        for row in in_round:
            if row not in taken:
                taken.append(row)
    return taken


@pytest.mark.parametrize(("num_rows", "num_queries"), [(1, 1), (9, 1), (20, 3), (7, 12)])
@pytest.mark.parametrize("bytes_per_pass", [1, 170, 1 << 20])
def test_queries_take_turns(num_rows, num_queries, bytes_per_pass):
    vector_NH, query_QH = vectors(num_rows), vectors(num_queries)
    order_N = RNG.permutation(num_rows)

    turn_N = rds.round_robin(vector_NH, query_QH, order_N, bytes_per_pass=bytes_per_pass)

    found = np.argsort(turn_N).tolist()
    assert found == taken_by_turns(vector_NH, query_QH, order_N.tolist())
    assert len(set(turn_N.tolist())) == num_rows


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_of_equal_examples_the_first_comes_first(seed):
    rng = np.random.default_rng(seed)
    vector_NH = np.eye(3, dtype=np.float16)[rng.integers(0, 3, 12)]
    query_QH = np.eye(3, dtype=np.float16)[rng.integers(0, 3, 4)]
    order_N = rng.permutation(12)
    found = np.argsort(rds.round_robin(vector_NH, query_QH, order_N)).tolist()
    assert found == taken_by_turns(vector_NH, query_QH, order_N.tolist())


def test_turns_do_not_depend_on_the_order_of_rows():
    vector_NH, query_QH, order_N = vectors(300, 33), vectors(7, 33), RNG.permutation(300)
    turn_N = rds.round_robin(vector_NH, query_QH, order_N)
    moved_N = RNG.permutation(300)
    place_N = np.argsort(moved_N)
    again_N = rds.round_robin(vector_NH[moved_N], query_QH, place_N[order_N], bytes_per_pass=1)
    np.testing.assert_array_equal(again_N, turn_N[moved_N])


def test_no_examples_have_no_turns():
    empty_NH = np.empty((0, 5), np.float16)
    assert rds.round_robin(empty_NH, vectors(2), np.arange(0)).shape == (0,)
