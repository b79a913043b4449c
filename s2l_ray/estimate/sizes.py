"""How much there is to compute on: rows and tokens of the pool, of held-out sets and of a subset.

What is finished is read off its manifest; the rest is estimated from the first rows of every file.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s2l_ray.config.sections import DataConfig
from s2l_ray.data import sources
from s2l_ray.data.examples import Example, RowError, read_example
from s2l_ray.data.sources import SourceRow
from s2l_ray.data.templates import load_template
from s2l_ray.data.tokenise import tokenise
from s2l_ray.errors import DataError, first
from s2l_ray.storage import input_files
from s2l_ray.storage.input_files import InputFile

READ_ROWS, LEAST_READ = 20_000, 1_000
"""First rows that are read: of all files together, and of each file at least."""
COUNTED_ROWS, LEAST_COUNTED = 2_000, 20
"""Rows whose tokens are counted, spread evenly over those."""
CHARACTERS_PER_TOKEN = 4.0
TEMPLATE_TOKENS = 30
"""What a template adds to a row, where no tokenizer is there to count it."""

Lengths = list[tuple[int, int]]
"""Tokens of a row, and how many of them are the response's, for every row that has any of those."""
TokenCounter = Callable[[Sequence[Example]], Lengths]


@dataclass(frozen=True)
class Amount:
    """Rows, their tokens, and how many of these are responses."""

    rows: int
    tokens: int
    responses: int

    @property
    def row_tokens(self) -> float:
        return self.tokens / max(self.rows, 1)

    @property
    def prompt_tokens(self) -> float:
        """Of an average row."""
        return (self.tokens - self.responses) / max(self.rows, 1)

    def scaled_to(self, rows: int) -> "Amount":
        """As many average rows."""
        share = rows / max(self.rows, 1)
        return Amount(rows, round(self.tokens * share), round(self.responses * share))

    def with_responses_of(self, limit: int | None) -> "Amount":
        """As many rows, their responses on average no longer than `limit` tokens."""
        cut = 0 if limit is None else max(self.responses - self.rows * limit, 0)
        return Amount(self.rows, self.tokens - cut, self.responses - cut)

    def __add__(self, other: "Amount") -> "Amount":
        tokens, responses = self.tokens + other.tokens, self.responses + other.responses
        return Amount(self.rows + other.rows, tokens, responses)


@dataclass(frozen=True)
class Pool:
    """The pool that is trained on and scored."""

    amount: Amount
    strata: int
    parts: int
    counted: bool
    """Whether it is prepared; else rows and tokens are estimated."""
    whole: bool = True
    """Whether every row was looked at; else there may be more strata than were met."""


def by_characters(data: DataConfig) -> TokenCounter:
    """Counts tokens without a tokenizer."""

    def count(examples: Sequence[Example]) -> Lengths:
        return [_lengths_of_text(example, data.max_tokens) for example in examples]

    return count


def _lengths_of_text(example: Example, max_tokens: int) -> tuple[int, int]:
    whole = sum(len(message.text) for message in example.messages)
    response = len(example.response) / CHARACTERS_PER_TOKEN
    num_tokens = round(min(whole / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS, max_tokens))
    num_prompt = whole / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS - response
    return num_tokens, max(round(num_tokens - num_prompt), 1)


def by_tokenizer(data: DataConfig, tokenizer: Any) -> TokenCounter:
    """Counts tokens as a run does."""
    template = load_template(data.template)

    def count(examples: Sequence[Example]) -> Lengths:
        found = tokenise(examples, template, tokenizer, data.max_tokens)
        return [
            (len(row.input_ids), len(row.input_ids) - max(row.num_prompt_tokens, 1))
            for row in found
            if not isinstance(row, RowError)
        ]

    return count


def pool(data: DataConfig, summary: Mapping[str, Any] | None, counter: TokenCounter) -> Pool:
    """The pool: counted where it is prepared, and `summary` says so; else estimated.

    Raises:
        DataError: there are no rows, or none of a file's first rows can be used.
    """
    if summary is not None and summary["tokens"]:
        responses = summary["tokens"] - summary["prompt_tokens"]
        amount = Amount(summary["kept"], summary["tokens"], responses)
        return Pool(amount, len(summary["strata"]), len(summary["rows_per_part"]), True)
    files = _sampled(data.train, "data.train", data, counter)
    amount = sum((file.amount for file in files), Amount(0, 0, 0))
    parts = sum(math.ceil(file.amount.rows / data.rows_per_part) for file in files)
    if summary is None:
        strata = frozenset[str]().union(*(file.strata for file in files))
        return Pool(amount, len(strata), parts, False, all(file.whole for file in files))
    # Prepared for trajectories from elsewhere: its rows are counted, and it has no tokens.
    return Pool(amount.scaled_to(summary["kept"]), len(summary["strata"]), parts, True)


def held_out(name: str, data: DataConfig, counter: TokenCounter, max_items: int | None) -> Amount:
    """One set of `data.eval`, as much of it as is evaluated.

    Raises:
        DataError: as for `pool`.
    """
    files = _sampled([data.eval[name]], f"data.eval.{name}", data, counter)
    amount = sum((file.amount for file in files), Amount(0, 0, 0))
    return amount if max_items is None else amount.scaled_to(min(amount.rows, max_items))


def brought(pattern: str, summary: Mapping[str, Any] | None) -> tuple[int, int]:
    """Rows and checkpoints of existing trajectories, from the footers of their files.

    Raises:
        DataError: a file is no parquet, has no such columns, or another number of checkpoints than
            the others; or there are no rows.
    """
    from s2l_ray.trajectories import import_existing

    if summary is not None:
        return summary["rows"], len(summary["steps"])
    uris = [file.uri for file in input_files.expand([pattern], "trajectories.path")]
    found = [(uri, *import_existing.footer_counts(uri)) for uri in uris]
    uri_of_length = {length: uri for uri, rows, length in found if rows}
    if not uri_of_length:
        raise DataError(f"trajectories.path: no rows in {len(uris)} file(s) ({first(uris)}).")
    return sum(rows for _, rows, _ in found), import_existing.common_length(uri_of_length)


@dataclass(frozen=True)
class _Sampled:
    """What the first rows of a file say of all of it."""

    amount: Amount
    strata: frozenset[str]
    whole: bool
    """Whether those are all rows."""


def _sampled(
    patterns: Sequence[str], key: str, data: DataConfig, counter: TokenCounter
) -> list[_Sampled]:
    """One entry for every file in whose first rows there are some that can be used.

    Raises:
        DataError: there is none, or no row has a response.
    """
    files = input_files.expand(patterns, key)
    most_read = max(READ_ROWS // len(files), LEAST_READ)
    most_counted = max(COUNTED_ROWS // len(files), LEAST_COUNTED)
    found, refused = [], ""
    for file in files:
        rows = sources.read_rows(file)
        sample = list(itertools.islice(rows, most_read))
        if not sample:
            continue
        whole = next(rows, None) is None
        examples, problem = _usable(sample, data)
        if not examples:
            refused = (
                refused or f"{len(sample):,} rows of {file.uri} can be used (first: {problem})"
            )
            continue
        spread = examples[:: math.ceil(len(examples) / most_counted)]
        lengths = counter(spread)
        num_rows = len(sample) if whole else _estimated_rows(file, sample)
        usable = len(examples) / len(sample) * len(lengths) / len(spread)
        counted = Amount(len(lengths), sum(n for n, _ in lengths), sum(n for _, n in lengths))
        amount = counted.scaled_to(round(num_rows * usable))
        found.append(_Sampled(amount, frozenset(row.stratum for row in examples), whole))
    if refused and not found:
        raise DataError(f"{key}: none of the first {refused}. Correct the data or data.fields.")
    if not any(part.amount.rows for part in found):
        uris = first([file.uri for file in files])
        raise DataError(f"{key}: there are no rows with a response in {uris}.")
    return found


def _estimated_rows(file: InputFile, sample: Sequence[SourceRow]) -> int:
    fields = [row.fields for row in sample if row.fields is not None]
    return max(sources.estimated_rows(file, fields), len(sample))


def _usable(sample: Sequence[SourceRow], data: DataConfig) -> tuple[list[Example], str]:
    """The rows that can be used, and what is wrong with the first one that cannot."""
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
