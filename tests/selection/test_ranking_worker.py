"""A worker of the cluster ranks a large pool, with the bytes of a ranking in this process."""

import pytest

from s2l_ray.artifacts.manifest import SUBSET, StageDir
from s2l_ray.config.sections import SelectionConfig
from s2l_ray.errors import DataError
from s2l_ray.selection import ranking_worker, stage
from s2l_ray.selection.columns import Sources
from s2l_ray.storage.location import Location
from tests.pool_of_sixty import in_order, jsonl, selected, write_clusters, write_rows

LARGE = ranking_worker.MOST_BYTES_IN_DRIVER // ranking_worker.BYTES_PER_ROW + 1
"""So many rows a pool is said to have that a worker has to rank."""


@pytest.fixture
def sources(tmp_path) -> Sources:
    folder = Location.of(tmp_path)
    clusters = write_clusters(folder / "clusters", in_order(5))
    return Sources(clusters, None, write_rows(folder / "rows", in_order(4)))


def ranked(sources: Sources, out: StageDir, num_rows: int, budget: int = 12):
    config = SelectionConfig(budget=budget)
    return ranking_worker.run(config, sources, out, seed=1, num_rows=num_rows)


def out_in(folder) -> StageDir:
    return StageDir(Location.of(folder) / "selection", "selection", {}, (SUBSET,))


@pytest.mark.parametrize("num_rows", [60, LARGE])
def test_without_ray_this_process_ranks(tmp_path, sources, num_rows):
    summary = ranked(sources, out_in(tmp_path / "out"), num_rows)

    expected, _ = selected(Location.of(tmp_path / "expected"), sources.clusters, sources.rows)
    assert summary == expected


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
class TestOnRay:
    def test_a_worker_ranks_a_large_pool_to_the_same_bytes(self, tmp_path, sources, monkeypatch):
        here = ranked(sources, out_in(tmp_path / "here"), 60)

        # Only this process has lost the function; a worker is another one.
        monkeypatch.delattr(stage, "run")
        there = ranked(sources, out_in(tmp_path / "there"), LARGE)

        assert there == here and len(jsonl(Location.of(tmp_path / "there" / "selection"))) == 12
        for name in ("selection/ranking.parquet", "subset/selected.jsonl"):
            content = (tmp_path / "there" / name).read_bytes()
            assert content == (tmp_path / "here" / name).read_bytes()

    def test_what_it_refuses_reaches_the_user(self, tmp_path, sources):
        with pytest.raises(DataError, match="budget 61 is more than the pool of 60"):
            ranked(sources, out_in(tmp_path), LARGE, budget=61)
