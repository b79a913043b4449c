"""A step on rows with several ranges. Oracle: the gradient of transformers' own loss, row by row,
with the label -100 outside the ranges."""

import numpy as np
import pytest
import torch

from s2l_ray.artifacts.tables import part_name
from s2l_ray.artifacts.token_tables import RANGES, token_table
from s2l_ray.models import rotations
from s2l_ray.models.rotations import Regimes
from s2l_ray.storage.location import Location
from s2l_ray.training import loop
from s2l_ray.training.batches import TokenRows, micro_batches
from s2l_ray.training.token_parts import TokenParts
from tests import tiny
from tests.models.test_response_ranges import chats, labels

CPU = torch.device("cpu")


def gradients(model):
    found = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    return found


def by_labels(model, input_ids, learned):
    """The mean loss over all response tokens of the rows, and its gradient, one row at a time."""
    total, count = torch.zeros(()), 0
    for ids, is_learned in zip(input_ids, learned, strict=True):
        rotations.forget_lengths(model)
        own = int(is_learned[1:].sum())
        tokens = torch.tensor(ids.astype(np.int64))[None]
        total = total + own * model(input_ids=tokens, labels=labels(ids, is_learned)[None]).loss
        count += own
    (total / count).backward()
    return total.item() / count, gradients(model)


def by_micro_batches(model, rows, num_ranks, size):
    total = 0.0
    shared = {"num_ranks": num_ranks, "size": size, "regimes": rotations.regimes(model.config)}
    for rank in range(num_ranks):
        for piece in micro_batches(rows, rank=rank, **shared):
            loss = loop.batch_loss(model, piece, device=CPU, autocast=False) / rows.num_response
            loss.backward()
            total += loss.item()
    return total, gradients(model)


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [3.0] * 4,
    "original_max_position_embeddings": 20,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_parameters": LONGROPE},
        {"rope_parameters": DYNAMIC, "max_position_embeddings": 20},
    ],
)
@pytest.mark.parametrize(("num_ranks", "size"), [(1, 4), (2, 3)])
def test_a_step_has_the_gradient_of_the_labels(changes, num_ranks, size):
    model = tiny.model("llama", **changes)
    input_ids, learned = chats()
    expected, expected_gradients = by_labels(model, input_ids, learned)

    found, found_gradients = by_micro_batches(
        model, TokenRows.of(input_ids, learned), num_ranks, size
    )

    assert found == pytest.approx(expected, rel=1e-5)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("old", [False, True])
def test_parts_are_read_with_their_ranges(tmp_path, old):
    folder = Location.of(tmp_path)
    table = token_table(["a", "b"], ["", ""], [[7, 8, 9, 6], [3, 4]], [[(0, 2), (3, 4)], [(1, 2)]])
    (folder / part_name(0)).write_table(table.drop_columns(list(RANGES)) if old else table)

    rows = TokenParts.of([folder / part_name(0)]).read(0)

    # Files of older versions say only where the first response begins.
    assert rows.learned.tolist() == [False, True, old, True, False, True]
    assert rows.take(np.array([1, 0])).learned.tolist() == [False, True, False, True, old, True]
    assert rows.num_response == 3 + old


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_rows_of_different_regimes_never_share_a_micro_batch(num_ranks):
    length_N = np.array([5, 21, 20, 33, 9, 33, 21, 40])
    rows = TokenRows.of(
        [np.full(length, length) for length in length_N], [np.ones(n, bool) for n in length_N]
    )
    for regimes, kinds in [(Regimes(20.0), 2), (Regimes(each_length_after=20.0), 4)]:
        shares = [
            micro_batches(rows, rank=rank, num_ranks=num_ranks, size=3, regimes=regimes)
            for rank in range(num_ranks)
        ]
        assert len({len(share) for share in shares}) == 1
        learned = [piece for share in shares for piece in share if piece.weight]
        together = [regimes.of(piece.input_ids_BL[:, 0].numpy()) for piece in learned]
        assert all(len(set(regime_B)) == 1 for regime_B in together)
        assert len(set(np.concatenate(together))) == kinds
        assert sum(len(piece.target_M) for piece in learned) == rows.num_response
