"""What a machine has run out of is named, whoever raised it and however deep it lies."""

import pytest
import ray.exceptions

from s2l_ray.distributed import failures
from s2l_ray.errors import DataError

RAISED = {
    "Ray's object store": ray.exceptions.ObjectStoreFullError("4 MB of 80 MB"),
    "Ray's temporary folder": ray.exceptions.OutOfDiskError("the disk is over 95% full"),
    "the memory of a machine": ray.exceptions.OutOfMemoryError("killed by the memory monitor"),
    "the memory of a machine or GPU": MemoryError(),
}


@pytest.mark.parametrize("what", RAISED)
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_has_run_out_is_named_with_its_remedy(what, wrapped):
    with (
        pytest.raises(DataError, match=rf"^{what}.*\. .* goes on from here\.$"),
        failures.ran_out_explained(),
    ):
        if not wrapped:
            raise RAISED[what]
        raise ray.exceptions.RayTaskError("work", "its traceback", RAISED[what])


def test_a_process_that_died_is_no_bug_of_the_program():
    with (
        pytest.raises(DataError, match="a process of Ray died, most likely for want of memory"),
        failures.ran_out_explained(),
    ):
        raise ray.exceptions.ActorDiedError(None)
    in_its_constructor = ray.exceptions.ActorDiedError(
        ray.exceptions.RayTaskError("work", "its traceback", KeyError("a bug"))
    )
    with pytest.raises(ray.exceptions.ActorDiedError), failures.ran_out_explained():
        raise in_its_constructor


class OddError(Exception):
    cause = "what a library calls a cause is no error"


def test_other_errors_stay_what_they_are():
    with pytest.raises(KeyError), failures.ran_out_explained():
        raise KeyError("a bug")
    with pytest.raises(OddError), failures.ran_out_explained():
        raise OddError
    with pytest.raises(DataError, match=r"^e7 is not finite$"), failures.ran_out_explained():
        raise DataError("e7 is not finite")
