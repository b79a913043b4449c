"""What brought losses cost: as much as was measured and counted, and nothing that is not asked."""

import json
import re
from pathlib import Path

import pytest

from s2l_ray.config.load import from_tree
from s2l_ray.errors import ConfigError
from s2l_ray.estimate import brought
from s2l_ray.estimate import plan as planning
from s2l_ray.estimate.brought import Layout, Stores
from s2l_ray.trajectories import import_existing
from tests.trajectories.brought import IDS, KINDS, LOSS_NT, STRATA, list_column, parquet

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
STAGES = ("trajectories", "clusters", "selection")


def recorded(name):
    return json.loads((RESULTS / name).read_text())


def tree(tmp_path, **more):
    return {
        "run_dir": str(tmp_path / "run"),
        "trajectories": {"path": str(tmp_path / "*.parquet")},
        "clusters": {"num_clusters": 2, "workers": 3},
        "selection": {"budget": 2},
        **more,
    }


def two_files(tmp_path):
    losses = list_column(LOSS_NT, KINDS["fixed-size list of float32"])
    for name, size in (("a", 4), ("b", 9)):
        parquet(tmp_path / f"{name}.parquet", losses, [f"{name}{i}" for i in IDS], size,
                stratum=STRATA)  # fmt: skip


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_requests_are_those_that_a_store_counted(in_place, stage):
    found = recorded(f"requests-losses{'-in-place' if in_place else ''}.json")
    files, counted = found["files"], found["results"][0][stage]
    rows = found["rows"]
    assert rows / files <= import_existing.ROWS_PER_PART or in_place
    losses = Layout(rows, files, 12, files, files, files, files, copied=not in_place)
    places = counted["by_place"]
    # The lease and the log grow with the clock, not with the losses.
    kept = [counts for place, counts in places.items() if not re.search("lease|logs/", place)]
    reads = sum(counts.get(kind, 0) for counts in kept for kind in ("HEAD", "GET"))
    writes = sum(counts.get(kind, 0) for counts in kept for kind in ("LIST", "PUT", "POST"))
    expected = brought.requests(stage, losses, Stores(files=True, run=True), 0)
    assert (expected.reads, expected.writes) == pytest.approx((reads, writes), abs=5)
    if stage == "trajectories":
        of_files = brought.requests(stage, losses, Stores(files=True, run=False), 0)
        # Six are for the pattern itself, which is no file: three commands ask twice.
        assert of_files.reads == sum(places["*/losses/*.parquet"].values()) - 6


@pytest.mark.parametrize("number", [1, 2])
def test_seconds_of_large_pools_are_those_that_were_measured(tmp_path, number):
    """Of 10 and 100 million rows, on two workers."""
    measured = recorded("clusters-100000000.json")["results"][number]
    losses = Layout(measured["rows"], 1, 12, copied=number == 1)
    config = from_tree(tree(tmp_path), "test")
    found = brought.costs(config, losses, set(STAGES), workers=2, here=number == 1)
    for cost in found:
        assert cost.seconds == pytest.approx(measured[cost.name]["seconds"], rel=0.45)
    total = sum(measured[stage]["seconds"] for stage in STAGES)
    assert sum(cost.seconds for cost in found) == pytest.approx(total, rel=0.25)


def test_twice_the_rows_take_twice_the_time_and_more_workers_less(tmp_path):
    config = from_tree(tree(tmp_path), "test")

    def seconds(rows, workers):
        losses = Layout(rows, 1, 12)
        return brought.costs(config, losses, {"trajectories"}, workers=workers, here=True)[
            0
        ].seconds

    assert seconds(2_000_000, 4) == pytest.approx(2 * seconds(1_000_000, 4))
    assert seconds(1_000_000, 4) == pytest.approx(seconds(1_000_000, 1) / 4)


@pytest.mark.parametrize(("bytes_copied", "parts", "units"), [(1 << 31, 6, 4), (0, 6, 5)])
def test_a_plan_says_parts_and_units_as_a_run_makes_them(
    tmp_path, monkeypatch, bytes_copied, parts, units
):
    monkeypatch.setattr(import_existing, "BYTES_COPIED", bytes_copied)
    monkeypatch.setattr(import_existing, "ROWS_PER_PART", 8)
    monkeypatch.setattr(import_existing, "ROWS_PER_UNIT", 12)
    two_files(tmp_path)
    shown = "\n".join(planning.lines(from_tree(tree(tmp_path), "test"), dollars_per_cpu_hour=3600))
    where = "copied into the run" if bytes_copied else "read where they lie"
    assert re.search(rf"^losses +{parts} parts in {units} units, {where}$", shown, re.MULTILINE)
    assert re.search(r"^trajectories +0:00 +0 +0$", shown, re.MULTILINE)
    assert re.search(r"CPU hours, \$\d+\.\d\d at \$3600 an hour", shown)
    assert "Requests" not in shown


def test_only_what_is_to_do_is_in_the_sum(tmp_path):
    losses = Layout(10_000_000, 153, 12)
    config = from_tree(tree(tmp_path), "test")
    found = brought.costs(config, losses, {"selection", "report"}, workers=2, here=True)
    assert [cost.name for cost in found] == ["selection"]


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_a_price_that_is_none_is_refused(tmp_path, price):
    two_files(tmp_path)
    with pytest.raises(ConfigError, match="give what one CPU of the cluster costs for an hour"):
        planning.lines(from_tree(tree(tmp_path), "test"), dollars_per_cpu_hour=price)


def test_a_price_without_brought_losses_is_refused(tmp_path):
    config = from_tree(tree(tmp_path), "test")
    scored = config.model_copy(update={"trajectories": None})
    with pytest.raises(ConfigError, match="this configuration brings none"):
        brought.check_price(scored, 0.05)
