"""`s2l select` and `report` on a finished run: what they leave, and what they refuse."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ray import cli
from s2l_ray.artifacts.manifest import RUN_MARK, StageDir
from s2l_ray.storage.location import Location
from tests.command_line import refused, tree_of, working_directory


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    return working_directory(tmp_path, monkeypatch)


@pytest.fixture
def clustered(place):
    """A run of twenty clustered examples, without data."""
    run = Location.of(place / "clustered")
    (run / RUN_MARK).write_json({"program": "s2l_ray"})
    tree = {"run_dir": str(run), "trajectories": {"path": "t.parquet"}, "clusters": {}}
    (run / "config.json").write_json(tree)
    clusters = StageDir(run / "clusters", "clusters", {})
    (clusters.location / "part-000000.parquet").write_table(
        pa.table(
            {
                "example_id": [f"e{i}" for i in range(20)],
                "stratum": ["a", "b"] * 10,
                "cluster": pa.array([i % 5 for i in range(20)], pa.int32()),
                "sqdist": pa.array([0.5] * 20, pa.float32()),
            }
        )
    )
    clusters.finish({"rows": 20}, 0.1)
    return place / "clustered"


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("0", "from 1 to 20"),
        ("-1", "from 1 to 20"),
        ("1.5", "from 1 to 20"),
        (".nan", "from 1 to 20"),
        ("21", "more than the pool of 20 examples"),
        ("many", "--budget 'many' is no number"),
        ("true", "--budget 'true' is no number"),
        ("", "--budget '' is no number"),
        ("20M", "or tokens: '20M tokens'"),
        ("0 tokens", "a whole number of them above zero"),
        ("many tokens", "'many tokens' is no budget: give a number of examples"),
        ("5 tokens", "Give `data` with `data.tokenizer`"),
        ("[", "--budget is not YAML"),
    ],
)
def test_a_budget_that_means_nothing_is_refused_by_select(clustered, capsys, budget, message):
    before = tree_of(clustered)
    assert message in refused(capsys, "select", str(clustered), f"--budget={budget}")
    assert tree_of(clustered) == before


def test_select_takes_the_nearest_of_a_cluster_when_told_so(clustered, capsys):
    arguments = ["select", str(clustered), "--budget", "5", "--within", "nearest"]
    assert cli.main(arguments) == 0
    assert (clustered / "subsets" / "s2l-nearest-5-42" / "selected.jsonl").exists()
    assert "--within nearest: it orders" in refused(capsys, *arguments, "--method", "random")


def test_select_takes_the_highest_scores_where_a_condition_holds(clustered, place, capsys):
    reward = pa.table({"example_id": [f"e{i}" for i in range(20)], "reward": range(20)})
    pq.write_table(reward, place / "scores.parquet")
    run = ["select", str(clustered), "--budget", "5", "--method"]
    given = ["score", "--score", "scores.parquet#reward", "--where", "cluster != 4"]
    assert cli.main([*run, *given, "--out", "highest.jsonl"]) == 0
    assert cli.main([*run, *given, "--score-order", "lowest", "--out", "lowest.jsonl"]) == 0

    assert "where     holds for 16 of 20 examples" in capsys.readouterr().out.splitlines()
    found = {
        name: {json.loads(line)["example_id"] for line in Path(name).read_text().splitlines()}
        for name in ("highest.jsonl", "lowest.jsonl")
    }
    # Spread over strata a and b, the even and the odd ones: the smaller rest goes to the last one.
    assert found["highest.jsonl"] in ({"e18", "e16", "e17", "e15", "e13"}, HIGHEST_OF_A)
    assert found["lowest.jsonl"] <= {"e0", "e1", "e2", "e3", "e5", "e6"}


HIGHEST_OF_A = {"e18", "e16", "e12", "e17", "e15"}


def test_select_names_a_subset_by_what_differs_from_the_run(clustered, capsys):
    for condition in ("cluster < 3", "cluster < 2"):
        assert cli.main(["select", str(clustered), "--budget", "5", "--where", condition]) == 0
    names = [path.name for path in (clustered / "subsets").iterdir()]
    assert len(set(names)) == 2 and all(name.startswith("s2l-5-42-") for name in names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--where", "cluster <"], "is no condition: it ends too early"),
        (["--where", "clustr < 3"], "did you mean cluster?"),
        (["--where", "cluster < 1"], "budget of 5 examples: selection.where holds for 4 of 20"),
        (["--method", "score"], "`score` is not given: name a field of the rows, or FILE#COLUMN"),
        (["--score", "cluster"], "--score: s2l would not read it"),
        (["--method", "score", "--score", "#x"], "--score: `score` is the name of a field or"),
        (["--quantile", "0.1"], "--quantile: s2l would not read it"),
        (["--method", "quantile-perplexity", "--quantile", "2"], "--quantile: Input should be"),
        (["--unlearned", "first"], "'first' is not one of keep, last"),
        (["--score-order", "best"], "'best' is not one of highest, lowest"),
    ],
)
def test_select_refuses_conditions_and_settings_that_do_not_fit(
    clustered, capsys, arguments, message
):
    before = tree_of(clustered)
    assert message in refused(capsys, "select", str(clustered), "--budget", "5", *arguments)
    assert tree_of(clustered) == before


def test_select_refuses_a_file_of_another_kind(clustered, capsys):
    message = refused(capsys, "select", str(clustered), "--budget", "5", "--out", "subset.csv")
    assert "must end in .jsonl or .parquet" in message
    assert not Path("subset.csv").exists()


def test_select_leaves_as_many_examples_as_asked(clustered, capsys):
    assert cli.main(["select", str(clustered), "--budget", "5"]) == 0
    lines = (clustered / "subsets" / "s2l-5-42" / "selected.jsonl").read_text().splitlines()
    assert len({json.loads(line)["example_id"] for line in lines}) == len(lines) == 5

    out = ["--budget", "0.25", "--method", "random", "--seed", "7", "--out", "subset.parquet"]
    assert cli.main(["select", str(clustered), *out]) == 0
    assert pq.read_table("subset.parquet").num_rows == 5
    assert "selected  subset.parquet" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("arguments", [("select", "--budget", "5"), ("report",)])
@pytest.mark.parametrize("folder", ["empty", "gone", "notes.txt"])
def test_what_is_no_run_has_neither_subsets_nor_a_report(place, capsys, arguments, folder):
    command, *rest = arguments
    before = tree_of(place)
    assert f"{place / folder} is no run of s2l_ray" in refused(capsys, command, folder, *rest)
    assert tree_of(place) == before


def test_select_before_the_clusters_are_finished_is_refused(clustered, capsys):
    (clustered / "clusters" / "_manifest.json").unlink()
    message = refused(capsys, "select", str(clustered), "--budget", "5")
    assert "no finished clusters" in message


def test_a_working_directory_that_is_gone_is_no_hindrance(clustered, tmp_path, capsys, monkeypatch):
    """A job's may be: Ray removes it when the driver disconnects."""
    (tmp_path / "gone-soon").mkdir()
    monkeypatch.chdir(tmp_path / "gone-soon")
    (tmp_path / "gone-soon").rmdir()
    assert cli.main(["select", str(clustered), "--budget", "5"]) == 0
    shown = capsys.readouterr().out
    assert f"selected  {clustered}/subsets/s2l-5-42/selected.jsonl\n" in shown


def test_select_says_what_it_took(clustered, capsys):
    assert cli.main(["select", str(clustered), "--budget", "5", "--method", "random"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "rows      5 of 20 (25.0%)"
    assert lines[1].startswith("strata    ")
    counted = [int(part.split()[1]) for part in lines[1][10:].split(", ")]
    assert sum(counted) == 5 and counted == sorted(counted, reverse=True)
    assert [line[:10].strip() for line in lines] == ["rows", "strata", "selected", "took"]


def test_select_replaces_a_file_only_when_forced(clustered, capsys):
    arguments = ["select", str(clustered), "--budget", "5", "--out", "mine.jsonl"]
    Path("mine.jsonl").write_text("mine\n")

    assert "mine.jsonl is there already, with another content" in refused(capsys, *arguments)
    assert Path("mine.jsonl").read_text() == "mine\n"
    assert cli.main([*arguments, "--force"]) == 0
    assert cli.main(arguments) == 0, "the same content again"
    assert len(Path("mine.jsonl").read_text().splitlines()) == 5


def test_select_writes_into_a_folder(clustered):
    assert cli.main(["select", str(clustered), "--budget", "5", "--out", "mine/subset"]) == 0
    assert [path.name for path in Path("mine/subset").iterdir()] == ["selected.jsonl"]
