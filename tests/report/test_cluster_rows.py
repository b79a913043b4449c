"""Rows that stand for clusters: the lowest scores of each, whatever the batches."""

from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from s2l_ray.artifacts.finished import Finished
from s2l_ray.artifacts.manifest import StageDir, read_manifest
from s2l_ray.artifacts.tables import part_name
from s2l_ray.report import ranked_head
from s2l_ray.report.cluster_rows import LowestOfCluster, cluster_rows
from s2l_ray.storage.location import Location

RNG = np.random.default_rng(11)
CLUSTER_N = RNG.integers(0, 4, 300)
SCORE_N = RNG.integers(0, 50, 300).astype(float)
TABLE = pa.table({"example_id": [f"id-{i}" for i in range(300)], "cluster": pa.array(CLUSTER_N)})


@pytest.mark.parametrize("rows_per_batch", [1, 7, 300])
@pytest.mark.parametrize("per_cluster", [1, 5, 400])
def test_the_lowest_rows_of_each_cluster_are_those_of_sorting(rows_per_batch, per_cluster):
    lowest = LowestOfCluster(4, per_cluster)
    for start in range(0, 300, rows_per_batch):
        part = slice(start, start + rows_per_batch)
        lowest.add(TABLE.slice(start, rows_per_batch), SCORE_N[part])

    frame = pd.DataFrame(
        {"cluster": CLUSTER_N, "score": SCORE_N, "id": TABLE["example_id"].to_pylist()}
    )
    ordered = frame.sort_values(["cluster", "score"], kind="stable")
    expected = ordered.groupby("cluster").head(per_cluster)["id"].tolist()
    assert lowest.table()["example_id"].to_pylist() == expected


def finish(place: Location, stage: str, summary: dict) -> Finished:
    StageDir(place, stage, {}).finish(summary, 1.0)
    return Finished(stage, "", place, read_manifest(place))


def clustered(folder: Location, cuts: list[int]) -> dict[str, Finished]:
    """The 300 rows in parts that end at `cuts`."""
    for part, (start, end) in enumerate(zip([0, *cuts], [*cuts, 300], strict=True)):
        table = TABLE.slice(start, end - start).append_column(
            "stratum", pa.array([f"s{i % 3}" for i in range(start, end)])
        )
        table = table.append_column("sqdist", pa.array(SCORE_N[start:end]))
        (folder / part_name(part)).write_table(table)
    summary = {"stratum_of_cluster": [""] * 4, "size_of_cluster": np.bincount(CLUSTER_N).tolist()}
    return {"clusters": finish(folder, "clusters", summary)}


def test_rows_do_not_depend_on_how_the_pool_is_cut_into_parts(tmp_path):
    one = cluster_rows(clustered(Location.of(tmp_path / "one"), []), [0, 2], ["id-7", "none"])
    four = cluster_rows(clustered(Location.of(tmp_path / "four"), [3, 90, 91]), [0, 2], ["id-7"])

    for name in ("nearest", "farthest", "sampled", "asked"):
        assert getattr(one, name).equals(getattr(four, name))
    assert set(one.sampled["cluster"].to_pylist()) == {0, 2}
    assert one.asked["example_id"].to_pylist() == ["id-7"]
    strata = [f"s{i % 3}" for i in range(300)]
    for k in range(4):
        own = Counter(name for name, c in zip(strata, CLUSTER_N, strict=True) if c == k)
        assert one.strata[k] == four.strata[k] == own


@pytest.fixture
def selection(tmp_path) -> Finished:
    """A ranking of 300 rows, whose first 120 are selected."""
    folder = Location.of(tmp_path)
    (folder / "ranking.parquet").write_table(TABLE)
    return finish(folder, "selection", {"selected": 120})


def test_only_selected_rows_are_read_from_a_ranking(selection):
    assert ranked_head.among(selection, ["id-119", "id-120", "id-3"]) == {"id-119", "id-3"}
    best = ranked_head.first_ids(selection, [1, 3], 2)
    ranks_of = {k: [i for i in range(120) if CLUSTER_N[i] == k][:2] for k in (1, 3)}
    assert sorted(best) == sorted(f"id-{i}" for ranks in ranks_of.values() for i in ranks)


@pytest.mark.parametrize("most", [1, 7, 119, 120, 500])
def test_ids_are_spread_evenly_over_the_selected_ranks(selection, most):
    ids = ranked_head.spread_ids(selection, most).to_pylist()
    step = max(1, -(-120 // most))
    assert ids == [f"id-{i}" for i in range(0, 120, step)] and len(ids) <= most
