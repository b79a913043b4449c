"""Which files are input: not the run's own, not what programs leave beside rows, one split."""

import json
import os

import pytest

from s2l_ray.errors import DataError
from s2l_ray.storage import input_files
from s2l_ray.storage.location import Location
from s2l_ray.storage.splits import Split, split_of


@pytest.fixture
def tree(tmp_path):
    """Write these files below a folder, and return it."""

    def tree(*names, **contents):
        for name in names:
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            is_run = file.name == "run.json"
            file.write_text(json.dumps({"program": "s2l_ray" if is_run else "other"}))
        return tmp_path

    return tree


def listed(root, pattern="", **more):
    listing = input_files.list_files([f"{root}/{pattern}"], "data.train", **more)
    return [file.uri.removeprefix(f"{root}/") for file in listing.files], listing.notes


RUN = ("run.json", "config.json", "prepared/part-000000.parquet", "subset/selected.jsonl")


@pytest.mark.parametrize("pattern", ["", "**/*.json*", "**/*.jsonl", "runs/*/subset/*.jsonl"])
def test_nothing_below_run_dir_is_input(tree, pattern):
    mine = [f"runs/mine/{name}" for name in RUN]
    root = tree("a.jsonl", "deep/b.jsonl", *mine, "runs/other/subset/selected.jsonl")
    names, _ = listed(root, pattern, run=Location.of(root / "runs/mine"))
    assert names == [name for name in listed(root, pattern)[0] if not name.startswith("runs/mine")]
    assert names


def test_run_dir_behind_a_link_is_no_input_either(tree):
    root = tree("data/a.jsonl", "data/runs/mine/subset/selected.jsonl")
    (root / "link").symlink_to(root / "data/runs/mine")
    assert listed(root, "data", run=Location.of(root / "link"))[0] == ["data/a.jsonl"]


@pytest.mark.parametrize("pattern", ["", "**/*.jsonl", "**/subset/*.jsonl"])
def test_folders_of_other_runs_are_not_entered_on_the_way(tree, pattern):
    root = tree("a.jsonl", "subset/x.jsonl", *[f"runs/other/{name}" for name in RUN])
    assert all("runs" not in name for name in listed(root, pattern)[0])


def test_files_of_another_run_are_input_where_they_are_named(tree):
    root = tree(*[f"runs/other/{name}" for name in RUN])
    for pattern in ("runs/other/subset", "runs/other/subset/selected.jsonl", "runs/*/subset/*"):
        assert listed(root, pattern)[0] == ["runs/other/subset/selected.jsonl"]


def test_a_folder_with_a_file_run_json_of_another_program_is_entered(tree):
    root = tree("a/b.jsonl")
    (root / "a/run.json").write_text('{"program": "another"}')
    assert listed(root, "**/*.jsonl")[0] == ["a/b.jsonl"]


def test_a_whole_run_and_files_of_the_own_run_are_refused(tree):
    root = tree(*[f"runs/mine/{name}" for name in RUN])
    with pytest.raises(DataError, match=r"is the folder of a run\. .*subset/selected\.jsonl"):
        listed(root, "runs/mine")
    with pytest.raises(DataError, match="below run_dir"):
        listed(root, "runs/mine/subset/selected.jsonl", run=Location.of(root / "runs/mine"))


@pytest.mark.parametrize("pattern", ["runs/mine/inputs/a.jsonl", "runs/mine/inputs"])
def test_the_inputs_folder_of_the_own_run_is_read_where_it_is_named(tree, pattern):
    root = tree(*[f"runs/mine/{name}" for name in RUN], "runs/mine/inputs/a.jsonl", "b.jsonl")
    run = Location.of(root / "runs/mine")
    assert listed(root, pattern, run=run)[0] == ["runs/mine/inputs/a.jsonl"]
    assert listed(root, "**/*.jsonl", run=run)[0] == ["b.jsonl"]


def test_what_programs_leave_beside_rows_is_left_out(tree):
    root = tree(
        "a.json",
        "state.json",
        "_SUCCESS",
        "_temporary/0/part-0.json",
        "_metadata.json",
        ".part-0.json.crc",
        "part-0.json.crc",
        ".cache/b.json",
        "saved/data-00000-of-00001.arrow",
        "saved/state.json",
        "saved/dataset_info.json",
        "dict/dataset_dict.json",
        "hub/dataset_infos.json",
    )
    rows = ["a.json", "saved/data-00000-of-00001.arrow", "state.json"]
    assert listed(root)[0] == rows
    assert listed(root, "**/*.json")[0] == ["a.json", "state.json"]
    assert listed(root, "*")[0] == ["a.json", "state.json"]


def test_links_that_loop_end_and_no_file_comes_twice(tree):
    root = tree("d/a.jsonl", "d/e/b.jsonl")
    (root / "d/e/up").symlink_to(root / "d")
    (root / "d/self").symlink_to(root / "d/self")
    (root / "d/twin").symlink_to(root / "d/e")
    (root / "d/0.jsonl").symlink_to(root / "d/a.jsonl")
    for pattern in ("d", "d/**/*.jsonl", "**/*.jsonl"):
        assert listed(root, pattern)[0] == ["d/a.jsonl", "d/e/b.jsonl"]
    with pytest.raises(DataError, match=r"1 of 2 files are named more than once .*0\.jsonl"):
        input_files.expand([f"{root}/d/0.jsonl", f"{root}/d/a.jsonl"])


def test_a_snapshot_of_links_is_read_under_its_own_names(tree):
    root = tree("blobs/123", "blobs/456")
    (root / "snapshot").mkdir()
    os.symlink("../blobs/123", root / "snapshot/train.jsonl")
    os.symlink("../blobs/456", root / "snapshot/test.jsonl")
    assert listed(root, "snapshot")[0] == ["snapshot/train.jsonl"]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00002.parquet", Split("train", "train")),
        ("data/train_sft-00000-of-00002.parquet", Split("train_sft", "train")),
        ("imdb-test-00000-of-00001.arrow", Split("test", "test")),
        ("test.jsonl", Split("test", "test")),
        ("gsm8k.dev.jsonl.gz", None),
        ("gsm8k_dev.jsonl.gz", Split("dev", "validation")),
        ("validation/part-0.json", Split("validation", "validation")),
        ("train/data-00000-of-00001.arrow", Split("train", "train")),
        ("test/train.jsonl", Split("train", "train")),
        ("train_test_mix.jsonl", None),
        ("contest.jsonl", None),
        ("data-00000-of-00002.parquet", None),
        ("Training Data 2.csv", Split("training", "train")),
    ],
)
def test_names_of_files_tell_their_split(path, split):
    assert split_of(path) == split


HUB = ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet")
LAYOUTS = {
    "hub": (*HUB, "data/test-00000-of-00001.parquet", "README.md"),
    "files": ("train.jsonl", "test.jsonl", "notes.jsonl"),
    "folders": ("train/a.jsonl", "train/b.jsonl", "validation/a.jsonl"),
    "saved": ("train/data-00000-of-00001.arrow", "test/data-00000-of-00001.arrow"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_a_directory_with_several_splits_train_alone_is_read_and_it_is_said(tree, layout):
    root = tree(*LAYOUTS[layout])
    names, notes = listed(root)
    assert names == [name for name in LAYOUTS[layout] if "train" in name]
    [note] = notes
    assert "split train alone is read" in note and "left out" in note
    assert len(listed(root, split="all")[0]) == len(
        [n for n in LAYOUTS[layout] if "README" not in n]
    )


def test_another_split_is_read_where_it_is_asked_for(tree):
    root = tree("train.jsonl", "dev.jsonl", "test.jsonl")
    assert listed(root, split="test")[0] == ["test.jsonl"]
    assert listed(root, split="validation")[0] == listed(root, split="dev")[0] == ["dev.jsonl"]
    assert listed(root, "*.jsonl", split="test")[0] == ["test.jsonl"]
    assert listed(root, preferred=("test", "validation", "train"))[0] == ["test.jsonl"]
    with pytest.raises(DataError, match=r"no split 'held', but 3 others: dev, test, train"):
        listed(root, split="held")


def test_a_glob_and_a_directory_of_one_split_are_read_whole(tree):
    root = tree("train.jsonl", "test/a.jsonl", "test/b.jsonl")
    assert listed(root, "*.jsonl")[0] == ["train.jsonl"]
    assert listed(root, "**/*.jsonl")[0] == ["test/a.jsonl", "test/b.jsonl", "train.jsonl"]
    assert listed(root, "test") == (["test/a.jsonl", "test/b.jsonl"], [])


@pytest.mark.parametrize(
    "names",
    [
        ("test.jsonl", "validation.jsonl"),
        ("train_sft-00000-of-00001.parquet", "train_gen-00000-of-00001.parquet"),
    ],
)
def test_splits_without_one_that_is_meant_are_refused(tree, names):
    with pytest.raises(DataError, match=r"no split that is meant beyond doubt.*data\.split"):
        listed(tree(*names))


def test_shards_of_several_folders_are_read_and_it_is_said(tree):
    name = "train-00000-of-00001.parquet"
    names, notes = listed(tree(f"main/{name}", f"socratic/{name}"))
    assert len(names) == 2 and "(main, socratic)" in notes[0]


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("hf://org/name", ("org/name", None, "train")),
        ("hf://org/name:test", ("org/name", None, "test")),
        ("hf://org/name:main/test", ("org/name", "main", "test")),
    ],
)
def test_names_on_the_hub_have_a_configuration_and_a_split(uri, parts):
    assert input_files.hub_name(uri) == parts
    assert input_files.list_files([uri], split="dev").files[0].uri == (
        uri if ":" in uri.removeprefix("hf://") else f"{uri}:dev"
    )


@pytest.mark.parametrize("pattern", ["", "*.jsonl", "**/*.jsonl", "b.jsonl", "pipe.jsonl"])
def test_a_link_to_nothing_and_a_pipe_are_not_left_out_in_silence(tree, pattern):
    root = tree("a.jsonl")
    if pattern == "pipe.jsonl":
        os.mkfifo(root / pattern)
    else:
        (root / "b.jsonl").symlink_to(root / "gone.jsonl")
    with pytest.raises(DataError, match=r"1 of [12] are links .*\.jsonl\)\. Restore"):
        listed(root, pattern)


def test_a_link_to_nothing_that_is_no_data_is_passed_by(tree):
    root = tree("a.jsonl")
    (root / "notes.txt").symlink_to(root / "gone.txt")
    (root / ".hidden.jsonl").symlink_to(root / "gone.txt")
    assert listed(root)[0] == ["a.jsonl"]


def test_a_name_that_is_not_utf_8_is_an_error_of_the_user(tree):
    root = tree("a.jsonl")
    with open(os.path.join(os.fsencode(root), b"b\xff.jsonl"), "wb"):
        pass
    with pytest.raises(DataError, match=r"1 of 2 names .* not UTF-8 \(first: b'b.xff"):
        listed(root)
