"""Keys and samples: oracles are the hash functions written out with Python integers."""

from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pytest

from s2l_ray import hashing
from s2l_ray.artifacts.keys import column_keys

RNG = np.random.default_rng(7)
MASK = 2**64 - 1


def splitmix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def test_the_oracle_is_splitmix64():
    # The first output for seed 0, as published with the reference implementation.
    assert splitmix64(0) == 0xE220A8397B1DCDAF


def test_a_key_is_blake2b_of_the_id():
    ids = ["a", "0", "", "Größe"]
    expected = [
        int.from_bytes(blake2b(id.encode(), digest_size=8).digest(), "little") for id in ids
    ]
    key_N = hashing.example_keys(ids)
    assert key_N.dtype == np.uint64
    assert key_N.tolist() == expected


def test_a_key_does_not_depend_on_its_neighbours():
    ids = [f"row-{i}" for i in range(50)]
    alone = np.concatenate([hashing.example_keys([id]) for id in ids])
    np.testing.assert_array_equal(hashing.example_keys(ids), alone)
    assert hashing.example_keys([]).shape == (0,)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
@pytest.mark.parametrize("num_ids", [0, 1, 40_000])
def test_keys_of_a_column_are_those_of_its_ids(num_ids, kind):
    # Lengths on both sides of words, blocks, lanes and of what is worth compiled code.
    ids = ["é" * (row % 9) + "x" * (row * 7 % 140) for row in range(num_ids)]
    column = pa.chunked_array([["not", "hashed", *ids[:30]], ids[30:]], kind).slice(2)

    np.testing.assert_array_equal(column_keys(column), hashing.example_keys(ids))


@pytest.mark.parametrize("ids", [pa.array([1, 2]), pa.array([1, 2]).dictionary_encode()], ids=str)
def test_ids_that_are_no_text_have_no_keys(ids):
    with pytest.raises(TypeError, match="ids are text, not"):
        column_keys(pa.chunked_array([ids]))


def test_keys_of_many_small_columns_are_hashed_by_compiled_code_in_the_end(monkeypatch):
    monkeypatch.setattr(hashing, "_TEXTS_TO_COMPILE_FOR_ALL", 20)
    monkeypatch.setattr(hashing, "_num_hashed", 0)
    ids = [f"row-{row}" * (row % 40) for row in range(40)]
    found = [column_keys(pa.chunked_array([ids[n : n + 8]])) for n in range(0, 40, 8)]

    np.testing.assert_array_equal(np.concatenate(found), hashing.example_keys(ids))
    assert hashing._num_hashed == 24  # the other 16 were not counted


@pytest.mark.parametrize("num_ids", [3, 20_000])
def test_other_digests_of_a_column_are_those_of_blake2b(num_ids):
    ids = ["é" * (row % 9) + "x" * (row * 7 % 140) for row in range(num_ids)]
    found = column_keys(pa.chunked_array([ids]), size=16, person=b"user id")
    digests = [blake2b(id.encode(), digest_size=16, person=b"user id").digest() for id in ids]
    assert found.tolist() == [int.from_bytes(digest[:8], "little") for digest in digests]


@pytest.mark.parametrize("salts", [(), (0,), (42,), (1, 2), (2, 1), (2**63 + 5, 0, -1)])
def test_mixing_is_splitmix64_of_key_plus_mixed_salt(salts):
    key_N = RNG.integers(0, 2**64, size=20, dtype=np.uint64)
    expected = [int(key) for key in key_N]
    for salt in salts:
        expected = [splitmix64((key + splitmix64(salt & MASK)) & MASK) for key in expected]
    before_N = key_N.copy()
    assert hashing.mixed(key_N, *salts).tolist() == expected
    np.testing.assert_array_equal(key_N, before_N)


def test_mixing_keeps_distinct_keys_distinct():
    key_N = np.arange(100_000, dtype=np.uint64)
    assert len(np.unique(hashing.mixed(key_N, 3, 4))) == len(key_N)


def test_orders_under_two_salts_are_unrelated():
    key_N = hashing.example_keys([str(i) for i in range(20_000)])
    first_N, second_N = (hashing.mixed(key_N, 0, salt).astype(np.float64) for salt in (1, 2))
    assert abs(np.corrcoef(first_N, second_N)[0, 1]) < 0.03


def test_mixed_keys_are_spread_evenly():
    key_N = hashing.mixed(hashing.example_keys([str(i) for i in range(64_000)]), 11)
    count_64 = np.bincount((key_N >> np.uint64(58)).astype(np.int64), minlength=64)
    # Chi-squared with 63 degrees of freedom: 110 has probability 2e-4.
    assert ((count_64 - 1000) ** 2 / 1000).sum() < 110


@pytest.mark.parametrize("k", [0, 1, 5, 29, 30, 99])
def test_bottom_k_are_the_smallest_keys_in_order(k):
    key_N = RNG.integers(0, 20, size=30).astype(np.uint64)
    expected = sorted(range(30), key=lambda row: (key_N[row], row))[:k]
    assert hashing.bottom_k(key_N, k).tolist() == expected


@pytest.mark.parametrize("num_shards", [1, 2, 7, 40])
def test_the_sample_of_a_union_is_the_sample_of_samples(num_shards):
    key_N = RNG.integers(0, 2**64, size=200, dtype=np.uint64)
    shards = np.array_split(key_N, num_shards)
    merged_M = np.concatenate([shard[hashing.bottom_k(shard, 25)] for shard in shards])
    sampled_S = merged_M[hashing.bottom_k(merged_M, 25)]
    np.testing.assert_array_equal(sampled_S, key_N[hashing.bottom_k(key_N, 25)])
