"""Whether new rows fit their clusters, read from labels of old and new rows."""

import numpy as np
import pyarrow as pa
import pytest

from s2l_ray.artifacts.tables import Parts, part_name
from s2l_ray.clusters import extension_drift
from s2l_ray.storage.location import Location


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
        extension_drift.FittedRows(run, [50, 50, 1, 1], range(4)),
        extension_drift.FittedRows(first, [10, 0, 0, 0, 20], range(4, 5)),
    ]
    new = labels(
        place / "new", [0] * 40 + [2] * 3 + [4] * 40 + [5] * 4, [0.2] * 43 + [7.0] * 40 + [1.0] * 4
    )
    found = extension_drift.measure(fitted, new, strata)

    assert found["rows"] == 80 and found["old_rows"] == 120
    assert found["rows_of_small_strata"] == 3 and found["rows_of_new_strata"] == 4
    assert found["share_beyond_p95"]["new"] == 0.5 and found["reclustering_due"]
    assert "50.0% of 80 new rows" in extension_drift.sentence(found)
    assert extension_drift.sentence(found).endswith(
        "; 7 more, of new or small strata, are not judged"
    )
    assert "re-clustering is due" in extension_drift.sentence(found)


def test_without_old_rows_to_compare_with_nothing_is_judged(tmp_path):
    place = Location.of(tmp_path)
    old = extension_drift.FittedRows(
        labels(place / "old", [0, 1, 1], [0.0, 1.0, 1.0]), [1, 2], range(2)
    )
    found = extension_drift.measure([old], labels(place / "new", [0, 1, 1, 1], [1.0] * 4), ["", ""])
    counts = {"rows": 0, "rows_alone": 0, "rows_of_new_strata": 0, "rows_of_small_strata": 4}
    assert found == {"centroids_updated": False, **counts}
    assert "cannot be judged" in extension_drift.sentence(found)


@pytest.mark.parametrize("moved", [False, True])
def test_a_new_row_in_the_mean_of_its_cluster_counts_as_if_it_were_not(tmp_path, moved):
    """Of clusters with two rows, an own distance of 1 is one of 2 to the other row."""
    place = Location.of(tmp_path)
    size = 2 if moved else 1_000
    old = labels(place / "old", [0] * 100, [1.0] * 100)
    fitted = extension_drift.FittedRows(old, [11, size], range(2))
    new = labels(place / "new", [1] * 10, [1.0] * 10)
    found = extension_drift.measure([fitted], new, ["", ""], moved=moved)
    assert found["median_distance"]["new"] == pytest.approx(2 if moved else 1, rel=0.01)
    assert found["median_distance"]["old"] == pytest.approx(11 / 10, rel=0.01)
    assert found["reclustering_due"] == moved
    assert ("in a new run" in extension_drift.sentence(found)) == moved
    assert ("in the updated clusters" in extension_drift.sentence(found)) == moved


def test_new_rows_alone_in_moved_clusters_are_beyond(tmp_path):
    """A hundred old rows in two clusters; forty new ones beside them, or each in its own."""
    place = Location.of(tmp_path)
    old = labels(place / "old", [0, 1] * 50, [1.0] * 100)
    num_clusters = 10
    for num_alone in (0, 8):
        cluster_N = [*[0] * (40 - num_alone), *range(2, 2 + num_alone)]
        new = labels(place / "new", cluster_N, [1.0] * (40 - num_alone) + [0.0] * num_alone)
        sizes = [90 - num_alone, 50, *[1] * 8]
        fitted = extension_drift.FittedRows(old, sizes, range(num_clusters))
        found = extension_drift.measure([fitted], new, [""] * num_clusters, moved=True)
        assert found["rows"] == 40 and found["rows_alone"] == num_alone
        assert found["share_beyond_p95"]["new"] == num_alone / 40
        assert found["median_distance"]["new"] == pytest.approx(1, rel=0.03)


def test_new_rows_all_alone_are_due_without_a_distance(tmp_path):
    place = Location.of(tmp_path)
    old = labels(place / "old", [0] * 200, [1.0] * 200)
    new = labels(place / "new", range(1, 11), [0.0] * 10)
    fitted = extension_drift.FittedRows(old, [200, *[1] * 10], range(11))
    found = extension_drift.measure([fitted], new, [""] * 11, moved=True)
    assert found["rows_alone"] == 10 and found["reclustering_due"]
    assert "median_distance" not in found
    assert extension_drift.sentence(found).startswith("100.0% of 10 new rows")


def judged(share: float, due: bool) -> dict:
    counts = {"rows": 9, "rows_of_new_strata": 0, "rows_of_small_strata": 0}
    return {**counts, "share_beyond_p95": {"new": share}, "reclustering_due": due}


@pytest.mark.parametrize(
    ("share", "due", "verdict"),
    [(0.178, False, "unclear"), (0.178, True, "due"), (0.1, False, "not due")],
)
def test_a_share_above_the_line_never_passes_for_a_fit(share, due, verdict):
    found = judged(share, due)
    assert extension_drift.verdict(found) == verdict
    said = extension_drift.sentence(found)
    assert said.endswith("the clusters still fit") == (verdict != "due")
    assert ("too few rows to tell whether the clusters" in said) == (verdict == "unclear")


def test_what_is_due_comes_with_its_remedy():
    assert extension_drift.sentence(judged(0.5, due=True)).endswith(
        "is due (`s2l extend RUN_DIR --update-centroids`)"
    )
