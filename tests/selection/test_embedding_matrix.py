"""Vectors of the pool: joined by id, refused where they are missing, ranked as maths says."""

import numpy as np
import pyarrow as pa
import pytest

from s2l_ray import hashing
from s2l_ray.artifacts.manifest import EMBEDDINGS
from s2l_ray.artifacts.tables import Parts, embedding_table, part_name
from s2l_ray.errors import DataError
from s2l_ray.selection import embedding_matrix
from s2l_ray.selection.columns import Sources
from s2l_ray.storage.location import Location
from tests.pool_of_sixty import (
    ASKED,
    EMBEDDED,
    IDS,
    NUM_ROWS,
    STRATA,
    in_order,
    order_of,
    ranking,
    selected,
    write_clusters,
    write_trajectories,
)
from tests.selection.test_facility_location import cosines_by_definition, greedy_by_definition
from tests.selection.test_rds import taken_by_turns

KEYS = hashing.example_keys(IDS)


@pytest.fixture
def folder(tmp_path):
    return Location.of(tmp_path)


def read(parts, folder, key_N=KEYS):
    sources = Sources(write_clusters(folder / "clusters", in_order(4)), parts)
    with embedding_matrix.read(["embeddings"], key_N, sources) as found:
        return np.array(found["embeddings"])


def test_embeddings_are_in_the_order_of_the_pool_wherever_they_lie(folder):
    shuffled = np.array_split(np.random.default_rng(2).permutation(NUM_ROWS), 3)
    for name, parts in (("one", in_order(4)), ("two", [shuffled[0], *shuffled[1:]])):
        found = read(write_trajectories(folder / name, parts), folder)
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, EMBEDDED)


def test_embeddings_of_extensions_follow_and_others_are_left_out(folder):
    losses = write_trajectories(folder / "run", [range(40)])
    more = write_trajectories(folder / "more", [range(40, 60)])
    both = Parts(losses.folder, more=(more.folder,))
    np.testing.assert_array_equal(read(both, folder), EMBEDDED)
    np.testing.assert_array_equal(read(both, folder, KEYS[10:50]), EMBEDDED[10:50])


def test_the_scratch_file_is_gone_with_the_block(folder):
    parts = write_trajectories(folder / "losses", in_order(2))
    sources = Sources(write_clusters(folder / "clusters", in_order(4)), parts)
    with embedding_matrix.read(["embeddings"], KEYS, sources) as found:
        place = found["embeddings"].filename
        assert place.exists()
    assert not place.exists()


def test_embeddings_that_are_missing_are_asked_for(folder):
    for gone in (None, Parts(folder / "nowhere")):
        with pytest.raises(DataError, match=r"there are none.* `trajectories\.embeddings: true`"):
            read(gone, folder)
    losses, more = (write_trajectories(folder / n, [p]) for n, p in (("a", [0]), ("b", [1, 2])))
    both = Parts(losses.folder, more=(more.folder,))
    with pytest.raises(DataError, match=r"57 of 60 .*\(first: e3, .*and extend the run again\."):
        read(both, folder)


def test_queries_that_are_missing_are_asked_for(folder):
    parts = write_trajectories(folder / "losses", in_order(2))
    (parts.folder / "queries").remove()
    sources = Sources(write_clusters(folder / "clusters", in_order(4)), parts)
    message = (
        r"none in .*/queries/embeddings\. Name files .* `trajectories\.queries`"
        ".*--from trajectories"
    )
    with (
        pytest.raises(DataError, match=message),
        embedding_matrix.read(["embeddings", "queries"], KEYS, sources),
    ):
        pass


def test_an_example_with_two_embeddings_is_refused(folder):
    parts = write_trajectories(folder / "losses", [*in_order(2), [7, 8]])
    with pytest.raises(DataError, match=r"2 rows of .* repeat an example_id"):
        read(parts, folder)


def test_embeddings_of_two_models_are_not_compared(folder):
    parts = write_trajectories(folder / "losses", in_order(2))
    other = embedding_table(pa.array(IDS[30:]), EMBEDDED[30:, :4])
    (parts.folder / part_name(1, EMBEDDINGS)).write_table(other)
    with pytest.raises(DataError, match="have 5 and 4 components"):
        read(parts, folder)


def test_facility_location_ranks_the_pool_as_greedy_takes_it(folder):
    _, out = selected(folder / "out", method="facility-location", stratify=False)
    _, drawn = selected(folder / "random", method="random")

    shuffled = order_of(drawn)
    order = greedy_by_definition(cosines_by_definition(EMBEDDED), shuffled)
    assert order_of(out) == order


@pytest.mark.parametrize("stratify", [True, False])
def test_rds_plus_ranks_the_pool_as_queries_take_turns(folder, stratify):
    _, out = selected(folder / "out", method="rds-plus", stratify=stratify)
    _, drawn = selected(folder / "random", method="random")

    order = taken_by_turns(EMBEDDED, ASKED, order_of(drawn))
    if stratify:
        order = [row for name in ("code", "math") for row in order if STRATA[row] == name]
        found = [row for name in ("code", "math") for row in order_of(out) if STRATA[row] == name]
        assert found == order
    else:
        assert order_of(out) == order


def test_strata_take_turns_in_a_ranking_by_facility_location(folder):
    _, out = selected(folder / "out", method="facility-location")
    _, plain = selected(folder / "plain", method="facility-location", stratify=False)
    strata = ranking(out)["stratum"].to_pylist()
    assert all(strata[:place].count("code") == place // 2 for place in range(2, 30, 2))
    for name in ("code", "math"):
        inside = [row for row in order_of(plain) if STRATA[row] == name]
        assert [row for row in order_of(out) if STRATA[row] == name] == inside
