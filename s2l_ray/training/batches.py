"""Global batches of rows, and the share of each that a rank takes.

The rows of every global batch follow from the parts, the batch size and the seed alone, never from
the number of workers.

Shapes: N rows, B rows of a micro-batch, L tokens of its longest row, M response positions.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from s2l_ray.config.training import Training
from s2l_ray.models.rotations import ANY_LENGTH, Regimes
from s2l_ray.training.schedule import steps_per_epoch

ROWS_PER_WINDOW = 65_536
"""Rows that are shuffled together, and in memory at once; about, because parts stay whole."""


@dataclass(frozen=True)
class TokenRows:
    """N tokenised examples, joined end to end.

    Attributes:
        token_ids: int32, the tokens of all rows, one row after the other.
        offset: int64 (N + 1,), the position in `token_ids` at which each row begins, and the end.
        learned: bool, which tokens carry a loss; never the first of a row, which nothing predicts.
    """

    token_ids: np.ndarray
    offset: np.ndarray
    learned: np.ndarray

    def __len__(self) -> int:
        return len(self.offset) - 1

    @property
    def num_tokens_N(self) -> np.ndarray:
        return np.diff(self.offset)

    @property
    def num_response(self) -> int:
        """Return the number of tokens with a loss."""
        return int(self.learned.sum())

    def row(self, index: int) -> np.ndarray:
        return self.token_ids[self.offset[index] : self.offset[index + 1]]

    def take(self, index_N: np.ndarray) -> "TokenRows":
        bounds = [slice(self.offset[i], self.offset[i + 1]) for i in index_N]
        return TokenRows.of([self.token_ids[b] for b in bounds], [self.learned[b] for b in bounds])

    @classmethod
    def of(cls, token_ids: Sequence[np.ndarray], learned: Sequence[np.ndarray]) -> "TokenRows":
        """Return rows given one by one: their tokens, and which of them are response tokens."""
        offset = np.cumsum([0, *(len(ids) for ids in token_ids)], dtype=np.int64)
        joined = np.concatenate([np.empty(0, np.int32), *token_ids])
        is_learned = np.concatenate([np.empty(0, bool), *learned])
        is_learned[offset[:-1]] = False
        return cls(joined.astype(np.int32), offset, is_learned)

    @classmethod
    def joined(cls, parts: Sequence["TokenRows"]) -> "TokenRows":
        """Return all rows of `parts`, in order."""
        lengths = np.concatenate([np.empty(0, np.int64), *(part.num_tokens_N for part in parts)])
        return cls(
            np.concatenate([np.empty(0, np.int32), *(part.token_ids for part in parts)]),
            np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
            np.concatenate([np.empty(0, bool), *(part.learned for part in parts)]),
        )


class PartReader(Protocol):
    """A pool that is read part by part."""

    @property
    def num_rows(self) -> Sequence[int]:
        """Return the number of rows of every part."""

    def read(self, part: int) -> TokenRows: ...


@dataclass(frozen=True)
class TrainingPlan:
    """The part of a training that is the same on every rank: rows, settings, seed and steps."""

    parts: PartReader
    config: Training
    seed: int
    total_steps: int


def global_batches(
    parts: PartReader,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    rows_per_window: int = ROWS_PER_WINDOW,
) -> Iterator[TokenRows]:
    """Yield global batches without end, from batch number `start` on.

    Every epoch holds each row once. Its parts are permuted and gathered into windows of about
    `rows_per_window` rows, and the rows of a window are shuffled. Only one window is in memory;
    windows before `start` are not read. The last batch of an epoch may be smaller.
    """
    epoch, skipped = divmod(start, steps_per_epoch(sum(parts.num_rows), batch_size))
    for number in itertools.count(epoch):
        windows = _windows(parts, seed, number, skipped * batch_size, rows_per_window)
        yield from _batches(windows, batch_size)
        skipped = 0


def _windows(
    parts: PartReader, seed: int, epoch: int, skipped: int, rows_per_window: int
) -> Iterator[tuple[TokenRows, np.ndarray]]:
    """Yield each window's rows and their order, without the first `skipped` rows of the epoch."""
    order = _random(seed, epoch, 0).permutation(len(parts.num_rows))
    for number, window in enumerate(_groups(order, parts.num_rows, rows_per_window), 1):
        size = sum(parts.num_rows[part] for part in window)
        if skipped >= size:
            skipped -= size
            continue
        order_N = _random(seed, epoch, number).permutation(size)[skipped:]
        skipped = 0
        yield TokenRows.joined([parts.read(part) for part in window]), order_N


def _groups(order: np.ndarray, num_rows: Sequence[int], at_least: int) -> Iterator[list[int]]:
    group: list[int] = []
    for part in order.tolist():
        group.append(part)
        if sum(num_rows[member] for member in group) >= at_least:
            yield group
            group = []
    if group:
        yield group


def _batches(
    windows: Iterator[tuple[TokenRows, np.ndarray]], batch_size: int
) -> Iterator[TokenRows]:
    carried = TokenRows.joined([])
    for rows, order_N in windows:
        while len(carried) + len(order_N) >= batch_size:
            cut = batch_size - len(carried)
            yield TokenRows.joined([carried, rows.take(order_N[:cut])])
            carried, order_N = TokenRows.joined([]), order_N[cut:]
        carried = TokenRows.joined([carried, rows.take(order_N)])
    if len(carried):
        yield carried


def _random(seed: int, epoch: int, window: int) -> np.random.Generator:
    # The length leads: trailing zeros alone would not change the generator.
    return np.random.default_rng([3, seed, epoch, window])


@dataclass(frozen=True)
class MicroBatch:
    """The input of one forward pass; `mask_BL` marks positions whose *next* token is learned."""

    input_ids_BL: torch.Tensor
    mask_BL: torch.Tensor
    target_M: torch.Tensor
    weight: float
    """Factor of the loss; 0 for a stand-in, with which a rank keeps step and learns nothing."""


def micro_batches(
    rows: TokenRows, *, rank: int, num_ranks: int, size: int, regimes: Regimes = ANY_LENGTH
) -> list[MicroBatch]:
    """Return this rank's share of a global batch, in as many pieces as every other rank's.

    Rows are sorted by length and dealt out to the ranks in turn. So padding is small, and no rank
    has all the long rows while the others wait. A rank with too few rows gets stand-ins. Rows of
    different `regimes` are dealt out one regime after the other, and never share a piece.
    """
    order_N = np.argsort(rows.num_tokens_N, kind="stable")
    regime_N = regimes.of(rows.num_tokens_N)[order_N]
    whole = regimes.depend_on_length
    shortest = rows.take(order_N[:1])
    pieces = []
    for group in np.split(order_N, np.flatnonzero(np.diff(regime_N)) + 1):
        share, count = group[rank::num_ranks], math.ceil(math.ceil(len(group) / num_ranks) / size)
        pieces += [
            _padded(rows.take(index_B), 1.0, whole=whole)
            if len(index_B)
            else _padded(shortest, 0.0, whole=whole)
            for index_B in np.array_split(share, count)
        ]
    return pieces


def _padded(rows: TokenRows, weight: float, *, whole: bool) -> MicroBatch:
    """Return rows as one input; tokens after the last one with a loss are read only if `whole`."""
    length_B = rows.num_tokens_N
    ids_BL = np.zeros((len(rows), length_B.max() + 1), np.int64)
    learned_BL = np.zeros(ids_BL.shape, bool)
    is_token_BL = np.arange(ids_BL.shape[1]) < length_B[:, None]
    ids_BL[is_token_BL], learned_BL[is_token_BL] = rows.token_ids, rows.learned
    # The last token with a loss is predicted, and need not be read.
    num_read = length_B.max() if whole else np.flatnonzero(learned_BL.any(axis=0))[-1]
    mask_BL = np.ascontiguousarray(learned_BL[:, 1 : num_read + 1])
    read_BL = np.ascontiguousarray(ids_BL[:, :num_read])
    target_M = ids_BL[:, 1 : num_read + 1][mask_BL]
    return MicroBatch(
        torch.from_numpy(read_BL), torch.from_numpy(mask_BL), torch.from_numpy(target_M), weight
    )
