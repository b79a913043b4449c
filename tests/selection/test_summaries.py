"""One number for each trajectory, against the formula written out example by example."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st

from s2l_ray.selection import summaries

EXPECTED = {
    "last_loss": lambda losses: losses[-1],
    "loss_drop": lambda losses: losses[0] - losses[-1],
    "variation": lambda losses: math.fsum(
        abs(losses[t + 1] - losses[t]) for t in range(len(losses) - 1)
    ),
    "confidence": lambda losses: math.fsum(math.exp(-loss) for loss in losses) / len(losses),
    "variability": lambda losses: statistics.pstdev(math.exp(-loss) for loss in losses),
    "loss_slope": lambda losses: (
        statistics.linear_regression(range(len(losses)), losses).slope if len(losses) > 1 else 0.0
    ),
}
TRAJECTORIES = np_st.arrays(
    np.float32,
    st.tuples(st.integers(0, 6), st.integers(1, 9)),
    elements=st.floats(0, 20, width=32),
)


@pytest.mark.parametrize("name", summaries.SUMMARIES)
@settings(max_examples=100, deadline=None)
@given(loss_NT=TRAJECTORIES)
def test_a_summary_is_its_formula_in_float32(name, loss_NT):
    found_N = summaries.SUMMARIES[name](loss_NT)

    assert found_N.dtype == np.float32 and found_N.shape == (len(loss_NT),)
    expected = [EXPECTED[name](losses) for losses in loss_NT.tolist()]
    np.testing.assert_allclose(found_N, np.array(expected, np.float32), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", summaries.SUMMARIES)
@pytest.mark.parametrize("num_parts", [2, 7, 53])
def test_a_summary_does_not_depend_on_what_else_is_in_a_part(name, num_parts):
    loss_NT = np.random.default_rng(1).gamma(2.0, size=(53, 12)).astype(np.float32)
    summary = summaries.SUMMARIES[name]
    parts = [summary(part) for part in np.array_split(loss_NT, num_parts)]
    np.testing.assert_array_equal(np.concatenate(parts), summary(loss_NT))
