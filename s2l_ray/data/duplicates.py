"""Duplicates: rows that repeat an earlier row, and rows that a pool already holds.

A row is identified by a digest of 16 bytes: of the user's id if it has one, else of its content. A
pool is compared by the first 8 bytes of each digest. Among M new rows and N rows of a pool, one new
row is taken for a row of the pool by mistake with a probability of about M N / 2^63.

Shape letters: P rows of a part, K identities of a pool.
"""

from array import array
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from s2l_ray import hashing
from s2l_ray.artifacts.keys import column_keys
from s2l_ray.artifacts.tables import Parts, original_rows
from s2l_ray.config.data import FieldNames
from s2l_ray.data.examples import content_digest, read_example
from s2l_ray.data.raw_parts import DIGEST_BYTES, USER_ID, RawPart
from s2l_ray.errors import DataError, first
from s2l_ray.storage.location import Location
from s2l_ray.storage.read_ahead import read_ahead

IDS_CHECKED = 32
"""Number of repeated ids whose contents are compared; always all of one part of the pool."""
CONTENT_ID = "^[0-9a-f]{32}(-[0-9]+)?$"
"""Ids of rows without one of their own: the digest of the content, and which copy of it it is."""


def repeats(staged: Location, parts: Sequence[RawPart]) -> list[list[tuple[int, int]]]:
    """Return for each part the (position, occurrence) of every row that repeats an earlier one.

    The first repetition is occurrence 1. The first 8 bytes of all digests are held at once; the
    rest only of rows that share those with another row, for which the parts are read again.
    """
    keys = array("Q")  # it grows in place
    for column in read_ahead(lambda part: _digest_column(staged, part), parts):
        keys.frombytes(_digests(column)[:, 0].tobytes())
    key_N = np.frombuffer(keys, np.uint64)
    key_N.sort()
    shared_K = np.unique(key_N[1:][key_N[1:] == key_N[:-1]])
    repeats_of_part: list[list[tuple[int, int]]] = [[] for _ in parts]
    if not len(shared_K):
        return repeats_of_part
    del key_N, keys
    digests, owner, position = [], [], []
    for number, column in enumerate(read_ahead(lambda part: _digest_column(staged, part), parts)):
        digest_P2 = _digests(column)
        nearest_P = np.searchsorted(shared_K[:-1], digest_P2[:, 0])
        shares_P = shared_K[nearest_P] == digest_P2[:, 0]
        digests.append(digest_P2[shares_P])
        owner.append(np.full(len(digests[-1]), number, np.int32))
        position.append(np.flatnonzero(~np.asarray(column.is_null()))[shares_P].astype(np.int32))
    owner_N, position_N = np.concatenate(owner), np.concatenate(position)
    occurrence_N = hashing.occurrences(np.concatenate(digests))
    for index in np.flatnonzero(occurrence_N):
        pair = int(position_N[index]), int(occurrence_N[index])
        repeats_of_part[owner_N[index]].append(pair)
    return repeats_of_part


def _digest_column(staged: Location, part: RawPart) -> pa.ChunkedArray:
    return (staged / part.name).read_table(["digest"])["digest"]


def identities(pool: Parts) -> np.ndarray:
    """Return the sorted identities of the rows of `pool`, uint64 (K,), one for each row.

    An id that looks like a digest of content may also be the user's own id. It has two identities.
    """
    # It grows in place, where a list of pieces would be held a second time when it is joined.
    keys = array("Q")
    for table in pool.tables(["example_id"]):
        ids = table["example_id"]
        of_ids = column_keys(ids, size=DIGEST_BYTES, person=USER_ID).byteswap()
        keys.frombytes(of_ids.tobytes())
        keys.frombytes(_content_keys(ids).tobytes())
    identity_K = np.frombuffer(keys, np.uint64)
    identity_K.sort()
    return identity_K


def _content_keys(ids: pa.ChunkedArray) -> np.ndarray:
    """Return the first 8 bytes of the digests that ids of content show, uint64."""
    shown = ids.filter(pc.match_substring_regex(ids, CONTENT_ID))
    digits = "".join(pc.utf8_slice_codeunits(shown, 0, 16).to_pylist())
    return np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64)


def masks_of_pool_rows(
    staged: Location,
    parts: Sequence[RawPart],
    repeats: Sequence[Sequence[tuple[int, int]]],
    identity_K: np.ndarray,
) -> Iterator[str]:
    """Yield for each part the mask of the rows that a pool already holds, as text for `unpacked`.

    If the pool holds a row m times and the new files hold it n times, n - m copies are new: those
    after the first m. A second row with the same id is not masked, because it repeats the first
    one and is rejected.
    """
    for part, repeated in zip(parts, repeats, strict=True):
        column = _digest_column(staged, part)
        usable = np.flatnonzero(~np.asarray(column.is_null()))
        key_P = _digests(column)[:, 0]
        occurrence_P = np.zeros(len(column), np.int64)
        for position, occurrence in repeated:
            occurrence_P[position] = occurrence
        end_P = np.searchsorted(identity_K, key_P, side="right")
        count_P = end_P - np.searchsorted(identity_K, key_P)
        in_pool_P = np.zeros(len(column), bool)
        in_pool_P[usable] = occurrence_P[usable] < count_P
        yield np.packbits(in_pool_P).tobytes().hex()


def unpacked(mask: str, num_rows: int) -> np.ndarray:
    """Return a mask from `masks_of_pool_rows` as an array: bool (P,), P being `num_rows`."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(mask), np.uint8), count=num_rows).astype(bool)


def check_ids(staged: Location, rows: Parts, fields: FieldNames) -> list[str]:
    """Check that equal ids mean equal rows in the new data and in the pool; return notes.

    A new row whose id is in the pool is left out. If a new file numbers its rows from zero again,
    that would lose its rows. The check compares contents for the repeated ids of the first raw part
    that has any ids.

    Args:
        rows: the original rows of the pool.

    Raises:
        DataError: most of the compared rows have other content in the pool.
    """
    digest_by_id = _content_by_id(staged, fields)
    wanted, num_same, other = pa.array(list(digest_by_id), pa.string()), 0, list[str]()
    for file in rows.files() if digest_by_id else []:
        if num_same + len(other) >= IDS_CHECKED:
            break
        if not pc.any(pc.is_in(file.read_table(["example_id"])["example_id"], wanted)).as_py():
            continue
        part = file.read_table()
        part = part.filter(pc.is_in(part["example_id"], wanted))
        for name, row in zip(part["example_id"].to_pylist(), original_rows(part), strict=True):
            same = content_digest(read_example(row, fields)) == digest_by_id[name]
            num_same += same
            other += [] if same else [name]
    if not other:
        return []
    counts = (
        f"{len(other):,} of {num_same + len(other):,} compared rows have the id of a row in the "
        f"pool and other content (first: {first(other)})"
    )
    if len(other) <= num_same:
        return [f"{counts}; they are left out"]
    raise DataError(
        f"the new data: {counts}. A row whose id is in the pool is left out, so an id must mean "
        "the same row in old and new data. Rename the ids, or drop the field that data.fields.id "
        "names from the new data."
    )


def _content_by_id(staged: Location, fields: FieldNames) -> dict[str, str]:
    """Return the content digests of one raw part's rows by their own ids; empty without ids."""
    for name in staged.names():
        if name.startswith("rows-"):
            rows = original_rows((staged / name).read_table())
            examples = [read_example(row, fields) for row in rows]
            digests = {e.id: content_digest(e) for e in examples if e.id is not None}
            if digests:
                return digests
    return {}


def _digests(column: pa.ChunkedArray) -> np.ndarray:
    """Return the digests of the rows that have one, uint64 (P, 2)."""
    raw = b"".join(column.drop_null().to_pylist())
    return np.frombuffer(raw, dtype=">u8").reshape(-1, 2).astype(np.uint64)
