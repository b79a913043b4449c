"""The rows of held-out sets: read, counted, and sampled.

The evaluation of a target and the measurements during its training choose their rows here.

Shapes: N usable rows of a set, in input order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from s2l_ray import hashing
from s2l_ray.config.data import DataConfig, FieldNames
from s2l_ray.data.examples import RowError, content_digest, read_example
from s2l_ray.data.row_errors import place_of
from s2l_ray.data.sources import read_rows
from s2l_ray.errors import DataError, check_rejected_share
from s2l_ray.storage.input_files import InputFile

Failure = tuple[str, str]
"""The reason why a row cannot be used (of `data.examples.REASONS` or of a parser), and the row's
location, "FILE row N"."""


@dataclass(frozen=True)
class HeldOutRow:
    """An unchanged row with the digest of its content, or the reason why it has none."""

    file: str
    number: int
    fields: dict[str, Any]
    digest: str | None
    reason: str | None

    @property
    def location(self) -> str:
        return place_of(self.file, self.number)


@dataclass(frozen=True)
class Chosen:
    """The rows of a set that are measured, in input order, read when they are asked for.

    Attributes:
        num_rows: all rows of the set.
        failures: of the rows that cannot be used.
        rows: those that were chosen among the others.
    """

    num_rows: int
    failures: list[Failure]
    rows: Iterator[HeldOutRow]


def choose(
    name: str, data: DataConfig, files: Sequence[InputFile], max_items: int | None
) -> Chosen:
    """Choose at most `max_items` rows of the set `name`, which is in `files`.

    Raises:
        DataError: the set has no rows, or too many rows that cannot be used.
    """
    fields = data.of_set(name).fields
    digests, failures = list[str](), list[Failure]()
    for row in _checked(files, fields):
        if row.digest:
            digests.append(row.digest)
        else:
            failures.append((str(row.reason), row.location))
    num_rows = len(digests) + len(failures)
    check_usable(name, num_rows, failures, data.max_rejected)
    usable = (row for row in _checked(files, fields) if row.digest)
    chosen_N = chosen(digests, max_items)
    rows = (row for row, keep in zip(usable, chosen_N, strict=True) if keep)
    return Chosen(num_rows, failures, rows)


def chosen(digests: Sequence[str], max_items: int | None) -> np.ndarray:
    """Choose at most `max_items` rows, those whose contents have the smallest hashes.

    The choice does not depend on the order of the rows. Among equal rows the first are chosen.

    Returns:
        bool (N,), true for a chosen row.
    """
    limit = len(digests) if max_items is None else max_items
    keep_N = np.zeros(len(digests), bool)
    keep_N[hashing.bottom_k(hashing.example_keys(digests), limit)] = True
    return keep_N


def check_usable(
    name: str, num_rows: int, failures: Sequence[Failure], max_rejected: float
) -> None:
    """Raise DataError if a set has no rows, or too many rows that cannot be used."""
    if not num_rows:
        raise DataError(f"data.eval.{name}: there are no rows in its files. Check the path.")
    locations: dict[str, list[str]] = {}
    for reason, location in failures:
        locations.setdefault(reason, []).append(location)
    counts = {reason: len(rows) for reason, rows in locations.items()}
    check_rejected_share(f"data.eval.{name}", num_rows, counts, locations, max_rejected)


def _checked(files: Sequence[InputFile], fields: FieldNames) -> Iterator[HeldOutRow]:
    for file in files:
        for row in read_rows(file):
            if row.fields is None:
                yield HeldOutRow(file.uri, row.row, {}, None, row.reason)
                continue
            try:
                digest = content_digest(read_example(row.fields, fields))
                yield HeldOutRow(file.uri, row.row, row.fields, digest, None)
            except RowError as error:
                yield HeldOutRow(file.uri, row.row, row.fields, None, error.reason)
