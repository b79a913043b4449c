"""Rows that a selection is to resemble, as tokenised parts: read as the pool's rows are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from s2l_ray.artifacts.manifest import Parts, part_name
from s2l_ray.config.sections import DataConfig
from s2l_ray.data import tokenise
from s2l_ray.data.sources import read_rows
from s2l_ray.errors import DataError, check_rejected_share, first
from s2l_ray.storage.input_files import InputFile
from s2l_ray.storage.location import Location

KEY = "trajectories.queries"


@dataclass(frozen=True)
class Queries:
    """Files of query rows, and how a row becomes tokens."""

    files: Sequence[InputFile]
    data: DataConfig
    tokenizer: str


def write_query_parts(queries: Queries, folder: Location) -> tuple[Parts, dict[str, Any]]:
    """Leave the usable rows in `folder` in the form of prepared parts, in the order of the files.

    Their example_id is their place, "FILE row N".

    Returns:
        The parts; and how many rows they have and how many could not be used, with a note on these,
        for the summary of the stage.

    Raises:
        DataError: there are no rows, or too many of them cannot be used.
    """
    from s2l_ray.models.checkpoints import load_tokenizer  # imports torch

    tokenizer = load_tokenizer(queries.tokenizer)
    template = tokenise.load_template(queries.data.template)
    read = list(_read(queries))
    if not read:
        raise DataError(f"{KEY}: there are no rows in {len(queries.files)} file(s).")
    examples = [example for _, example in read if isinstance(example, tokenise.Example)]
    outcomes = iter(tokenise.tokenise(examples, template, tokenizer, queries.data.max_tokens))
    kept: list[tuple[str, tokenise.TokenisedExample]] = []
    failures: dict[str, list[str]] = {}
    for place, example in read:
        outcome = next(outcomes) if isinstance(example, tokenise.Example) else example
        if isinstance(outcome, tokenise.TokenisedExample):
            kept.append((place, outcome))
        else:
            reason = outcome if isinstance(outcome, str) else outcome.reason
            failures.setdefault(reason, []).append(place)
    counts = {reason: len(places) for reason, places in failures.items()}
    check_rejected_share(KEY, len(read), counts, failures, queries.data.max_rejected)
    size = queries.data.rows_per_part
    for number, start in enumerate(range(0, len(kept), size)):
        (folder / part_name(number)).write_table(_table(kept[start : start + size]))
    num_rejected = len(read) - len(kept)
    summary = {"num_query_rows": len(kept), "rejected_query_rows": num_rejected}
    return Parts(folder), {**summary, "notes": _notes(len(read), num_rejected, failures)}


def _notes(num_rows: int, num_rejected: int, failures: Mapping[str, Sequence[str]]) -> list[str]:
    if not num_rejected:
        return []
    reasons = ", ".join(f"{len(places):,} {reason}" for reason, places in failures.items())
    places = first([place for places in failures.values() for place in places])
    rows = f"{num_rejected:,} of {num_rows:,} rows of {KEY}"
    return [f"{rows} cannot be used: {reasons} (first: {places})"]


def _read(queries: Queries) -> Iterator[tuple[str, tokenise.Example | str]]:
    """The place of every row, and what it says or why it cannot be used."""
    for file in queries.files:
        for row in read_rows(file):
            place = f"{file.uri} row {row.row}"
            if row.fields is None:
                yield place, str(row.reason)
                continue
            try:
                yield place, tokenise.read_example(row.fields, queries.data.fields)
            except tokenise.RowError as error:
                yield place, error.reason


def _table(rows: Sequence[tuple[str, tokenise.TokenisedExample]]) -> pa.Table:
    return pa.table(
        {
            "example_id": pa.array([place for place, _ in rows], pa.string()),
            "stratum": pa.array([""] * len(rows), pa.string()),
            "input_ids": pa.array([tokens.input_ids for _, tokens in rows], pa.list_(pa.int32())),
            "num_prompt_tokens": pa.array(
                [tokens.num_prompt_tokens for _, tokens in rows], pa.int32()
            ),
        }
    )
