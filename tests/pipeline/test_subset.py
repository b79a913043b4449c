"""Another subset, or the report again, of a run that is there."""

import json
from pathlib import Path

import pytest

from s2l_ray.config.load import from_tree
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.pipeline import run as pipeline
from s2l_ray.pipeline import staleness
from s2l_ray.pipeline import subset as finished
from s2l_ray.selection.methods import METHODS
from s2l_ray.storage.location import Location
from tests import handmade
from tests.handmade import changed, finish, planned, write_subset


@pytest.fixture
def tree(tmp_path):
    """A configuration that ends with the selection."""
    tree = handmade.inputs(tmp_path)
    return changed(changed(tree, "target", None), "evaluation", None)


@pytest.fixture
def run(tree) -> Location:
    return finish(tree, until="clusters")


def ids(place: Location) -> list[str]:
    return [json.loads(line)["example_id"] for line in place.read_bytes().splitlines()]


def subset(run, budget=10, method="s2l", seed=None, out=None, within=None, **changes) -> list[str]:
    place, count = write_subset(run, budget, method, seed, out, within=within, changes=changes)
    found = ids(place)
    assert count == len(found)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_smaller_subset_lies_inside_a_larger_one(run, method):
    sizes = [5, 0.5, 29, 1.0]
    changes = {"score": "last_loss"} if method == "score" else {}
    small, half, most, everything = (
        set(subset(run, budget, method, **changes)) for budget in sizes
    )

    assert (len(small), len(half), len(most), len(everything)) == (5, 15, 29, 30)
    assert small < half < most < everything


@pytest.mark.parametrize("budget", [11, 0.3, "500 tokens"])
def test_it_is_the_subset_that_a_run_with_that_budget_selects(tree, run, budget):
    found = subset(run, budget)
    loaded = from_tree(changed(tree, "selection.budget", budget), "test")
    pipeline.run(loaded, until="selection", say=lambda line: None)

    assert found == ids(run / "subset" / "selected.jsonl")


def test_it_is_spread_over_strata_as_the_run_spreads_its_own(tree):
    tree = changed(tree, "selection", {"budget": 6, "weights": {"math": 2.0}, "minimum": 1})
    run = finish(tree, until="clusters")
    stratum = dict(zip(handmade.IDS, handmade.STRATA, strict=True))

    found = [stratum[example_id] for example_id in subset(run, 9)]
    assert (found.count("math"), found.count("code")) == (6, 3)
    assert subset(run, 9, "random") == subset(finish(tree), 9, "random")
    with pytest.raises(DataError, match=r"selection\.minimum alone asks for 2"):
        subset(run, 1)
    assert len(subset(run, 1, "random")) == 1


def test_bounds_that_a_method_would_ignore_are_refused(tree):
    section = {"budget": 6, "method": "balanced-random"}
    run = finish(changed(tree, "selection", section), until="clusters")
    # No new configuration may say this, but stored ones do.
    stored = (run / "config.json").read_json()
    stored["selection"] |= {"stratify": False, "maximum": 4}
    (run / "config.json").write_json(stored)

    with pytest.raises(ConfigError, match=r"--method s2l, with .*need `stratify: true`"):
        subset(run, 6, "s2l")
    assert len(subset(run, 6, "balanced-random")) == len(subset(run, 6, "random")) == 6
    assert (run / "subsets").names() == ["balanced-random-6-42", "random-6-42"]


def test_the_order_inside_clusters_is_the_run_s_unless_given(tree, run):
    plain, nearest, steady = (
        subset(run, within=within) for within in ("random", "nearest", "lowest-variation")
    )
    assert plain == subset(run) and steady not in (plain, nearest)

    finish(changed(tree, "selection", {"budget": 6, "within": "lowest-variation"}), "clusters")
    assert subset(run) == steady
    assert subset(run, within="random") == plain
    assert len(subset(run, method="random")) == 10
    names = (run / "subsets").names()
    assert names == [
        "random-10-42",
        "s2l-10-42",
        "s2l-lowest-variation-10-42",
        "s2l-nearest-10-42",
    ]
    with pytest.raises(ConfigError, match=r"--within nearest: .*balanced-random has none"):
        subset(run, method="balanced-random", within="nearest")


def test_a_budget_of_tokens_is_kept_to(run):
    place, count = write_subset(run, "500 tokens", "random", None, None)

    tokens = dict(zip(handmade.IDS, handmade.NUM_TOKENS, strict=True))
    assert place.parent.name == "random-500-tokens-42"
    assert 500 - 42 < sum(tokens[example_id] for example_id in ids(place)) <= 500
    assert count == 12


def test_another_seed_or_method_is_another_subset(run):
    assert subset(run) == subset(run, seed=42)
    assert subset(run) != subset(run, seed=43)
    assert subset(run) != subset(run, method="random")


def test_a_subset_lies_under_a_name_that_tells_how_it_was_made(run):
    subset(run, 5)
    subset(run, 0.2, "random", 7)

    assert (run / "subsets").names() == ["random-0.2-7", "s2l-5-42"]


def test_a_subset_holds_the_original_rows(run):
    place, _ = write_subset(run, 1.0, "s2l", None, None)
    rows = [json.loads(line) for line in place.read_bytes().splitlines()]

    assert rows == [row | {"example_id": row["id"]} for row in handmade.ROWS]


def test_a_subset_may_be_parquet_anywhere(run, tmp_path):
    out = Location.of(tmp_path / "elsewhere" / "mine.parquet")
    place, _ = write_subset(run, 7, "s2l", None, out)

    assert place == out
    assert place.read_table()["example_id"].to_pylist() == subset(run, 7)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_without_the_data_a_subset_is_the_ids_in_order_of_rank(tree, tmp_path, kind):
    (tmp_path / "losses.parquet").write_bytes(b"1")
    brought = {
        key: value for key, value in tree.items() if key in ("run_dir", "clusters", "selection")
    }
    brought["trajectories"] = {"path": str(tmp_path / "losses.parquet")}
    run = finish(brought, until="clusters")
    out = Location.of(tmp_path / f"subset.{kind}")

    with pytest.raises(DataError, match=r"no prepared rows.*data\.tokenizer"):
        subset(run, "100 tokens")
    write_subset(run, 7, "s2l", None, out)
    write_subset(run, 9, "s2l", None, run / "more.jsonl")
    table = out.read_table() if kind == "parquet" else None
    found = table["example_id"].to_pylist() if table else ids(out)
    # In order of rank, a smaller subset is the beginning of a larger one.
    assert len(found) == 7 and ids(run / "more.jsonl")[:7] == found
    first = table.to_pylist()[0] if table else json.loads(out.read_bytes().splitlines()[0])
    assert first.keys() >= {"example_id", "stratum", "cluster"}


def test_a_subset_changes_nothing_else_in_the_run(tree, run, tmp_path):
    def content() -> dict[Path, bytes]:
        files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
        return {path: path.read_bytes() for path in files if "subsets" not in path.parts}

    before = content()
    subset(run)
    assert content() == before


@pytest.mark.parametrize("name", ["clusters/part-000009.parquet", "trajectories/x.parquet"])
def test_a_stage_gets_no_file_that_it_did_not_write(tree, name):
    run = finish(tree, until="clusters")
    with pytest.raises(DataError, match="that file belongs to the run"):
        write_subset(run, 2, "s2l", None, run / name)
    assert not (run / name).exists()


def test_a_file_of_the_run_is_not_overwritten(tree):
    run = finish(tree, until="clusters")
    mine = run / "run.json"
    before = mine.read_bytes()
    with pytest.raises(DataError, match=r"run\.json: that file belongs to the run"):
        write_subset(run, 2, "s2l", None, mine)
    assert mine.read_bytes() == before


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nowhere is no run of s2l_ray"):
        subset(Location.of(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"nowhere is no run of s2l_ray"):
        finished.rebuild_report(Location.of(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_a_run_whose_clusters_are_not_finished_is_refused(tree):
    run = finish(tree, until="trajectories")

    with pytest.raises(DataError, match="has no finished clusters that fit its data"):
        subset(run)


@pytest.mark.parametrize(
    ("budget", "error", "message"),
    [
        (31, DataError, "budget 31 is more than the pool of 30 examples"),
        (0, ConfigError, r"budget 0 \(pool: 30 examples\)"),
        (-4, ConfigError, r"budget -4 \(pool: 30 examples\)"),
        (1.5, ConfigError, r"budget 1\.5 \(pool: 30 examples\)"),
        ("1235 tokens", DataError, r"more than the pool of 30 examples has \(1,234 tokens\)"),
        ("40 tokens", DataError, r"first example of the ranking alone has 4[12]"),
    ],
)
def test_a_budget_that_the_pool_cannot_give_is_refused(run, budget, error, message):
    with pytest.raises(error, match=message):
        subset(run, budget)
    assert not (run / "subsets").exists()


def test_a_name_of_another_kind_of_file_is_refused(run, tmp_path):
    with pytest.raises(DataError, match=r"subset\.txt: the name must end in \.jsonl or \.parquet"):
        subset(run, out=Location.of(tmp_path / "subset.txt"))


def test_a_report_can_be_built_again_and_the_run_stays_finished(tree, run):
    pipeline.run(from_tree(tree, "test"), say=lambda line: None)
    page = run / "report" / "index.html"
    before = page.read_bytes()
    page.write_bytes(b"")

    assert finished.rebuild_report(run) == page
    # The keys inside an architecture come in the order of the file that they were read from.
    assert sorted(page.read_bytes().splitlines()) == sorted(before.splitlines())
    assert staleness.stale(planned(tree), None) == []


def test_a_report_can_be_built_of_an_unfinished_run(tree, run):
    page = finished.rebuild_report(run).read_bytes()

    assert b"<html" in page
    assert [step.label for step in staleness.stale(planned(tree), None)] == ["selection", "report"]
