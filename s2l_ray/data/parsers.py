"""Parsers of JSON lines, JSON arrays, csv and tsv, which read numbered rows from a byte stream.

Every parser yields all rows in order, and a bad row with the reason. It raises DataError only when
it can no longer tell where rows end. `origin` is the file that such an error names.
"""

import csv
import io
import json
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO

import pyarrow as pa

from s2l_ray.errors import DataError, first

CHUNK_BYTES = 1 << 20
EXCERPT_CHARACTERS = 200
MAX_ROW_BYTES = 1 << 27
"""A longer row is refused: a small compressed file can hold one that fills the memory."""
BLANK = b" \t\r\n"
# A whole string, a structural character, or the quote of a string whose end is not yet read.
_JSON_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["\[\]{},]', re.DOTALL)
_LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class SourceRow:
    """An unchanged row (`fields`), or the reason why it cannot be read (`reason`); never both.

    Attributes:
        row: the 0-based number of the line in JSON lines, counting blank lines; the 0-based number
            of the record in other formats.
        fields: the row's values by field name.
        reason: malformed JSON, repeated key, invalid UTF-8, wrong type or malformed row.
        excerpt: the beginning of the row, always printable as UTF-8.
        typed: the same row as one row of a table, if its file has types for its fields.
    """

    row: int
    fields: dict[str, Any] | None
    reason: str | None
    excerpt: str
    typed: pa.RecordBatch | None = None


def line_rows(origin: str, stream: BinaryIO) -> Iterator[SourceRow]:
    """Yield one row for every line that is not blank."""
    for row, line in enumerate(_lines(origin, stream)):
        line = line.strip(BLANK)
        if line:
            yield _json_row(row, line)


def starts_array(stream: io.BufferedReader) -> bool:
    """Return True if the first character that is not blank is `[`; consume blanks before it."""
    while (head := stream.peek(1)[:1]) and head in BLANK:
        stream.read(1)
    return head == b"["


def array_rows(origin: str, stream: BinaryIO) -> Iterator[SourceRow]:
    """Yield one row for every element of the array that `stream` holds."""
    for row, element in enumerate(array_elements(origin, stream)):
        yield _json_row(row, element)


def csv_rows(origin: str, stream: BinaryIO, delimiter: str) -> Iterator[SourceRow]:
    """Yield one row of text values for every record after the header, without blank lines."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    recent: deque[str] = deque(maxlen=1)
    records = csv.reader(_text_lines(origin, stream, recent), delimiter=delimiter, strict=True)
    names = _header(origin, records)
    row = 0
    while True:
        try:
            values = next(records, None)
            reason = _fault(values, names) if values else None
        except csv.Error as error:
            _check_quotes_closed(origin, error, row)
            values, reason = [recent[0].strip()], "malformed row"
        if values is None:
            return
        if values:
            fields = None if reason else dict(zip(names, values, strict=True))
            yield SourceRow(row, fields, reason, shortened(values))
            row += 1


def check_distinct(origin: str, names: Sequence[str]) -> None:
    """Raise DataError if two columns have the same name."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(
            f"data: {origin}: {len(repeated)} of {len(names)} columns are named more than once "
            f"(first: {first(list(map(repr, repeated)))}). Rename or drop them."
        )


def shortened(values: Iterable[str]) -> str:
    """Join the first values to one excerpt that UTF-8 can encode."""
    text = ", ".join(value[:EXCERPT_CHARACTERS] for value in values)[:EXCERPT_CHARACTERS]
    return text.encode(errors="replace").decode()


def _json_row(row: int, raw: bytes) -> SourceRow:
    excerpt = raw[: 4 * EXCERPT_CHARACTERS].decode(errors="replace")[:EXCERPT_CHARACTERS]
    try:
        fields = json.loads(raw.decode(), object_pairs_hook=_object)
        if _LONE_SURROGATE.search(raw):
            # "\ud83d\ude00" is one character; half of such a pair cannot be stored.
            json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeError:
        return SourceRow(row, None, "invalid UTF-8", excerpt)
    except _RepeatedKeyError as error:
        return SourceRow(row, None, "repeated key", f"{error}: {excerpt}"[:EXCERPT_CHARACTERS])
    except (ValueError, RecursionError):
        return SourceRow(row, None, "malformed JSON", excerpt)
    if not isinstance(fields, dict):
        return SourceRow(row, None, "wrong type", excerpt)
    return SourceRow(row, fields, None, excerpt)


class _RepeatedKeyError(ValueError):
    """An object has a key twice, so that one of its values would be lost."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _RepeatedKeyError(f"{first([repr(k) for k, n in counts.items() if n > 1])} twice")
    return fields


def array_elements(origin: str, stream: BinaryIO) -> Iterator[bytes]:
    """Yield the text of each element of a JSON array; brackets and strings tell where it ends."""
    stream.read(1)
    text, begin, scan, depth, num_elements = b"", 0, 0, 0, 0
    while True:
        token = _JSON_TOKEN.search(text, scan)
        if token is None or token.group() == b'"':
            _check_length(origin, len(text) - begin, num_elements)
            # To double the text in memory keeps the work linear for long elements.
            more = stream.read(max(CHUNK_BYTES, len(text) - begin))
            if not more:
                raise DataError(
                    f"data: {origin}: the array ends inside row {num_elements:,} (from 0): the "
                    "file is truncated, or a quote or bracket is not closed. Repair it."
                )
            scan = (token.start() if token else len(text)) - begin
            text, begin = text[begin:] + more, 0
            continue
        mark, scan = token.group(), token.end()
        if depth == 0 and mark in (b",", b"]"):
            element = text[begin : token.start()].strip(BLANK)
            if mark == b"," or element or num_elements:
                yield element
            if mark == b"]":
                break
            num_elements, begin = num_elements + 1, scan
        elif mark in (b"[", b"{"):
            depth += 1
        elif mark in (b"]", b"}"):
            depth = max(0, depth - 1)
    _check_nothing_follows(
        origin, chain([text[scan:]], iter(lambda: stream.read(CHUNK_BYTES), b""))
    )


def _check_nothing_follows(origin: str, rest: Iterable[bytes]) -> None:
    if any(chunk.strip(BLANK) for chunk in rest):
        raise DataError(
            f"data: {origin}: more text follows the end of the array. "
            "A file of JSON holds one array, or one object per line."
        )


def _lines(origin: str, stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of `stream`; raise DataError before one could fill the memory."""
    for row, line in enumerate(iter(lambda: stream.readline(MAX_ROW_BYTES), b"")):
        _check_length(origin, len(line), row)
        yield line


def _check_length(origin: str, num_bytes: int, row: int) -> None:
    if num_bytes >= MAX_ROW_BYTES:
        raise DataError(
            f"data: {origin}: row {row:,} (from 0) has more than {MAX_ROW_BYTES >> 20} MB, which "
            "no example has. Remove it, or leave the file out."
        )


def _text_lines(origin: str, stream: BinaryIO, recent: deque[str]) -> Iterator[str]:
    """Yield the lines as text, and leave the last one in `recent`.

    Invalid bytes become surrogates, so that only the row that holds them is rejected.
    """
    for line in _lines(origin, stream):
        text = line.decode(errors="surrogateescape")
        recent.append(text)
        yield text


def _fault(values: Sequence[str], names: Sequence[str]) -> str | None:
    if len(values) != len(names):
        return "malformed row"
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return "invalid UTF-8"
    return None


def _header(origin: str, records: Iterator[list[str]]) -> list[str]:
    try:
        names = next(filter(None, records), [])
    except csv.Error as error:
        raise DataError(f"data: {origin}: the header cannot be read: {error}") from None
    if _fault(names, names):
        raise DataError(f"data: {origin}: the header is not UTF-8. Convert the file.")
    check_distinct(origin, names)
    if len(names) == 1 and (marks := [mark for mark in ",;\t|" if mark in names[0]]):
        raise DataError(
            f"data: {origin}: the header is one column, {names[0]!r}, with {marks[0]!r} inside. "
            "Columns of .csv are separated by commas, and of .tsv by tabs: convert the file."
        )
    return names


def _check_quotes_closed(origin: str, error: csv.Error, row: int) -> None:
    if "unexpected end" in str(error) or "field larger" in str(error):
        raise DataError(
            f"data: {origin}: row {row:,} (from 0) opens a quote that is not closed ({error}), so "
            "the rows after it cannot be told apart. Repair it."
        )
