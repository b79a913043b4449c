"""A small pool and its checkpoints, and what a scorer makes of them."""

import pytest

from tests.trajectories.scored import part_bytes, score_all, write_checkpoints, write_prepared


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    return write_checkpoints(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="session")
def expected(prepared, checkpoints, tmp_path_factory):
    """The part files of one scorer that is never interrupted."""
    folder = tmp_path_factory.mktemp("expected")
    score_all(prepared, checkpoints, folder)
    return part_bytes(folder)
