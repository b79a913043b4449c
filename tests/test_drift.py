"""Whether new rows fit their clusters, read from labels of old and new rows."""

import numpy as np
import pyarrow as pa
import pytest

from s2l_ray import drift
from s2l_ray.artifacts import Parts, part_name
from s2l_ray.storage import Location


def labels(folder: Location, cluster_N, sqdist_N) -> list[Location]:
    for part, rows in enumerate(np.array_split(np.arange(len(cluster_N)), 3)):
        table = {
            "cluster": pa.array(np.asarray(cluster_N)[rows], pa.int32()),
            "sqdist": pa.array(np.asarray(sqdist_N)[rows], pa.float32()),
        }
        (folder / part_name(part)).write_table(pa.table(table))
    return Parts(folder).files()


def test_rows_are_judged_only_against_old_ones_of_their_own_stratum(tmp_path):
    """Stratum a has enough old rows, b too few for its clusters, c was fitted in an extension."""
    place = Location.of(tmp_path)
    strata = ["a", "a", "b", "b", "c", "d"]
    in_a = [0, 1] * 50
    run = labels(place / "run", [*in_a, 2, 3], [*np.linspace(0.1, 1, 100), 9.0, 9.0])
    # The rows of a in the extension are no measure: the centroids of a did not come from them.
    first = labels(place / "first", [0] * 10 + [4] * 20, [99.0] * 10 + [0.5] * 20)
    fitted = [
        drift.Fitted(run, [50, 50, 1, 1], range(4)),
        drift.Fitted(first, [10, 0, 0, 0, 20], range(4, 5)),
    ]
    new = labels(
        place / "new", [0] * 40 + [2] * 3 + [4] * 40 + [5] * 4, [0.2] * 43 + [7.0] * 40 + [1.0] * 4
    )
    found = drift.compared(fitted, new, strata)

    assert found["rows"] == 80 and found["old_rows"] == 120
    assert found["rows_of_small_strata"] == 3 and found["rows_of_new_strata"] == 4
    assert found["share_beyond_p95"]["new"] == 0.5 and found["reclustering_due"]
    assert "50.0% of new rows" in drift.sentence(found)
    assert "re-clustering is due" in drift.sentence(found)


def test_without_old_rows_to_compare_with_nothing_is_judged(tmp_path):
    place = Location.of(tmp_path)
    old = drift.Fitted(labels(place / "old", [0, 1, 1], [0.0, 1.0, 1.0]), [1, 2], range(2))
    found = drift.compared([old], labels(place / "new", [0, 1, 1, 1], [1.0] * 4), ["", ""])
    counts = {"rows": 0, "rows_of_new_strata": 0, "rows_of_small_strata": 4}
    assert found == {"centroids_updated": False, **counts}
    assert "cannot be judged" in drift.sentence(found)


@pytest.mark.parametrize("moved", [False, True])
def test_a_new_row_in_the_mean_of_its_cluster_counts_as_if_it_were_not(tmp_path, moved):
    """Of clusters with two rows, an own distance of 1 is one of 2 to the other row."""
    place = Location.of(tmp_path)
    size = 2 if moved else 1_000
    old = labels(place / "old", [0] * 100, [1.0] * 100)
    fitted = drift.Fitted(old, [11, size], range(2))
    new = labels(place / "new", [1] * 10, [1.0] * 10)
    found = drift.compared([fitted], new, ["", ""], moved=moved)
    assert found["median_distance_nats"]["new"] == pytest.approx(2 if moved else 1, rel=0.01)
    assert found["median_distance_nats"]["old"] == pytest.approx(11 / 10, rel=0.01)
    assert found["reclustering_due"] == moved
    assert ("in a new run" in drift.sentence(found)) == moved
    assert ("in the updated clusters" in drift.sentence(found)) == moved


def test_what_is_due_comes_with_its_remedy():
    found = {"rows": 9, "share_beyond_p95": {"new": 0.5}, "reclustering_due": True}
    assert drift.sentence(found).endswith("is due (`s2l extend RUN_DIR --update-centroids`)")
    assert drift.sentence({**found, "reclustering_due": False}).endswith("the clusters still fit")
