"""Exports of runs made by hand: the folder, its rows, and what is refused."""

import json

import datasets
import pytest

import s2l_ray as s2l
from s2l_ray import cli
from s2l_ray.export.names import NAMES
from tests import handmade
from tests.command_line import refused
from tests.handmade import ROWS, changed, finish


@pytest.fixture
def tree(tmp_path):
    return handmade.inputs(tmp_path)


@pytest.fixture
def run(tree) -> s2l.Run:
    return s2l.load(finish(tree, until="clusters").uri)


def expected(ids) -> list[dict]:
    return [
        {"prompt": f"Q: {row['instruction']} A: ", "completion": "x", "example_id": row["id"]}
        for row in ROWS
        if row["id"] in set(ids)
    ]


def opened(path, tmp_path) -> list[dict]:
    found = datasets.load_dataset(str(path), split="train", cache_dir=str(tmp_path / "cache"))
    return [{key: row[key] for key in ("prompt", "completion", "example_id")} for row in found]


def test_an_export_is_the_run_s_own_subset_unless_a_budget_is_given(run, tmp_path):
    own = run.export("trl", tmp_path / "own")
    other = run.export("trl", tmp_path / "other", budget=0.5, method="random", seed=3)

    assert own.num_rows == 6 and other.num_rows == 15
    assert opened(own.path, tmp_path) == expected(run.select(6).ids)
    assert opened(other.path, tmp_path) == expected(run.select(15, "random", 3).ids)


@pytest.mark.parametrize("trainer", NAMES)
def test_the_folder_of_an_export_opens_as_one_data_set(run, tmp_path, trainer):
    done = run.export(trainer, tmp_path / "out")

    found = datasets.load_dataset(done.path, cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in found.items()} == {"train": 6}
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(done.files)
    assert done.command in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("trainer", NAMES)
def test_rows_are_read_again_and_not_kept(run, tmp_path, trainer, monkeypatch):
    """Each row of a batch is written before the next batch is made."""
    monkeypatch.setattr("s2l_ray.export.folder.ROWS_PER_BATCH", 4)
    small = run.export(trainer, tmp_path / "small", budget=1.0)
    monkeypatch.undo()
    large = run.export(trainer, tmp_path / "large", budget=1.0)

    rows = [
        datasets.load_dataset(done.path, split="train", cache_dir=str(tmp_path / "cache")).to_list()
        for done in (small, large)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == len(ROWS)


def test_chatml_is_exported_as_the_tokenizer_of_the_run_writes_it(tree, tmp_path):
    data = {key: value for key, value in tree["data"].items() if key != "template"}
    run = finish({**tree, "data": {**data, "chat_template": "chatml"}}, until="clusters")

    done = s2l.load(run.uri).export("trl", tmp_path / "out")

    text = (tmp_path / "out" / "chat_template.jinja").read_text()
    assert "<|im_start|>" in text and "eos_token" in text and "<|im_end|>" not in text
    assert done.notes == ()


def test_a_folder_that_holds_something_is_refused(run, tmp_path):
    (tmp_path / "mine").mkdir()
    assert run.export("trl", tmp_path / "mine").num_rows == 6
    with pytest.raises(s2l.UserError, match=r"mine is a folder with README.md.*new or empty"):
        run.export("trl", tmp_path / "mine")
    with pytest.raises(s2l.UserError, match=r"pool.jsonl is a file"):
        run.export("trl", tmp_path / "pool.jsonl")
    with pytest.raises(s2l.UserError, match="belongs to the run"):
        run.export("trl", f"{run.path}/clusters/trl")


def test_what_cannot_be_exported_is_refused(run, tree, tmp_path):
    with pytest.raises(s2l.UserError, match=r"trainer 'tlr' is unknown; did you mean 'trl'"):
        run.export("tlr", tmp_path / "out")
    for section in ("selection", "target", "evaluation"):
        tree = changed(tree, section, None)
    finish(tree, until="clusters")
    with pytest.raises(s2l.UserError, match="has no `selection`: give a budget"):
        s2l.load(run.path).export("trl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_without_rows_has_none_to_export(tree, tmp_path):
    (tmp_path / "losses.parquet").write_bytes(b"1")
    existing = {key: tree[key] for key in ("run_dir", "clusters", "selection")}
    existing["trajectories"] = {"path": str(tmp_path / "losses.parquet")}
    run = s2l.load(finish(existing, until="clusters").uri)
    with pytest.raises(s2l.UserError, match="has no `data`, so no rows to export"):
        run.export("trl", tmp_path / "out")


def test_the_command_writes_what_the_function_does(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run.export("llamafactory", tmp_path / "one", budget=9)
    arguments = ["export", run.path, "--budget", "9", "--to", "llamafactory", "two"]
    assert cli.main(arguments) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "rows      9, for LLaMA-Factory"
    assert lines[1].startswith("note      LLaMA-Factory writes the text around rows by its own")
    assert "written   two/selected.jsonl" in lines and lines[-1] == done.command
    assert (tmp_path / "two/selected.jsonl").read_bytes() == (
        tmp_path / "one/selected.jsonl"
    ).read_bytes()
    info = json.loads((tmp_path / "two/dataset_info.json").read_text())
    assert set(info) == {"selected"}
    assert "is a folder with" in refused(capsys, *arguments)
    assert "'mine' is not one of trl, axolotl" in refused(
        capsys, *[*arguments[:-2], "mine", "three"]
    )
