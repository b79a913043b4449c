"""Rows that a selection is to resemble, as tokenised parts: read as the pool's rows are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from s2l_ray.artifacts import Parts, part_name
from s2l_ray.config import DataConfig
from s2l_ray.errors import DataError, check_rejected_share
from s2l_ray.modelling import prompts
from s2l_ray.sources import InputFile, read_rows
from s2l_ray.storage import Location

KEY = "trajectories.queries"


@dataclass(frozen=True)
class Queries:
    """Files of query rows, and how a row becomes tokens."""

    files: Sequence[InputFile]
    data: DataConfig
    tokenizer: str


def tokenised(queries: Queries, folder: Location) -> Parts:
    """Leave the usable rows in `folder` in the form of prepared parts, in the order of the files.

    Their example_id is their place, "FILE row N".

    Raises:
        DataError: there are no rows, or too many of them cannot be used.
    """
    from s2l_ray.modelling.checkpoints import load_tokenizer  # imports torch

    tokenizer = load_tokenizer(queries.tokenizer)
    template = prompts.load_template(queries.data.template)
    read = list(_read(queries))
    if not read:
        raise DataError(f"{KEY}: there are no rows in {len(queries.files)} file(s).")
    examples = [example for _, example in read if isinstance(example, prompts.Example)]
    outcomes = iter(prompts.tokenise(examples, template, tokenizer, queries.data.max_tokens))
    kept: list[tuple[str, prompts.TokenisedExample]] = []
    failures: dict[str, list[str]] = {}
    for place, example in read:
        outcome = next(outcomes) if isinstance(example, prompts.Example) else example
        if isinstance(outcome, prompts.TokenisedExample):
            kept.append((place, outcome))
        else:
            reason = outcome if isinstance(outcome, str) else outcome.reason
            failures.setdefault(reason, []).append(place)
    counts = {reason: len(places) for reason, places in failures.items()}
    check_rejected_share(KEY, len(read), counts, failures, queries.data.max_rejected)
    size = queries.data.rows_per_part
    for number, start in enumerate(range(0, len(kept), size)):
        (folder / part_name(number)).write_table(_table(kept[start : start + size]))
    return Parts(folder)


def _read(queries: Queries) -> Iterator[tuple[str, prompts.Example | str]]:
    """The place of every row, and what it says or why it cannot be used."""
    for file in queries.files:
        for row in read_rows(file):
            place = f"{file.uri} row {row.row}"
            if row.fields is None:
                yield place, str(row.reason)
                continue
            try:
                yield place, prompts.read_example(row.fields, queries.data.fields)
            except prompts.RowError as error:
                yield place, error.reason


def _table(rows: Sequence[tuple[str, prompts.TokenisedExample]]) -> pa.Table:
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
