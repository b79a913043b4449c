"""The garbage collector, while libraries load."""

import gc

import pytest

from s2l_ray import collector


@pytest.fixture
def at_the_end():
    yield
    gc.enable()


@pytest.mark.parametrize("is_enabled", [True, False])
def test_it_rests_inside_a_block_and_is_afterwards_what_it_was(at_the_end, is_enabled):
    if not is_enabled:
        gc.disable()

    with pytest.raises(KeyError), collector.paused():
        assert not gc.isenabled()
        raise KeyError

    assert gc.isenabled() is is_enabled
