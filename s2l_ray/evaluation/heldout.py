"""Held-out rows: read, counted, chosen and staged as units of work for the evaluation.

Shapes: N usable rows of a set, in input order.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
import pyarrow as pa

from s2l_ray import hashing
from s2l_ray.artifacts.manifest import rows_name, rows_table
from s2l_ray.config.sections import DataConfig, EvaluationConfig, FieldNames
from s2l_ray.data.examples import RowError, content_digest, read_example
from s2l_ray.data.sources import read_rows
from s2l_ray.errors import DataError, check_rejected_share
from s2l_ray.storage.input_files import InputFile
from s2l_ray.storage.location import Location

BATCHES_PER_UNIT = 4

Failure = tuple[str, str]
"""Why a row cannot be used (one of prompts.REASONS, or the reader's), and where it stands."""


def staged_units(
    config: EvaluationConfig,
    data: DataConfig,
    sets: Mapping[str, Sequence[InputFile]],
    staged: Location,
) -> dict[str, Any]:
    """Leave the rows to evaluate in `staged`, once; units in order, and the counts of each set.

    A unit's rows are consecutive among the chosen ones of one file.

    Raises:
        DataError: a set has no rows, or too many that cannot be used.
    """
    place = staged / "plan.json"
    if not place.exists():
        units: list[dict[str, Any]] = []
        counts: dict[str, Any] = {}
        for name in dict.fromkeys(config.sets):
            survey = _survey(sets[name], data.fields)
            check_usable(name, survey.num_rows, survey.failures, data.max_rejected)
            counts[name] = {"rows": survey.num_rows, "failures": survey.failures}
            usable = (row for row in _checked(sets[name], data.fields) if row.digest)
            chosen_N = chosen(survey.digests, config.max_items)
            kept = (row for row, keep in zip(usable, chosen_N, strict=True) if keep)
            for rows in _units_of(kept, BATCHES_PER_UNIT * config.rows_per_batch):
                (staged / rows_name(len(units))).write_table(_staged_table(rows))
                units.append({"unit": len(units), "set": name, "rows": len(rows)})
        place.write_json({"units": units, "sets": counts})
    plan: dict[str, Any] = place.read_json()
    return plan


def chosen(digests: Sequence[str], max_items: int | None) -> np.ndarray:
    """keep_N, bool (N,): at most `max_items` rows, those with the smallest hash of their content.

    A row is chosen whatever stands before it; of equal rows the first come first.
    """
    limit = len(digests) if max_items is None else max_items
    keep_N = np.zeros(len(digests), bool)
    keep_N[hashing.bottom_k(hashing.example_keys(digests), limit)] = True
    return keep_N


def check_usable(
    name: str, num_rows: int, failures: Sequence[Failure], max_rejected: float
) -> None:
    """Nothing, if enough rows of a set can be used; else a DataError that counts them by reason."""
    if not num_rows:
        raise DataError(f"data.eval.{name}: there are no rows in its files. Check the path.")
    places: dict[str, list[str]] = {}
    for reason, place in failures:
        places.setdefault(reason, []).append(place)
    counts = {reason: len(found) for reason, found in places.items()}
    check_rejected_share(f"data.eval.{name}", num_rows, counts, places, max_rejected)


@dataclass(frozen=True)
class _Row:
    """A row as it came, with the digest of its content or the reason why it has none."""

    file: str
    number: int
    fields: dict[str, Any]
    digest: str | None
    reason: str | None

    @property
    def place(self) -> str:
        return f"{self.file} row {self.number}"


@dataclass(frozen=True)
class _Survey:
    """All rows of a set: the digests of the usable ones, in input order, and the other ones."""

    num_rows: int
    digests: list[str]
    failures: list[Failure]


def _survey(files: Sequence[InputFile], fields: FieldNames) -> _Survey:
    digests, failures = [], []
    for row in _checked(files, fields):
        if row.digest:
            digests.append(row.digest)
        else:
            failures.append((str(row.reason), row.place))
    return _Survey(len(digests) + len(failures), digests, failures)


def _checked(files: Sequence[InputFile], fields: FieldNames) -> Iterator[_Row]:
    for file in files:
        for row in read_rows(file):
            if row.fields is None:
                yield _Row(file.uri, row.row, {}, None, row.reason)
                continue
            try:
                digest = content_digest(read_example(row.fields, fields))
                yield _Row(file.uri, row.row, row.fields, digest, None)
            except RowError as error:
                yield _Row(file.uri, row.row, row.fields, None, error.reason)


def _units_of(rows: Iterator[_Row], rows_per_unit: int) -> Iterator[list[_Row]]:
    for _, of_file in groupby(rows, key=lambda row: row.file):
        while unit := list(islice(of_file, rows_per_unit)):
            yield unit


def _staged_table(rows: Sequence[_Row]) -> pa.Table:
    return rows_table(
        [row.fields for row in rows],
        [str(row.digest) for row in rows],
        rows[0].file,
        [row.number for row in rows],
    )
