"""Rows and tokens of the pool and of held-out sets.

The pool is counted if it is prepared. Otherwise it is estimated from the first rows of every file.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from s2l_ray.artifacts.amounts import Amount, Pool
from s2l_ray.config.sections import DataConfig
from s2l_ray.data import sources
from s2l_ray.data.declaration import pool_files
from s2l_ray.data.examples import Example, RowError, read_example
from s2l_ray.data.sources import SourceRow
from s2l_ray.data.templates import load_template
from s2l_ray.data.tokenise import tokenise
from s2l_ray.errors import DataError, first
from s2l_ray.evaluation.declaration import held_out_files
from s2l_ray.storage import input_files
from s2l_ray.storage.input_files import InputFile
from s2l_ray.storage.location import Location

READ_ROWS, LEAST_READ = 20_000, 1_000
"""Number of first rows that are read: from all files together, and at least from each file."""
COUNTED_ROWS, LEAST_COUNTED = 2_000, 20
"""Number of these rows whose tokens are counted, spread evenly: of all files, and of each."""
CHARACTERS_PER_TOKEN = 4.0
"""Characters of a token, if there is no tokenizer to count tokens."""
TEMPLATE_TOKENS = 30
"""Tokens that a template adds to a row, if there is no tokenizer to count them."""

Lengths = list[tuple[int, int]]
"""For every row with response tokens: number of all its tokens, and of its response tokens."""
TokenCounter = Callable[[Sequence[Example]], Lengths]
"""A function that counts the tokens of examples."""


def by_characters(data: DataConfig) -> TokenCounter:
    """Return a counter that estimates tokens from characters, without a tokenizer."""
    return partial(_count_by_characters, data.max_tokens)


def _count_by_characters(max_tokens: int, examples: Sequence[Example]) -> Lengths:
    return [_lengths_of_text(example, max_tokens) for example in examples]


def _lengths_of_text(example: Example, max_tokens: int) -> tuple[int, int]:
    whole = sum(len(message.content) for message in example.messages)
    response = len(example.response) / CHARACTERS_PER_TOKEN
    num_tokens = round(min(whole / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS, max_tokens))
    num_prompt = whole / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS - response
    return num_tokens, max(round(num_tokens - num_prompt), 1)


def by_tokenizer(data: DataConfig, tokenizer: Any) -> TokenCounter:
    """Return a counter that counts tokens as a run does."""
    template = load_template(data)
    return partial(_count_by_tokenizer, template, tokenizer, data.max_tokens)


def _count_by_tokenizer(
    template: Any, tokenizer: Any, max_tokens: int, examples: Sequence[Example]
) -> Lengths:
    rows = tokenise(examples, template, tokenizer, max_tokens)
    return [
        (len(row.input_ids), row.num_response_tokens)
        for row in rows
        if not isinstance(row, RowError)
    ]


def pool(
    data: DataConfig,
    summary: Mapping[str, Any] | None,
    counter: TokenCounter,
    run: Location | None = None,
) -> Pool:
    """Return the size of the pool.

    Args:
        data: the section of the configuration.
        summary: of the prepared pool, whose counts are returned; None to estimate them.
        counter: counts the tokens of the first rows.
        run: the folder of the run, which is no input.

    Raises:
        DataError: there are no rows, or none of the first rows can be used.
    """
    if summary is not None and summary["tokens"]:
        responses = summary["tokens"] - summary["prompt_tokens"]
        amount = Amount(summary["kept"], summary["tokens"], responses)
        return Pool(amount, len(summary["strata"]), len(summary["rows_per_part"]), True)
    found, of_pool = pool_files(data, run).files, {"fields": data.fields.of_pool}
    files = _estimate_files(found, "data.train", data.model_copy(update=of_pool), counter)
    amount = sum((file.amount for file in files), Amount(0, 0, 0))
    parts = sum(math.ceil(file.amount.rows / data.rows_per_part) for file in files)
    if summary is None:
        strata = frozenset[str]().union(*(file.strata for file in files))
        return Pool(amount, len(strata), parts, False, all(file.whole for file in files))
    # A pool prepared for imported trajectories: its rows are counted, its tokens are not.
    return Pool(amount.scaled_to(summary["kept"]), len(summary["strata"]), parts, True)


def held_out(
    name: str,
    data: DataConfig,
    counter: TokenCounter,
    max_items: int | None,
    run: Location | None = None,
) -> Amount:
    """Return the size of one set of `data.eval`, up to `max_items` rows.

    Raises:
        DataError: there are no rows, or none of the first rows can be used.
    """
    found = held_out_files(data, name, run).files
    files = _estimate_files(found, f"data.eval.{name}", data, counter)
    amount = sum((file.amount for file in files), Amount(0, 0, 0))
    return amount if max_items is None else amount.scaled_to(min(amount.rows, max_items))


def imported(pattern: str, summary: Mapping[str, Any] | None) -> tuple[int, int]:
    """Return the number of rows and of checkpoints of imported trajectories.

    They come from the footers of the files, or from the summary of finished trajectories.

    Raises:
        DataError: a file is not Parquet or lacks a column, files differ in their number of
            checkpoints, or there are no rows.
    """
    from s2l_ray.trajectories import import_existing

    if summary is not None:
        return summary["rows"], len(summary["steps"])
    uris = [file.uri for file in input_files.expand([pattern], "trajectories.path")]
    counts = [(uri, *import_existing.footer_counts(uri)) for uri in uris]
    uri_of_length = {length: uri for uri, rows, length in counts if rows}
    if not uri_of_length:
        raise DataError(f"trajectories.path: no rows in {len(uris)} file(s) ({first(uris)}).")
    return sum(rows for _, rows, _ in counts), import_existing.common_length(uri_of_length)


@dataclass(frozen=True)
class _FileEstimate:
    """The size of a file, estimated from its first rows.

    Attributes:
        amount: usable rows and their tokens.
        strata: strata of the first rows.
        whole: whether the first rows are all rows.
    """

    amount: Amount
    strata: frozenset[str]
    whole: bool


def _estimate_files(
    files: Sequence[InputFile], key: str, data: DataConfig, counter: TokenCounter
) -> list[_FileEstimate]:
    """Return an estimate for every file that has usable rows among its first rows.

    Raises:
        DataError: there is no such file, or no row has a response.
    """
    estimates, refused = [], ""
    for file in files:
        first_rows, whole = _first_rows(file, max(READ_ROWS // len(files), LEAST_READ))
        if not first_rows:
            continue
        examples, problem = _usable(first_rows, data)
        if examples:
            num_rows = len(first_rows) if whole else _estimated_rows(file, first_rows)
            usable_share = len(examples) / len(first_rows)
            most = max(COUNTED_ROWS // len(files), LEAST_COUNTED)
            amount = _scaled_up(examples, num_rows, usable_share, most, counter)
            strata = frozenset(row.stratum for row in examples)
            estimates.append(_FileEstimate(amount, strata, whole))
        elif not refused:
            refused = f"{len(first_rows):,} rows of {file.uri} can be used (first: {problem})"
    if refused and not estimates:
        raise DataError(f"{key}: none of the first {refused}. Mend the data or data.fields.")
    if not any(file.amount.rows for file in estimates):
        uris = first([file.uri for file in files])
        raise DataError(f"{key}: there are no rows with a response in {uris}.")
    return estimates


def _first_rows(file: InputFile, most: int) -> tuple[list[SourceRow], bool]:
    """Return at most `most` rows, and whether these are all rows of the file."""
    rows = sources.read_rows(file)
    return list(itertools.islice(rows, most)), next(rows, None) is None


def _scaled_up(
    examples: Sequence[Example],
    num_rows: int,
    usable_share: float,
    most: int,
    counter: TokenCounter,
) -> Amount:
    """Return the amount of a file of `num_rows` rows, from tokens of about `most` examples."""
    spread = examples[:: math.ceil(len(examples) / most)]
    lengths = counter(spread)
    counted = Amount(len(lengths), sum(n for n, _ in lengths), sum(n for _, n in lengths))
    return counted.scaled_to(round(num_rows * (usable_share * len(lengths) / len(spread))))


def _estimated_rows(file: InputFile, sample: Sequence[SourceRow]) -> int:
    """Return the number of rows of a file, estimated from its size and its first rows."""
    fields = [row.fields for row in sample if row.fields is not None]
    return max(sources.estimated_rows(file, fields), len(sample))


def _usable(sample: Sequence[SourceRow], data: DataConfig) -> tuple[list[Example], str]:
    """Return the usable rows as examples, and the problem of the first unusable row."""
    examples, problem = [], ""
    for row in sample:
        try:
            if row.fields is None:
                problem = problem or f"row {row.row}: {row.reason}"
            else:
                examples.append(read_example(row.fields, data.fields))
        except RowError as error:
            problem = problem or f"row {row.row}: {error}"
    return examples, problem
