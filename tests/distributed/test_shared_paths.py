"""Paths that nodes share, as a worker sees them, and what is said of those that they do not."""

import importlib
import json

import pytest

from s2l_ray.artifacts.tables import PLACES
from s2l_ray.config.load import from_tree
from s2l_ray.config.paths import READERS, inputs_of, paths_of
from s2l_ray.distributed import resources, shared_paths
from s2l_ray.distributed.map_units import UnitRunner
from s2l_ray.distributed.shared_paths import Seen
from s2l_ray.errors import ConfigError
from s2l_ray.pipeline.run import paths_read
from s2l_ray.storage.location import Location
from tests import handmade


@pytest.fixture
def probe(tmp_path) -> Location:
    found = Location.of(tmp_path / "run" / ".probe-1")
    (found / "driver").write_bytes(b"")
    return found


def test_a_node_that_shares_all_says_so_and_leaves_its_file(probe, tmp_path):
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "a.jsonl").write_text("")
    paths = {"data.train": [str(tmp_path / "pool"), str(tmp_path / "pool" / "*.jsonl")]}

    assert shared_paths.look("10.0.0.2:1", probe, paths) == Seen("10.0.0.2:1", {})
    assert set(probe.names()) == {"driver", "10.0.0.2:1"}


def test_a_node_names_what_it_does_not_see_and_leaves_nothing(tmp_path):
    elsewhere = Location.of(tmp_path / "run" / ".probe-1")
    paths = {"data.train": ["/nowhere/*.jsonl"], "trajectories.path": [str(tmp_path)]}

    seen = shared_paths.look("10.0.0.2:1", elsewhere, paths)

    assert seen.missing == {"data.train": "/nowhere/*.jsonl", "run_dir": f"{tmp_path}/run"}
    assert not (tmp_path / "run").exists()


def test_a_worker_on_a_node_that_does_not_share_the_run_refuses_its_first_unit(tmp_path):
    runner = UnitRunner(
        dict, {}, resources.Workers("trajectories", 1, 1), Location.of(tmp_path / "a" / "b")
    )
    row = runner({"number": 0, "unit": json.dumps({})})

    assert row["error"] == "ConfigError"
    assert f"run_dir: 1 node(s) of the cluster do not see {tmp_path}/a as" in row["message"]
    assert not (tmp_path / "a").exists()


class OfThisProcess:
    """A value that another process cannot read, as where it has another s2l_ray."""

    def __reduce__(self) -> tuple:
        return importlib.import_module, ("s2l_ray.only_here",)


@pytest.mark.ray
def test_a_node_that_cannot_run_the_program_is_refused_with_the_cause(ray_cluster):
    import ray

    here = {ray.get_runtime_context().get_node_id(): "10.0.0.2:1"}
    message = r"10\.0\.0\.2:1 cannot run this program: .*No module named 's2l_ray\.only_here'"
    with pytest.raises(ConfigError, match=message):
        shared_paths._looked_at(here, OfThisProcess(), {})


def test_every_path_of_a_configuration_has_its_readers(tmp_path):
    config = from_tree(handmade.inputs(tmp_path), "test")
    assert paths_of(config).keys() <= READERS.keys()
    assert inputs_of(config, {"prepare"}).keys() == {"data.train", "data.eval"}
    assert inputs_of(config, {"clusters", "selection"}) == {}
    scored = config.selection.model_copy(update={"method": "score", "score": "/s.parquet#quality"})
    config = config.model_copy(update={"selection": scored})
    assert inputs_of(config, {"selection"}) == {"selection.score": ["/s.parquet"]}


@pytest.mark.parametrize(
    ("stages", "lie_elsewhere", "reads"),
    [
        ({"trajectories", "clusters"}, False, True),
        ({"clusters", "selection"}, True, True),
        ({"clusters", "selection"}, False, False),  # they were copied into the run
        ({"selection"}, True, False),
    ],
)
def test_brought_losses_are_looked_for_where_workers_will_read_them(
    tmp_path, stages, lie_elsewhere, reads
):
    run = Location.of(tmp_path)
    tree = {"run_dir": run.uri, "trajectories": {"path": "/t.parquet"}, "clusters": {}}
    config = from_tree({**tree, "selection": {"budget": 3}}, "test")
    if lie_elsewhere:
        (run / "trajectories" / PLACES).write_json([])
    found = paths_read(run, config, stages)
    assert found.get("trajectories.path") == (["/t.parquet"] if reads else None)
