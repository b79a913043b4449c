"""Evaluation sets: held-out rows are chosen and written as units of work."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Any

import pyarrow as pa

from s2l_ray.artifacts.tables import rows_name, rows_table
from s2l_ray.config.data import DataConfig
from s2l_ray.config.sections import EvaluationConfig
from s2l_ray.data import held_out_rows
from s2l_ray.data.held_out_rows import HeldOutRow
from s2l_ray.storage.input_files import InputFile
from s2l_ray.storage.location import Location

BATCHES_PER_UNIT = 4
"""Batches of rows in one unit of work."""


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
    if not plan_file.is_file():
        units: list[dict[str, Any]] = []
        counts: dict[str, Any] = {}
        for name in dict.fromkeys(config.sets):
            found = held_out_rows.choose(name, data, sets[name], config.max_items)
            counts[name] = {"rows": found.num_rows, "failures": found.failures}
            for rows in _units_of(found.rows, BATCHES_PER_UNIT * config.rows_per_batch):
                (staged / rows_name(len(units))).write_table(_staged_table(rows))
                units.append({"unit": len(units), "set": name, "rows": len(rows)})
        plan_file.write_json({"units": units, "sets": counts})
    plan: dict[str, Any] = plan_file.read_json()
    return plan


def _units_of(rows: Iterator[HeldOutRow], rows_per_unit: int) -> Iterator[list[HeldOutRow]]:
    for _, of_file in groupby(rows, key=lambda row: row.file):
        while unit := list(islice(of_file, rows_per_unit)):
            yield unit


def _staged_table(rows: Sequence[HeldOutRow]) -> pa.Table:
    return rows_table(
        [row.fields for row in rows],
        [str(row.digest) for row in rows],
        rows[0].file,
        [row.number for row in rows],
    )
