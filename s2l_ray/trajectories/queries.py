"""Rows that a selection should resemble, read and tokenised as the rows of the pool."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from s2l_ray.artifacts.tables import Parts, part_name
from s2l_ray.artifacts.token_tables import token_table
from s2l_ray.config.data import DataConfig
from s2l_ray.data.examples import Example, RowError, read_example
from s2l_ray.data.sources import read_rows
from s2l_ray.data.templates import load_template
from s2l_ray.data.tokenise import TokenisedExample, tokenise
from s2l_ray.errors import DataError, check_rejected_share, first
from s2l_ray.storage.input_files import InputFile
from s2l_ray.storage.location import Location

KEY = "trajectories.queries"


@dataclass(frozen=True)
class Queries:
    """Files of query rows, and the settings that turn a row into tokens."""

    files: Sequence[InputFile]
    data: DataConfig
    tokenizer: str


def write_query_parts(queries: Queries, folder: Location) -> tuple[Parts, dict[str, Any]]:
    """Write the usable rows into `folder` as prepared parts, in the order of the files.

    The example_id of a row is its file and row number, "FILE row N".

    Returns:
        The parts; and, for the summary of the stage, the number of their rows, the number of rows
        that could not be used, and a note on the latter.

    Raises:
        DataError: there are no rows, or too many of them cannot be used.
    """
    from s2l_ray.models.tokenizers import load_tokenizer  # imports torch

    tokenizer = load_tokenizer(queries.tokenizer)
    template = load_template(queries.data)
    rows = list(_read(queries))
    if not rows:
        raise DataError(f"{KEY}: there are no rows in {len(queries.files)} file(s).")
    examples = [example for _, example in rows if isinstance(example, Example)]
    outcomes = iter(tokenise(examples, template, tokenizer, queries.data.max_tokens))
    usable: list[tuple[str, TokenisedExample]] = []
    failures: dict[str, list[str]] = {}
    for row_name, example in rows:
        outcome = next(outcomes) if isinstance(example, Example) else example
        if isinstance(outcome, TokenisedExample):
            usable.append((row_name, outcome))
        else:
            reason = outcome if isinstance(outcome, str) else outcome.reason
            failures.setdefault(reason, []).append(row_name)
    counts = {reason: len(names) for reason, names in failures.items()}
    check_rejected_share(KEY, len(rows), counts, failures, queries.data.max_rejected)
    size = queries.data.rows_per_part
    for number, start in enumerate(range(0, len(usable), size)):
        (folder / part_name(number)).write_table(_table(usable[start : start + size]))
    num_rejected = len(rows) - len(usable)
    summary = {"num_query_rows": len(usable), "rejected_query_rows": num_rejected}
    return Parts(folder), {**summary, "notes": _notes(len(rows), num_rejected, failures)}


def _notes(num_rows: int, num_rejected: int, failures: Mapping[str, Sequence[str]]) -> list[str]:
    if not num_rejected:
        return []
    reasons = ", ".join(f"{len(names):,} {reason}" for reason, names in failures.items())
    first_names = first([name for names in failures.values() for name in names])
    rows = f"{num_rejected:,} of {num_rows:,} rows of {KEY}"
    return [f"{rows} cannot be used: {reasons} (first: {first_names})"]


def _read(queries: Queries) -> Iterator[tuple[str, Example | str]]:
    """Yield the file and number of every row, and its example or the reason why it has none."""
    fields = queries.data.fields.of_pool
    for file in queries.files:
        for row in read_rows(file):
            row_name = f"{file.uri} row {row.row}"
            if row.fields is None:
                yield row_name, str(row.reason)
                continue
            try:
                yield row_name, read_example(row.fields, fields)
            except RowError as error:
                yield row_name, error.reason


def _table(rows: Sequence[tuple[str, TokenisedExample]]) -> pa.Table:
    return token_table(
        [row_name for row_name, _ in rows],
        [""] * len(rows),
        [tokens.input_ids for _, tokens in rows],
        [tokens.response_ranges for _, tokens in rows],
    )
