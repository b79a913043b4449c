"""Evaluation sets: held-out rows are read, counted, sampled and written as units of work.

Shapes: N usable rows of a set, in input order.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
import pyarrow as pa

from s2l_ray import hashing
from s2l_ray.artifacts.tables import rows_name, rows_table
from s2l_ray.config.data import DataConfig, FieldNames
from s2l_ray.config.sections import EvaluationConfig
from s2l_ray.data.examples import RowError, content_digest, read_example
from s2l_ray.data.sources import read_rows
from s2l_ray.errors import DataError, check_rejected_share
from s2l_ray.storage.input_files import InputFile
from s2l_ray.storage.location import Location

BATCHES_PER_UNIT = 4
"""Batches of rows in one unit of work."""

Failure = tuple[str, str]
"""The reason why a row cannot be used (of `data.examples.REASONS` or of a parser), and the row's
location, "FILE row N"."""


def staged_units(
    config: EvaluationConfig,
    data: DataConfig,
    sets: Mapping[str, Sequence[InputFile]],
    staged: Location,
) -> dict[str, Any]:
    """Write the rows to evaluate to `staged`, once, and return the plan of the evaluation.

    The plan has the units of work in order, and the counts of each set. The rows of a unit are
    consecutive among the chosen rows of one file.

    Raises:
        DataError: a set has no rows, or too many rows that cannot be used.
    """
    plan_file = staged / "plan.json"
    if not plan_file.exists():
        units: list[dict[str, Any]] = []
        counts: dict[str, Any] = {}
        for name in dict.fromkeys(config.sets):
            fields = data.of_set(name).fields
            survey = _survey(sets[name], fields)
            check_usable(name, survey.num_rows, survey.failures, data.max_rejected)
            counts[name] = {"rows": survey.num_rows, "failures": survey.failures}
            usable = (row for row in _checked(sets[name], fields) if row.digest)
            chosen_N = chosen(survey.digests, config.max_items)
            sampled = (row for row, keep in zip(usable, chosen_N, strict=True) if keep)
            for rows in _units_of(sampled, BATCHES_PER_UNIT * config.rows_per_batch):
                (staged / rows_name(len(units))).write_table(_staged_table(rows))
                units.append({"unit": len(units), "set": name, "rows": len(rows)})
        plan_file.write_json({"units": units, "sets": counts})
    plan: dict[str, Any] = plan_file.read_json()
    return plan


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


@dataclass(frozen=True)
class _CheckedRow:
    """An unchanged row with the digest of its content, or the reason why it has none."""

    file: str
    number: int
    fields: dict[str, Any]
    digest: str | None
    reason: str | None

    @property
    def location(self) -> str:
        return f"{self.file} row {self.number}"


@dataclass(frozen=True)
class _Survey:
    """The digests of the usable rows of a set, in input order, and the failures of the others."""

    num_rows: int
    digests: list[str]
    failures: list[Failure]


def _survey(files: Sequence[InputFile], fields: FieldNames) -> _Survey:
    digests, failures = [], []
    for row in _checked(files, fields):
        if row.digest:
            digests.append(row.digest)
        else:
            failures.append((str(row.reason), row.location))
    return _Survey(len(digests) + len(failures), digests, failures)


def _checked(files: Sequence[InputFile], fields: FieldNames) -> Iterator[_CheckedRow]:
    for file in files:
        for row in read_rows(file):
            if row.fields is None:
                yield _CheckedRow(file.uri, row.row, {}, None, row.reason)
                continue
            try:
                digest = content_digest(read_example(row.fields, fields))
                yield _CheckedRow(file.uri, row.row, row.fields, digest, None)
            except RowError as error:
                yield _CheckedRow(file.uri, row.row, row.fields, None, error.reason)


def _units_of(rows: Iterator[_CheckedRow], rows_per_unit: int) -> Iterator[list[_CheckedRow]]:
    for _, of_file in groupby(rows, key=lambda row: row.file):
        while unit := list(islice(of_file, rows_per_unit)):
            yield unit


def _staged_table(rows: Sequence[_CheckedRow]) -> pa.Table:
    return rows_table(
        [row.fields for row in rows],
        [str(row.digest) for row in rows],
        rows[0].file,
        [row.number for row in rows],
    )
