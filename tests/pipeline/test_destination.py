"""Where subsets go: folders that open as one data set, and files that nobody replaces unasked."""

import json

import datasets
import pytest

import s2l_ray as s2l
from s2l_ray.errors import UserError
from tests import handmade
from tests.handmade import IDS, ROWS, changed, finish


@pytest.fixture(params=["jsonl", "parquet"])
def suffix(request):
    return request.param


@pytest.fixture
def tree(tmp_path, suffix):
    tree = changed(handmade.inputs(tmp_path / "test"), "selection.format", suffix)
    return changed(tree, "selection.baselines", ["random"])


@pytest.fixture
def run(tree) -> s2l.Run:
    return s2l.load(finish(tree, until="clusters").uri)


def opened(folder, tmp_path) -> list[dict]:
    """The rows that the library finds in a folder when it is told nothing else."""
    found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert set(found) == {"train"}
    return found["train"].to_list()


def expected(ids) -> list[dict]:
    return [row | {"example_id": row["id"]} for row in ROWS if row["id"] in set(ids)]


def test_each_subset_of_a_run_opens_as_one_data_set(run, tree, tmp_path):
    handmade.run(tree, until="selection")
    for budget in (4, 9):
        run.select(budget).write()

    assert opened(f"{run.path}/subset", tmp_path) == expected(run.select(6).ids)
    arm = f"{run.path}/arms/random-6-42/subset"
    assert opened(arm, tmp_path) == expected(run.select(6, "random").ids)
    assert (run.location / "subsets").names() == ["s2l-4-42", "s2l-9-42"]
    for budget in (4, 9):
        folder = f"{run.path}/subsets/s2l-{budget}-42"
        assert opened(folder, tmp_path) == expected(run.select(budget).ids)
    ranking = opened(f"{run.path}/selection", tmp_path)
    assert [row["rank"] for row in ranking] == list(range(len(IDS)))


@pytest.mark.parametrize("name", ["new", "sub/new-0.4", "there", "slash.d/"])
def test_a_folder_elsewhere_opens_as_one_data_set_too(run, tmp_path, suffix, name):
    (tmp_path / "there").mkdir()
    written = run.select(5).write(f"{tmp_path}/{name}")

    assert written == f"{tmp_path}/{name.rstrip('/')}/selected.{suffix}"
    assert opened(tmp_path / name, tmp_path) == expected(run.select(5).ids)


def test_a_folder_that_holds_the_other_format_is_refused(run, tmp_path, suffix):
    (tmp_path / "mine").mkdir()
    other = "parquet" if suffix == "jsonl" else "jsonl"
    (tmp_path / "mine" / f"selected.{other}").write_text("")

    with pytest.raises(UserError, match=f"holds selected.{other}, and would hold two data sets"):
        run.select(5).write(tmp_path / "mine")


def test_the_folder_of_a_subset_holds_one_format(run, tree, suffix):
    run.select(5).write()
    other = "parquet" if suffix == "jsonl" else "jsonl"
    again = s2l.load(finish(changed(tree, "selection.format", other), until="clusters").uri)
    again.select(5).write()

    assert (run.location / "subsets" / "s2l-5-42").names() == [f"selected.{other}"]


def test_a_file_with_another_content_is_replaced_only_when_asked_for(run, tmp_path, suffix):
    mine = tmp_path / f"mine.{suffix}"
    run.select(5).write(mine)
    before = mine.read_bytes(), mine.stat().st_mtime_ns

    run.select(5).write(mine)
    with pytest.raises(UserError, match=r"is there already, with another content.*--force"):
        run.select(6).write(mine)
    assert (mine.read_bytes(), mine.stat().st_mtime_ns) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

    run.select(6).write(mine, replace=True)
    run.select(6).write(tmp_path / f"fresh.{suffix}")
    assert mine.read_bytes() == (tmp_path / f"fresh.{suffix}").read_bytes() != before[0]


def test_a_subset_that_older_versions_wrote_stays_where_it_is(run):
    old = run.location / "subsets" / "s2l-5-42.jsonl"
    old.write_bytes(json.dumps(ROWS[0]).encode())
    run.select(5).write()

    assert old.read_bytes() == json.dumps(ROWS[0]).encode()


def test_a_new_subset_of_the_same_name_replaces_the_run_s_own(run, tree):
    before = run.location / run.select(5).write().removeprefix(f"{run.path}/")
    old = before.read_bytes()
    changed_order = changed(tree, "selection.stratify", False)
    again = s2l.load(finish(changed_order, until="clusters").uri)

    assert again.select(5).write() == before.uri
    assert before.read_bytes() != old
