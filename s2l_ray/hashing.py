"""Hash keys of examples, which depend on their ids alone, and pseudo-random orders from them.

Shape letters: N examples.
"""

import itertools
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np

_MASK = 2**64 - 1
_KEYS_PER_BLOCK = 1 << 16
"""Intermediate results of all keys at once would take several times their memory."""
_TEXTS_TO_COMPILE = 16_384
_TEXTS_TO_COMPILE_FOR_ALL = 262_144
"""Loading compiled code takes as long as `hashlib` does for a million texts. Parts of large pools
have more texts than the former; where there are many small parts, it is loaded for the rest after
the latter."""
_num_hashed = 0
"""Texts that `hashlib` has hashed in this process; two threads may count one for both."""


def example_keys(ids: Sequence[str]) -> np.ndarray:
    """Return a 64-bit key for every id; it depends on the id alone, not on other ids or positions.

    Returns:
        key_N, uint64 (N,): BLAKE2b of the id in UTF-8, 8 bytes, little-endian. Among N ids two
        share a key with probability about N^2 / 2^65 (3e-4 for a hundred million).
    """
    return _keys(example_id.encode() for example_id in ids)


def text_keys(
    text_B: np.ndarray, start_N: np.ndarray, *, size: int = 8, person: bytes = b""
) -> np.ndarray:
    """Return the keys of `example_keys` for ids that lie one after the other in memory.

    Args:
        text_B: uint8, the ids in UTF-8.
        start_N: integer (N + 1,), where each begins, and where the last one ends.
        size, person: other parameters of BLAKE2b than those of keys; the first 8 bytes of its
            digests are returned.
    """
    global _num_hashed
    content, num_texts = np.ascontiguousarray(text_B).data, len(start_N) - 1
    if num_texts < _TEXTS_TO_COMPILE and _num_hashed < _TEXTS_TO_COMPILE_FOR_ALL:
        _num_hashed += num_texts
        texts = (content[start:end] for start, end in itertools.pairwise(start_N.tolist()))
        return _keys(texts, size, person)
    from s2l_ray import blake2b as compiled  # takes time to load

    key_N = np.empty(num_texts, np.uint64)
    compiled.digests(text_B, start_N, key_N, compiled.parameters(size, person))
    long_N = np.flatnonzero(np.diff(start_N) > compiled.BLOCK_BYTES)
    key_N[long_N] = _keys(
        (content[start_N[row] : start_N[row + 1]] for row in long_N), size, person
    )
    return key_N


def _keys(texts: Iterable[bytes | memoryview], size: int = 8, person: bytes = b"") -> np.ndarray:
    # Copying an empty hash object takes half the time of constructing one.
    empty, digests = blake2b(digest_size=size, person=person), []
    for text in texts:
        hashed = empty.copy()
        hashed.update(text)
        digests.append(hashed.digest()[:8])
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def mixed(key_N: np.ndarray, *salts: int) -> np.ndarray:
    """Return keys mixed with `salts`; other salts, or another order of them, give unrelated keys.

    For given salts this is a bijection of the 64-bit integers, so distinct keys stay distinct.

    Args:
        key_N: uint64 (N,).
        salts: integers, taken modulo 2^64, such as a seed, a purpose or a sweep.

    Source:
        The finaliser of SplitMix64, Steele, Lea and Flood (2014), doi:10.1145/2660193.2660195.
    """
    mixed_N = key_N.astype(np.uint64)
    addends = [np.uint64(_finalised_int(salt)) for salt in salts]
    for start in range(0, len(mixed_N), _KEYS_PER_BLOCK):
        block = mixed_N[start : start + _KEYS_PER_BLOCK]
        for addend in addends:
            block[:] = _finalised(block + addend)
    return mixed_N


def bottom_k(key_N: np.ndarray, k: int) -> np.ndarray:
    """Return the rows of the `k` smallest keys, smallest first: a uniform sample of hashed rows.

    The sample of a union is the sample of its shards' samples, put one after the other. So shards
    can be sampled separately and merged. Equal keys come in row order.

    Returns:
        row_K, int64 (min(k, N),).
    """
    if k >= len(key_N):
        return np.argsort(key_N, kind="stable")
    if k <= 0:
        return np.empty(0, dtype=np.int64)
    largest = np.partition(key_N, k - 1)[k - 1]
    row_C = np.flatnonzero(key_N <= largest)
    return row_C[np.argsort(key_N[row_C], kind="stable")][:k]


def occurrences(digest_N2: np.ndarray) -> np.ndarray:
    """Return the number of equal rows before each row: int64 (N,), zero for a first occurrence.

    Args:
        digest_N2: integer array (N, 2); two rows are equal if both of their numbers are.
    """
    num_rows = len(digest_N2)
    # lexsort is stable: equal digests stay in input order.
    order_N = np.lexsort((digest_N2[:, 1], digest_N2[:, 0]))
    sorted_N2 = digest_N2[order_N]
    starts_N = np.ones(num_rows, bool)
    starts_N[1:] = (sorted_N2[1:] != sorted_N2[:-1]).any(axis=1)
    group_start_N = np.maximum.accumulate(np.where(starts_N, np.arange(num_rows), 0))
    occurrence_N = np.empty(num_rows, np.int64)
    occurrence_N[order_N] = np.arange(num_rows) - group_start_N
    return occurrence_N


def _finalised(x_N: np.ndarray) -> np.ndarray:
    x_N = x_N + np.uint64(0x9E3779B97F4A7C15)
    x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_N ^ (x_N >> np.uint64(31))


def _finalised_int(salt: int) -> int:
    return int(_finalised(np.array([salt & _MASK], dtype=np.uint64))[0])
