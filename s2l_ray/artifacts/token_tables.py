"""Tokenised rows in parquet: which of their tokens are responses, and how many those are.

A row has ranges of response tokens, half-open, ascending and disjoint. Loss is on these alone.
Runs of older versions have no ranges: there everything after the prompt is the response.

Shapes: N rows, S tokens of all rows together.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

STARTS, ENDS = "response_starts", "response_ends"
RANGES = (STARTS, ENDS)
"""Columns that files of older versions lack."""

Ranges = Sequence[tuple[int, int]]
"""The ranges of one row's response tokens."""


def token_table(
    example_ids: Sequence[str],
    strata: Sequence[str],
    input_ids: Sequence[Sequence[int]],
    response_ranges: Sequence[Ranges],
) -> pa.Table:
    """Return one part of tokenised rows.

    Its columns are example_id, stratum: string; input_ids, response_starts, response_ends:
    list<int32>; num_prompt_tokens (the first start), num_tokens: int32. A row without ranges was
    prepared without a tokenizer, and has no tokens either.
    """
    lists, number = pa.list_(pa.int32()), pa.int32()
    starts = [[start for start, _ in ranges] for ranges in response_ranges]
    ends = [[end for _, end in ranges] for ranges in response_ranges]
    return pa.table(
        {
            "example_id": pa.array(example_ids, pa.string()),
            "stratum": pa.array(strata, pa.string()),
            "input_ids": pa.array(input_ids, lists),
            STARTS: pa.array(starts, lists),
            ENDS: pa.array(ends, lists),
            "num_prompt_tokens": pa.array([row[0] if row else 0 for row in starts], number),
            "num_tokens": pa.array([len(ids) for ids in input_ids], number),
        }
    )


def flat_tokens(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the tokens of a table's rows, joined end to end, and which of them carry a loss.

    Nothing predicts a row's first token, so it carries none, even in a range.

    Returns:
        token_ids, int32 (S,); offset, int64 (N + 1,), where each row begins, and the end; and
        learned, bool (S,).
    """
    token_ids, offset = _flat(table["input_ids"])
    change = np.zeros(len(token_ids) + 1, np.int8)
    begin_N = offset[:-1]
    if STARTS in table.column_names:
        starts, start_offset = _flat(table[STARTS])
        ends, _ = _flat(table[ENDS])
        begin = np.repeat(begin_N, np.diff(start_offset))
        np.add.at(change, begin + starts, 1)
        np.add.at(change, begin + ends, -1)
    else:
        np.add.at(change, begin_N + table["num_prompt_tokens"].to_numpy(), 1)
        np.add.at(change, offset[1:], -1)
    learned = np.cumsum(change[:-1], dtype=np.int8) > 0
    learned[begin_N[begin_N < len(learned)]] = False
    return token_ids, offset, learned


def rows_of_tokens(table: pa.Table) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the `flat_tokens` row by row: N arrays of int32 and N of bool."""
    token_ids, offset, learned = flat_tokens(table)
    bounds = list(itertools.pairwise(offset.tolist()))
    return (
        [token_ids[start:end] for start, end in bounds],
        [learned[start:end] for start, end in bounds],
    )


def num_response_tokens(table: pa.Table) -> np.ndarray:
    """Return how many tokens of each row carry a loss, int64 (N,).

    Read are the ranges, or in files of older versions the numbers of tokens.
    """
    if STARTS not in table.column_names:
        num_prompt_N = table["num_prompt_tokens"].to_numpy().astype(np.int64)
        return np.maximum(table["num_tokens"].to_numpy() - np.maximum(num_prompt_N, 1), 0)
    starts, offset = _flat(table[STARTS])
    ends, _ = _flat(table[ENDS])
    total = np.concatenate([np.zeros(1, np.int64), np.cumsum(ends - np.maximum(starts, 1))])
    num_N: np.ndarray = np.diff(total[offset])
    return num_N


def _flat(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of a column of lists end to end, and where each list begins, and the end.

    The offsets count from 0, also in a slice of a table.
    """
    lists = column.combine_chunks()
    offset = lists.offsets.to_numpy().astype(np.int64)
    values = lists.values.to_numpy()[offset[0] : offset[-1]]
    return values, offset - offset[0]
