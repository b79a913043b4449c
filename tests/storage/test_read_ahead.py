"""Reading ahead changes neither order nor errors, and is bounded."""

import threading
from itertools import islice

import pytest

from s2l_ray.storage.read_ahead import AHEAD, read_ahead


@pytest.mark.parametrize("count", [0, 1, AHEAD, AHEAD + 1, 50])
def test_contents_come_in_order(count):
    assert list(read_ahead(str, range(count))) == [str(number) for number in range(count)]


def test_files_are_read_at_the_same_time():
    """Each of the first AHEAD waits for the others; alone, none would end."""
    together = threading.Barrier(AHEAD, timeout=60)

    def read(number):
        if number < AHEAD:
            together.wait()
        return number

    assert list(read_ahead(read, range(10))) == list(range(10))


def test_an_error_comes_in_its_turn():
    def read(number):
        if number == 3:
            raise OSError("gone")
        return number

    found = read_ahead(read, range(10))
    assert list(islice(found, 3)) == [0, 1, 2]
    with pytest.raises(OSError, match="gone"):
        next(found)


def test_no_more_is_read_than_is_asked_for_and_ahead():
    begun = []
    found = read_ahead(begun.append, range(1000))
    for _ in range(5):
        next(found)
    found.close()
    assert sorted(begun) == list(range(len(begun)))
    assert len(begun) <= 5 + AHEAD + 1
