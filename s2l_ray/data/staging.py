"""Input files as staged parts of rows; which of their rows repeat, and which a pool has already.

Rows are told apart by 16 bytes each: a hash of the user's id, or of the content. What is known of
a pool are 8 of them, 16 for an id that could be either, so that among M new and N known rows one
is taken for known by mistake with probability about M N / 2^63.

Shape letters: P rows of a part, K identities of a pool.
"""

import hashlib
import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from s2l_ray import hashing
from s2l_ray.artifacts.manifest import Parts, original_rows, rows_table
from s2l_ray.config.sections import FieldNames
from s2l_ray.data import tokenise
from s2l_ray.data.sources import SourceRow, read_rows
from s2l_ray.errors import DataError, first
from s2l_ray.storage.input_files import InputFile
from s2l_ray.storage.location import Location

STAGED = pa.schema(
    [
        ("row", pa.int64()),
        ("digest", pa.binary(16)),
        ("reason", pa.string()),
        ("excerpt", pa.string()),
    ]
)
EXCERPT_CHARACTERS = 200
IDS_CHECKED = 32
"""Known ids of new rows whose content is compared; those of one part of the pool at least."""
_CONTENT_ID = re.compile(r"([0-9a-f]{32})(?:-[0-9]+)?")


@dataclass(frozen=True)
class StagedPart:
    """Consecutive rows of one input file, as they lie in the staging folder."""

    file: int
    name: str
    num_rows: int


class Cutter:
    """Reads one input file from beginning to end and stages its rows part by part."""

    def __init__(self, staged: Location, fields: Any, rows_per_part: int) -> None:
        self.staged, self.fields, self.rows_per_part = staged, fields, rows_per_part

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        number = unit["number"]
        done = self.staged / f"file-{number:06d}.json"
        if not done.exists():
            rows = read_rows(InputFile(unit["uri"], unit["size"], unit["modified"]))
            parts = [
                self._stage(f"file-{number:06d}-{index:06d}.parquet", chunk)
                for index, chunk in enumerate(_chunks(rows, self.rows_per_part))
            ]
            done.write_json({"number": number, "parts": parts})
        result: dict[str, Any] = done.read_json()
        return result

    def _stage(self, name: str, chunk: Sequence[SourceRow]) -> tuple[str, int]:
        # A repeated id and repeated content must never meet: they are hashed apart.
        checked = [self._check(row) for row in chunk]
        good = [row for row, (_, reason, _) in zip(chunk, checked, strict=True) if not reason]
        table = pa.table(
            [
                [row.row for row in chunk],
                [digest for digest, _, _ in checked],
                [reason for _, reason, _ in checked],
                [excerpt for _, _, excerpt in checked],
            ],
            schema=STAGED,
        )
        (self.staged / name).write_table(table)
        originals = rows_table(
            [row.fields or {} for row in good], [""] * len(good), "", [row.row for row in good]
        )
        (self.staged / f"rows-{name}").write_table(originals)
        return name, len(chunk)

    def _check(self, row: SourceRow) -> tuple[bytes | None, str | None, str | None]:
        if row.fields is None:
            return None, row.reason, row.excerpt[:EXCERPT_CHARACTERS]
        try:
            example = tokenise.read_example(row.fields, self.fields)
        except tokenise.RowError as error:
            return None, error.reason, excerpt_of(error, row.fields)
        return bytes.fromhex(_identity(example)), None, None


def _identity(example: tokenise.Example) -> str:
    """32 hex digits: of the user's id where there is one, else of the content."""
    if example.id is None:
        return tokenise.content_digest(example)
    return _digest_of_id(example.id).hex()


def _digest_of_id(example_id: str) -> bytes:
    return hashlib.blake2b(example_id.encode(), digest_size=16, person=b"user id").digest()


def _chunks(rows: Iterator[SourceRow], size: int) -> Iterator[list[SourceRow]]:
    chunk: list[SourceRow] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def repeats(staged: Location, parts: Sequence[StagedPart]) -> list[list[tuple[int, int]]]:
    """For each part the (position, occurrence) of rows whose digest came before, from 1 up."""
    digests, owner, position = [], [], []
    for number, part in enumerate(parts):
        column = (staged / part.name).read_table(["digest"])["digest"]
        known = np.flatnonzero(~np.asarray(column.is_null()))
        raw = b"".join(column.drop_null().to_pylist())
        digests.append(np.frombuffer(raw, dtype=">u8").reshape(-1, 2).astype(np.uint64))
        owner.append(np.full(len(known), number, np.int32))
        position.append(known.astype(np.int32))
    digest_N2 = np.concatenate(digests)
    owner_N, position_N = np.concatenate(owner), np.concatenate(position)
    occurrence_N = hashing.occurrences(digest_N2)
    found: list[list[tuple[int, int]]] = [[] for _ in parts]
    for index in np.flatnonzero(occurrence_N):
        found[owner_N[index]].append((int(position_N[index]), int(occurrence_N[index])))
    return found


def identities(pool: Parts) -> np.ndarray:
    """What tells whether a row is in `pool`: uint64 (K,), sorted, as often as the pool has it.

    An id that looks like a hash of content may be a user's own as well, and counts as both.
    """
    # It grows in place, where a list of pieces would be held a second time when it is joined.
    keys = array("Q")
    for table in pool.tables(["example_id"]):
        digests = [d for name in table["example_id"].to_pylist() for d in _digests(name)]
        keys.frombytes(_keys(digests).tobytes())
    identity_K = np.frombuffer(keys, np.uint64)
    identity_K.sort()
    return identity_K


def known_rows(
    staged: Location,
    parts: Sequence[StagedPart],
    repeats: Sequence[Sequence[tuple[int, int]]],
    identity_K: np.ndarray,
) -> Iterator[str]:
    """For each part the rows that a pool has already, as text for `unpacked`.

    Of content that the pool has m times, the first m occurrences are known and further ones new;
    a second row of one id is never known: it repeats the first.
    """
    for part, repeated in zip(parts, repeats, strict=True):
        column = (staged / part.name).read_table(["digest"])["digest"]
        place_P = np.flatnonzero(~np.asarray(column.is_null()))
        key_P = _keys(column.drop_null().to_pylist())
        occurrence_P = np.zeros(len(column), np.int64)
        for place, occurrence in repeated:
            occurrence_P[place] = occurrence
        end_P = np.searchsorted(identity_K, key_P, side="right")
        count_P = end_P - np.searchsorted(identity_K, key_P)
        known_P = np.zeros(len(column), bool)
        known_P[place_P] = occurrence_P[place_P] < count_P
        yield np.packbits(known_P).tobytes().hex()


def unpacked(known: str, num_rows: int) -> np.ndarray:
    """bool (P,): what `known_rows` said of a part with `num_rows` rows."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(known), np.uint8), count=num_rows).astype(bool)


def check_ids(staged: Location, rows: Parts, fields: FieldNames) -> list[str]:
    """Whether ids mean the same in new rows and in a pool's original rows; notes for the user.

    Rows with a known id are left out, which loses those of a file that numbers its rows from zero
    again. Looked at are known ids of the first staged part that has any ids.

    Raises:
        DataError: most of those that were looked at have other content in the pool.
    """
    digest_by_id = _first_ids(staged, fields)
    wanted, num_same, other = pa.array(list(digest_by_id), pa.string()), 0, list[str]()
    for file in rows.files() if digest_by_id else []:
        if num_same + len(other) >= IDS_CHECKED:
            break
        if not pc.any(pc.is_in(file.read_table(["example_id"])["example_id"], wanted)).as_py():
            continue
        part = file.read_table()
        part = part.filter(pc.is_in(part["example_id"], wanted))
        for name, row in zip(part["example_id"].to_pylist(), original_rows(part), strict=True):
            same = tokenise.content_digest(tokenise.read_example(row, fields)) == digest_by_id[name]
            num_same += same
            other += [] if same else [name]
    if not other:
        return []
    found = (
        f"{len(other):,} of {num_same + len(other):,} rows that were looked at have the id of a "
        f"row in the pool and other content (first: {first(other)})"
    )
    if len(other) <= num_same:
        return [f"{found}; they are left out"]
    raise DataError(
        f"the new data: {found}. Rows with a known id are left out, so ids must mean the same in "
        "old and new data: rename them, or leave the field out that data.fields.id names."
    )


def _first_ids(staged: Location, fields: FieldNames) -> dict[str, str]:
    """The content of rows of one staged part by their own ids; empty where no row has any."""
    for name in staged.names():
        if name.startswith("rows-"):
            rows = original_rows((staged / name).read_table())
            examples = [tokenise.read_example(row, fields) for row in rows]
            found = {e.id: tokenise.content_digest(e) for e in examples if e.id is not None}
            if found:
                return found
    return {}


def _digests(example_id: str) -> list[bytes]:
    of_content = _CONTENT_ID.fullmatch(example_id)
    own = _digest_of_id(example_id)
    return [own, bytes.fromhex(of_content[1])] if of_content else [own]


def _keys(digests: Sequence[bytes]) -> np.ndarray:
    """The first 8 bytes of each: uint64."""
    raw = np.frombuffer(b"".join(digests), dtype=">u8")
    return raw.reshape(-1, 2)[:, 0].astype(np.uint64)


def excerpt_of(error: tokenise.RowError, fields: Mapping[str, Any]) -> str:
    text = json.dumps(fields, ensure_ascii=False, default=str)
    return f"{error.detail}: {text}"[:EXCERPT_CHARACTERS]
