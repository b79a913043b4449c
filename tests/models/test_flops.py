"""Expected values worked out by hand; tests/models/test_local_models.py has torch's own count."""

import pytest

from s2l_ray.models import flops

SHAPE = flops.Shape(body=1_000, output=200, attention=10, width=8)


def test_a_forward_pass_is_two_operations_for_every_weight_and_four_for_every_pair_of_tokens():
    # 2 x 1,000 x 100, 2 x 200 x 40 and 4 x 10 x 20 x 100.
    assert flops.forward(SHAPE, tokens=100, logits=40, context=20) == 200_000 + 16_000 + 80_000


def test_rows_in_two_calls_cost_what_they_cost_in_one():
    halves = [flops.forward(SHAPE, tokens=50, logits=n, context=20) for n in (10, 30)]

    assert sum(halves) == flops.forward(SHAPE, tokens=100, logits=40, context=20)


@pytest.mark.parametrize(
    ("recomputed", "frozen", "expected"),
    [(False, False, 3), (True, False, 4), (False, True, 2), (True, True, 3)],
)
def test_training_is_three_passes_one_more_to_recompute_and_one_less_for_adapters(
    recomputed, frozen, expected
):
    assert flops.training_passes(recomputed=recomputed, frozen=frozen) == expected
