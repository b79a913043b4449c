"""A measurement is positive, short whatever the model, and leaves the threads as they were."""

import pytest
import torch

from s2l_ray.modelling.speed import matrix_flops_per_second


def speed(**changes) -> float:
    options = {
        "num_tokens": 64,
        "width": 16,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "num_threads": 1,
        "seconds": 0.01,
    }
    return matrix_flops_per_second(**options | changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_speed_is_above_zero(dtype):
    assert speed(dtype=dtype) > 0


def test_no_model_is_too_large_to_be_measured():
    # As they stand, the matrices of this one would take a terabyte.
    assert speed(num_tokens=10**6, width=2**18) > 0


def test_the_number_of_threads_is_what_it_was():
    before = torch.get_num_threads()
    speed(num_threads=before + 1)

    assert torch.get_num_threads() == before
