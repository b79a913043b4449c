"""Near-duplicates: rows most of whose 3-grams of words an earlier row has.

The similarity of two rows is the Jaccard index of their sets of 3-grams, estimated from MinHash
signatures (Broder 1997, doi:10.1109/SEQUEN.1997.666900). Locality-sensitive hashing finds the pairs
to compare: those with an equal band of slots. Rows are taken in input order. A row that is similar
to an earlier row which is kept repeats the first such row; any other row is kept. So a row that is
left out is always similar to one that stays, and there are no chains.

Shape letters: R rows of a table, N rows of all tables, S slots of a signature, B bands, E rows of
all buckets, D rows that repeat another one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from s2l_ray import hashing
from s2l_ray.compilation import cached_njit
from s2l_ray.data.words import gram_hashes, hashed

GRAM = 3
"""Words in an n-gram. Instructions are shorter than the web pages for which five are usual."""
LEAST_SIMILARITY = 0.8
"""Rows at least this similar are near-duplicates. An estimate has a standard error of 0.035."""
NUM_SLOTS, NUM_BANDS = 128, 16
"""A pair of similarity s has an equal band with probability 1 - (1 - s^8)^16: 0.95 for 0.8, 0.9999
for 0.9, 0.06 for 0.5."""
MOST_COMPARED = 256
"""Kept rows of one bucket that a row is compared with, the latest ones."""
SIGNATURE = np.dtype(
    [("position", "<i4"), ("bands", "<i8", NUM_BANDS), ("sketch", "u1", NUM_SLOTS)]
)
"""A row's position in its table, a hash of each band, and one byte of each slot."""
_SEED = 1
_ACCIDENTAL = 1 / 256
"""The probability that the bytes of two different slots are equal."""


@dataclass(frozen=True)
class Repeats:
    """Rows that repeat a row which is kept, in order.

    Attributes:
        row_D: their numbers among the N rows, int64.
        first_D: the number of the row that each of them repeats, int64.
        similarity_D: the estimated similarity of the two, float64.
    """

    row_D: np.ndarray
    first_D: np.ndarray
    similarity_D: np.ndarray


def signatures(positions: Sequence[int], texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the signatures of the texts that have words: SIGNATURE (R,).

    Args:
        positions: the position of each text in its table.
        texts: the words of each.
    """
    # Only a process that makes signatures needs the library.
    from rensa import RMinHash

    worded = [(n, text) for n, text in zip(positions, texts, strict=True) if text]
    signature_R = np.zeros(len(worded), SIGNATURE)
    if not worded:
        return signature_R
    # A text of one or two words is one n-gram.
    hash_W, start_R = hashed([[*text, *[""] * (GRAM - len(text))] for _, text in worded])
    gram_G, _ = gram_hashes(hash_W, start_R, GRAM)
    num_R = np.diff(start_R) - (GRAM - 1)
    begin_R = np.concatenate([[0], np.cumsum(num_R)]).astype(np.uint64)
    digests = RMinHash.digest_matrix_from_flat_token_hashes(gram_G, begin_R, NUM_SLOTS, _SEED)
    slot_RS = np.array(digests.to_rows(), np.uint32)
    signature_R["position"] = [n for n, _ in worded]
    signature_R["bands"] = _band_hashes(slot_RS)
    signature_R["sketch"] = hashing.mixed(slot_RS, 0) >> np.uint64(56)
    return signature_R


def repeats(band_BN: np.ndarray, sketch_NS: np.ndarray) -> Repeats:
    """Return the rows that repeat an earlier one.

    Args:
        band_BN: int64 (B, N), the hashes of the bands. They are overwritten: the array may be a
            file mapped into memory, too large for a copy.
        sketch_NS: uint8 (N, S), perhaps such a file, too.
    """
    num_buckets, num_entries = _replace_by_buckets(band_BN)
    share = LEAST_SIMILARITY * (1 - _ACCIDENTAL) + _ACCIDENTAL
    least = int(np.ceil(share * NUM_SLOTS - 1e-9))
    first_N, agreeing_N = _first_similar(
        np.asarray(band_BN), np.asarray(sketch_NS), num_buckets, num_entries, least, MOST_COMPARED
    )
    row_D = np.flatnonzero(first_N >= 0)
    agreeing_D = agreeing_N[row_D] / NUM_SLOTS
    similarity_D = (agreeing_D - _ACCIDENTAL) / (1 - _ACCIDENTAL)
    return Repeats(row_D, first_N[row_D].astype(np.int64), similarity_D)


def _band_hashes(slot_RS: np.ndarray) -> np.ndarray:
    """Return a hash of the slots of each band, int64 (R, B)."""
    slots = slot_RS.reshape(len(slot_RS), NUM_BANDS, -1).astype(np.uint64)
    hash_RB = np.zeros(slots.shape[:2], np.uint64)
    for k in range(slots.shape[2]):
        hash_RB = hashing.mixed(hash_RB ^ slots[:, :, k], k)
    return hash_RB.view(np.int64)


def _replace_by_buckets(band_BN: np.ndarray) -> tuple[int, int]:
    """Replace each hash by the number of its bucket, or -1 if no other row has it in this band.

    Returns:
        the number of buckets, and the number of rows in all of them.
    """
    num_buckets = num_entries = 0
    for band_N in band_BN:
        order_N = np.argsort(band_N, kind="stable")
        sorted_N = band_N[order_N]
        is_new_N = np.ones(len(sorted_N), bool)
        is_new_N[1:] = sorted_N[1:] != sorted_N[:-1]
        is_alone_N = is_new_N.copy()
        is_alone_N[:-1] &= is_new_N[1:]
        is_new_N &= ~is_alone_N
        sorted_N = np.cumsum(is_new_N) - 1 + num_buckets
        sorted_N[is_alone_N] = -1
        band_N[order_N] = sorted_N
        num_buckets += int(is_new_N.sum())
        num_entries += int((~is_alone_N).sum())
    return num_buckets, num_entries


@cached_njit
def _first_similar(
    bucket_BN: np.ndarray,
    sketch_NS: np.ndarray,
    num_buckets: int,
    num_entries: int,
    least: int,
    most_compared: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each row the first similar row that is kept, or -1, and how many slots agree."""
    num_bands, num_rows = bucket_BN.shape
    # Each bucket is a linked list of its kept rows, the latest first.
    head, following = np.full(num_buckets, -1, np.int32), np.empty(num_entries, np.int32)
    row_E, used = np.empty(num_entries, np.int32), 0
    first_N, agreeing_N = np.full(num_rows, -1, np.int32), np.zeros(num_rows, np.int16)
    for n in range(num_rows):
        for b in range(num_bands):
            bucket = bucket_BN[b, n]
            entry, compared = (head[bucket] if bucket >= 0 else -1), 0
            while entry >= 0 and compared < most_compared:
                other = row_E[entry]
                if first_N[n] < 0 or other < first_N[n]:
                    agreeing = 0
                    for slot in range(sketch_NS.shape[1]):
                        agreeing += sketch_NS[n, slot] == sketch_NS[other, slot]
                    if agreeing >= least:
                        first_N[n], agreeing_N[n] = other, agreeing
                entry, compared = following[entry], compared + 1
        if first_N[n] >= 0:
            continue
        for b in range(num_bands):
            bucket = bucket_BN[b, n]
            if bucket >= 0:
                row_E[used], following[used], head[bucket] = n, head[bucket], used
                used += 1
    return first_N, agreeing_N
