"""Global batches and a rank's share of them.

Oracles: sets of row numbers, counted in plain Python.
"""

import itertools

import numpy as np
import pytest
import torch

from s2l_ray.models.scoring import after_prompts
from s2l_ray.training import batches
from s2l_ray.training.batches import TokenRows


class NumberedParts:
    """Parts in which row i of the pool is the tokens [i, i, ...], so that it can be recognised."""

    def __init__(self, num_rows):
        self.num_rows = num_rows
        self.starts = np.cumsum([0, *num_rows])
        self.were_read = []

    def read(self, part):
        self.were_read.append(part)
        numbers = range(self.starts[part], self.starts[part + 1])
        ids = [np.full(2 + number % 5, number, np.int32) for number in numbers]
        return TokenRows.of(ids, after_prompts(ids, [1] * len(ids)))


def first_batches(parts, count, **options):
    options = {"batch_size": 4, "seed": 7, "rows_per_window": 6} | options
    stream = batches.global_batches(parts, **options)
    return [numbers(next(stream)) for _ in range(count)]


def numbers(rows):
    return [int(rows.row(i)[0]) for i in range(len(rows))]


@pytest.mark.parametrize("num_rows", [[5, 3, 6, 4, 1], [19], [1] * 19, [4, 0, 15]])
def test_an_epoch_holds_every_row_once_and_only_its_last_batch_is_smaller(num_rows):
    epoch = first_batches(NumberedParts(num_rows), 5)

    assert [len(batch) for batch in epoch] == [4, 4, 4, 4, 3]
    assert sorted(itertools.chain(*epoch)) == list(range(19))


def test_epochs_and_seeds_give_different_orders():
    parts = NumberedParts([10, 10])
    ten = first_batches(parts, 10)

    assert ten[:5] != ten[5:]
    assert first_batches(parts, 5, seed=8) != ten[:5]
    assert first_batches(parts, 10) == ten


@pytest.mark.parametrize("start", range(11))
def test_training_can_start_at_any_batch(start):
    parts = NumberedParts([5, 3, 6, 4, 1])
    assert first_batches(parts, 11 - start, start=start) == first_batches(parts, 11)[start:]


def test_parts_of_batches_before_the_start_are_not_read():
    parts = NumberedParts([6] * 10)
    first_batches(parts, 1, start=14)
    assert len(parts.were_read) == 1


def test_only_one_window_of_rows_is_in_memory():
    parts = NumberedParts([3] * 20)
    first_batches(parts, 1)
    assert len(parts.were_read) == 2


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_ranks_share_a_batch_in_equally_many_pieces(num_ranks, size):
    rows = NumberedParts([7]).read(0)
    shares = [
        batches.micro_batches(rows, rank=rank, num_ranks=num_ranks, size=size)
        for rank in range(num_ranks)
    ]

    learned = [piece for share in shares for piece in share if piece.weight]
    assert len({len(share) for share in shares}) == 1
    assert sorted(row[0].item() for p in learned for row in p.input_ids_BL) == list(range(7))
    assert max(len(piece.input_ids_BL) for piece in learned) <= size
    assert sum(len(piece.target_M) for piece in learned) == rows.num_response


def test_ranks_get_rows_of_like_lengths():
    length_N = np.array([9, 2, 8, 3, 7, 2, 9, 3])
    ids = [np.arange(length) for length in length_N]
    rows = TokenRows.of(ids, after_prompts(ids, [1] * 8))
    shares = [batches.micro_batches(rows, rank=r, num_ranks=2, size=2) for r in range(2)]

    widths = [[piece.input_ids_BL.shape[1] for piece in share] for share in shares]
    assert widths == [[2, 8], [2, 8]]


def test_targets_are_the_response_tokens_after_the_marked_positions():
    ids = [np.array([1, 2, 3, 4]), np.array([5, 6, 7])]
    rows = TokenRows.of(ids, after_prompts(ids, [2, 0]))
    (piece,) = batches.micro_batches(rows, rank=0, num_ranks=1, size=2)

    # The shorter row comes first. Nothing predicts its first token, although it has no prompt.
    assert piece.input_ids_BL.tolist() == [[5, 6, 7], [1, 2, 3]]
    assert piece.mask_BL.tolist() == [[True, True, False], [False, True, True]]
    assert piece.target_M.tolist() == [6, 7, 3, 4]
    assert piece.input_ids_BL.dtype == torch.int64
