"""Small pools and strata: no clusters of single rows, unless they are asked for."""

from collections import Counter

import pytest

from s2l_ray.artifacts.manifest import section_inputs
from s2l_ray.storage.location import Location
from tests import handmade
from tests.clusters.test_stage import SEVEN_PARTS, STRATA, clustered, settings, write_parts
from tests.handmade import changed


@pytest.fixture
def folder(tmp_path) -> Location:
    return Location.of(tmp_path)


@pytest.mark.parametrize("per_stratum", [True, False])
def test_there_are_at_least_so_many_rows_for_each_cluster(folder, per_stratum):
    files = write_parts(folder / "in", SEVEN_PARTS)
    config = settings(num_clusters=100, rows_per_sample=None, rows_per_cluster=25)
    config = config.model_copy(update={"per_stratum": per_stratum})

    summary, _ = clustered(folder / "capped", files, config)

    rows = Counter(STRATA if per_stratum else [""] * len(STRATA))
    wanted = {name: max(count // 25, 1) for name, count in rows.items()}
    assert Counter(summary["stratum_of_cluster"]) == wanted
    few, most = min(wanted.values()), max(wanted.values())
    number = f"{few} to {most}" if few < most else f"{few}"
    where = f" in {len(rows)} of {len(rows)} strata" if len(rows) > 1 else ""
    assert summary["notes"][0] == (
        f"{number} clusters instead of 100{where}: one for every 25 rows "
        "(clusters.rows_per_cluster)"
    )


@pytest.mark.parametrize("changes", [{"rows_per_cluster": 1}, {"method": "authors"}])
def test_clusters_of_single_rows_are_asked_for_and_said(folder, changes):
    files = write_parts(folder / "in", SEVEN_PARTS)
    config = settings(
        **{"num_clusters": 200, "rows_per_sample": None, "per_stratum": False, **changes}
    )

    summary, _ = clustered(folder / "many", files, config)

    alone = sum(size == 1 for size in summary["size_of_cluster"])
    assert alone > 100
    assert summary["notes"][0].startswith(f"{alone} of {summary['num_clusters']} clusters hold a ")


def test_the_cap_stays_out_of_fingerprints_where_it_changes_nothing():
    assert "clusters.rows_per_cluster" not in section_inputs("clusters", settings())
    capped = section_inputs("clusters", settings(rows_per_cluster=25))
    assert capped["clusters.rows_per_cluster"] == 25


@pytest.mark.parametrize(
    "clusters", [{"num_clusters": "auto"}, {"num_clusters": 3, "method": "authors"}]
)
def test_the_cap_is_no_input_of_clusters_that_it_does_not_touch(tmp_path, clusters):
    tree = changed(handmade.inputs(tmp_path), "clusters", clusters)
    (step,) = (step for step in handmade.planned(tree) if step.stage == "clusters")
    assert "clusters.num_clusters" in step.out.inputs
    assert "clusters.rows_per_cluster" not in step.out.inputs
