"""Rows and tokens of the pool and of held-out sets.

The pool is counted if it is prepared. Otherwise it is estimated from the first rows of every file.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from s2l_ray.artifacts.amounts import Amount, Pool
from s2l_ray.config.data import DataConfig
from s2l_ray.data import pool_checks, sources
from s2l_ray.data.cleaning import held_out_files
from s2l_ray.data.declaration import pool_files
from s2l_ray.data.examples import Example, RowError
from s2l_ray.data.first_rows import FirstRows, Survey, rejected_line
from s2l_ray.data.row_errors import place_of
from s2l_ray.data.templates import load_template
from s2l_ray.data.tokenise import tokenise
from s2l_ray.errors import DataError, first
from s2l_ray.storage import input_files
from s2l_ray.storage.input_files import InputFile
from s2l_ray.storage.location import Location

COUNTED_ROWS, LEAST_COUNTED = 2_000, 20
"""Number of the first rows whose tokens are counted, spread evenly: of all files, and of each."""
CHARACTERS_PER_TOKEN = 4.0
"""Characters of a token, if there is no tokenizer to count tokens."""
TEMPLATE_TOKENS = 30
"""Tokens that a template adds to a row, if there is no tokenizer to count them."""

Lengths = list[tuple[int, int, bool] | RowError]
"""For every row: number of all its tokens, of its response tokens and whether its response is cut,
or why it has none."""
TokenCounter = Callable[[Sequence[Example]], Lengths]
"""A function that counts the tokens of examples."""


def by_characters(data: DataConfig) -> TokenCounter:
    """Return a counter that estimates tokens from characters, without a tokenizer."""
    return partial(_count_by_characters, data)


def _count_by_characters(data: DataConfig, examples: Sequence[Example]) -> Lengths:
    return [_lengths_of_text(example, data) for example in examples]


def _lengths_of_text(example: Example, data: DataConfig) -> tuple[int, int, bool]:
    length = [len(message.content) / CHARACTERS_PER_TOKEN for message in example.messages]
    turns = [i for i, message in enumerate(example.messages) if message.learned]
    turns = turns or [len(length) - 1]
    turns = turns[-1:] if data.turns == "last" else turns
    first, last = turns[0], turns[-1]
    # What follows the last answer is left out.
    num_whole = sum(length[: last + 1]) + TEMPLATE_TOKENS
    num_tokens = round(min(num_whole, data.max_tokens))
    # Of what remains from the first answer on, answers have the share that they have of the whole.
    num_from_first = num_tokens - (sum(length[:first]) + TEMPLATE_TOKENS)
    share = sum(length[i] for i in turns) / max(sum(length[first : last + 1]), 1)
    return num_tokens, max(round(num_from_first * share), 1), num_whole > data.max_tokens


def by_tokenizer(data: DataConfig, tokenizer: Any) -> TokenCounter:
    """Return a counter that counts tokens as a run does."""
    template = load_template(data)
    return partial(_count_by_tokenizer, template, tokenizer, data.max_tokens)


def _count_by_tokenizer(
    template: Any, tokenizer: Any, max_tokens: int, examples: Sequence[Example]
) -> Lengths:
    rows = tokenise(examples, template, tokenizer, max_tokens)
    return [
        row
        if isinstance(row, RowError)
        else (len(row.input_ids), row.num_response_tokens, row.is_cut)
        for row in rows
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
        DataError: there are no rows, or too many of the first rows cannot be used.
    """
    if summary is not None and summary["tokens"]:
        responses = summary["tokens"] - summary["prompt_tokens"]
        # Older versions did not count the rows that they cut.
        amount = Amount(summary["kept"], summary["tokens"], responses, summary.get("cut", 0))
        num_parts = len(summary["rows_per_part"])
        rejected = rejected_line(summary.get("rejected", {}), summary.get("rows", summary["kept"]))
        return Pool(amount, len(summary["strata"]), num_parts, True, rejected=rejected)
    survey = Survey("data.train", data.of_pool)
    files = _estimate_files(pool_files(data, run).files, survey, counter)
    survey.check_pool()
    amount = sum((file.amount for file in files), Amount(0, 0, 0))
    parts = sum(math.ceil(file.amount.rows / data.rows_per_part) for file in files)
    if summary is None:
        strata = sum((file.strata for file in files), Counter[str]())
        exact = survey.whole and all(file.exact for file in files)
        if survey.whole:
            name = data.fields.stratum
            pool_checks.check_strata(len(strata), amount.rows, name, survey.key)
        sizes_of_strata = dict(strata) if exact else None
        return Pool(amount, len(strata), parts, False, survey.whole, survey.line(), sizes_of_strata)
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
        DataError: there are no rows, or too many of the first rows cannot be used.
    """
    survey = Survey(f"data.eval.{name}", data.of_set(name))
    files = _estimate_files(held_out_files(data, name, run).files, survey, counter)
    survey.check_usable()
    amount = sum((file.amount for file in files), Amount(0, 0, 0))
    return amount if max_items is None else amount.scaled_to(min(amount.rows, max_items))


def imported(pattern: str, summary: Mapping[str, Any] | None) -> tuple[int, int]:
    """Return the number of rows and of checkpoints of imported trajectories.

    They come from the footers of the files, or from the summary of finished trajectories.

    Raises:
        DataError: a file is not Parquet or lacks a column, files differ in their number of
            checkpoints, or there are no rows.
    """
    from s2l_ray.trajectories import footers, import_existing

    if summary is not None:
        return summary["rows"], len(summary["steps"])
    files = input_files.expand([pattern], "trajectories.path")
    found, uris = footers.read(files), [file.uri for file in files]
    uri_of_length = {
        footer.checkpoints: uri for footer, uri in zip(found, uris, strict=True) if footer.rows
    }
    if not uri_of_length:
        raise DataError(f"trajectories.path: no rows in {len(uris)} file(s) ({first(uris)}).")
    return sum(footer.rows for footer in found), import_existing.common_length(uri_of_length)


@dataclass(frozen=True)
class _FileEstimate:
    """The size of a file, estimated from its first rows.

    Attributes:
        amount: usable rows and their tokens.
        strata: rows of each stratum among the first rows.
        exact: whether all rows of the file were read, and the tokens of all counted.
    """

    amount: Amount
    strata: Counter[str]
    exact: bool


def _estimate_files(
    files: Sequence[InputFile], survey: Survey, counter: TokenCounter
) -> list[_FileEstimate]:
    """Return an estimate for every file that has usable rows among its first rows.

    Rows that cannot be used are counted by `survey`.

    Raises:
        DataError: a file cannot be read.
    """
    estimates = []
    for found in survey.read(files):
        if found.examples:
            most = max(COUNTED_ROWS // len(files), LEAST_COUNTED)
            estimates.append(_estimate(found, most, counter, survey))
    return estimates


def _estimate(found: FirstRows, most: int, counter: TokenCounter, survey: Survey) -> _FileEstimate:
    """Return the size of a file, from tokens of about `most` of its first examples."""
    step = math.ceil(len(found.examples) / most)
    spread = found.examples[::step]
    counts = counter(spread)
    lengths = [length for length in counts if not isinstance(length, RowError)]
    reasons, first_row = Counter[str](), dict[str, str]()
    for number, error in zip(found.numbers[::step], counts, strict=True):
        if isinstance(error, RowError):
            reasons[error.reason] += 1
            first_row.setdefault(
                error.reason, f"{place_of(found.file.uri, number)}: {error.detail}"
            )
    for reason, count in reasons.items():
        share = len(found.examples) / len(spread)
        survey.reject(reason, first_row[reason], round(count * share))
    counted = Amount(len(lengths), *(sum(row[i] for row in lengths) for i in range(3)))
    usable_share = len(found.examples) / len(found.rows) * len(lengths) / len(spread)
    num_rows = len(found.rows) if found.whole else _estimated_rows(found)
    usable = zip(spread, counts, strict=True)
    return _FileEstimate(
        counted.scaled_to(round(num_rows * usable_share)),
        Counter(row.stratum for row, length in usable if not isinstance(length, RowError))
        if len(spread) == len(found.examples)
        else Counter(row.stratum for row in found.examples),
        found.whole and len(spread) == len(found.examples),
    )


def _estimated_rows(found: FirstRows) -> int:
    """Return the number of rows of a file, estimated from its size and its first rows."""
    fields = [row.fields for row in found.rows if row.fields is not None]
    return max(sources.estimated_rows(found.file, fields), len(found.rows))
