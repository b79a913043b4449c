"""Comparisons on Ray, of the run that other tests share: trials, what is new alone, DeepSpeed."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import s2l_ray as s2l
from s2l_ray.errors import ConfigError
from tests.small_run import NUM_ROWS, NUM_SELECTED

pytestmark = pytest.mark.ray

ALL = sum(NUM_ROWS.values())


@pytest.fixture
def compare(config, copied, ray_cluster):
    """A function that compares subsets of a copy of the finished run; it collects what is said."""
    run = copied("prepared", "reference", "trajectories", "clusters")

    def call(**overrides: Any) -> tuple[s2l.Comparison, list[str]]:
        said: list[str] = []
        common = {"run_dir": str(run), "target.max_steps": 6, "target.workers": 1}
        keys = {key.replace("__", "."): value for key, value in overrides.items()}
        found = s2l.compare(config, overrides={**common, **keys}, say=said.append)
        return found, said

    return call


def trials(said: list[str]) -> list[str]:
    """The trials that were made, as the lines of progress name them."""
    return sorted(
        line.split("   ")[0].strip() for line in said if ", seed " in line and "rows" in line
    )


def test_arms_are_trained_once_and_what_is_added_alone(compare):
    s2l_and = [{"method": "s2l", "clusters": {"num_clusters": 2}}]
    asked = {"comparison.methods": ["random", "s2l", *s2l_and], "comparison.budgets": [0.4]}

    found, said = compare(**asked, **{"comparison.seeds": [1]})

    assert len(trials(said)) == 5
    # A job may lose its working directory with its connection: nothing is left to write after it.
    run = Path(found.path).parent
    assert (run / "subset" / "selected.jsonl").exists() and (run / "report/index.html").exists()
    rows = pq.read_table(Path(found.path) / "results.parquet").to_pylist()
    losses = {row["label"]: row for row in rows if row["metric"] == "loss"}
    assert {name: row["examples"] for name, row in losses.items()} == {
        "random": NUM_SELECTED,
        "s2l": NUM_SELECTED,
        "s2l (num_clusters 2)": NUM_SELECTED,
        "all-data": ALL,
        "no-training": 0,
    }
    assert losses["all-data"]["value"] < losses["no-training"]["value"]
    assert losses["s2l"]["seconds_selecting"] > losses["random"]["seconds_selecting"]
    assert losses["s2l"]["flops"] > losses["random"]["flops"] > 0
    settings = json.loads(losses["s2l (num_clusters 2)"]["settings"])
    assert settings == {"clusters": {"num_clusters": 2}}

    _, said = compare(**asked, **{"comparison.seeds": [1]})

    assert trials(said) == []
    assert "starting Ray" not in said

    more, said = compare(**asked, **{"comparison.seeds": [1, 2]})

    assert len(trials(said)) == 5
    assert all("seed 2" in trial for trial in trials(said))
    table = more.table()
    assert set(table["label"]) == set(losses)
    (row,) = table[(table["label"] == "s2l") & (table["metric"] == "loss")].to_dict("records")
    assert row["seeds"] == 2
    assert row["low"] < row["mean"] < row["high"]
    assert any("At 0.4" in line for line in more.lines())
    assert more.items().to_arrow().num_rows == 2 * 5 * 6


def test_a_target_of_several_workers_is_trained_by_deepspeed(compare):
    found, said = compare(
        target__workers=2,
        comparison__methods=["random"],
        comparison__budgets=[0.4],
        comparison__seeds=[1],
        comparison__all_data=False,
    )

    assert len(trials(said)) == 2
    table = found.table()
    loss = table[table["metric"] == "loss"].set_index("label")["mean"]
    assert loss["random"] < loss["no-training"]
    left = sorted(path.name for path in (Path(found.path) / "trials").glob("*/*"))
    assert left == ["items.parquet", "items.parquet", "result.json", "result.json"]


def test_a_comparison_without_its_section_is_refused(compare):
    with pytest.raises(ConfigError, match="no section `comparison`"):
        compare()
