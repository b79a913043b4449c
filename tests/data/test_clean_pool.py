"""Rows that hold evaluation prompts, and rows that nearly repeat others, are listed or dropped."""

from functools import partial

import pyarrow.parquet as pq
import pytest

from s2l_ray.artifacts.tables import Parts
from s2l_ray.data import clean_pool, prepare
from s2l_ray.data.slices import slices
from s2l_ray.errors import DataError
from s2l_ray.progress import Progress
from s2l_ray.storage.input_files import expand
from s2l_ray.storage.location import Location
from tests.data.test_contamination import OTHER, QUESTION
from tests.data.test_prepare import all_rows, jsonl, prepare_here, row, settings

LONG = [
    f"The {n}th story is about a {animal} that lived near a {place} and liked to {verb} all day "
    f"long, until one morning in {month} everything changed for it and for its {n} friends."
    for n, (animal, place, verb, month) in enumerate(
        [
            ("fox", "river", "swim", "May"),
            ("cat", "wood", "sleep", "June"),
            ("owl", "barn", "watch mice", "July"),
            ("emu", "desert", "run around", "March"),
        ]
    )
]


def story(number, **changes):
    return row(number, **{"output": LONG[number], **changes})


def in_turns(num_workers, worker, units, **constructor):
    """The units done here by several workers, the last unit first."""
    workers = [worker(**constructor) for _ in range(num_workers)]
    for number, unit in reversed(list(enumerate(units))):
        yield workers[number % num_workers](unit)


def held_out(tmp_path, **prompts):
    """Evaluation sets with these prompts."""
    return {
        name: expand(
            [jsonl(tmp_path / f"{name}.jsonl", [row(0, instruction=text) for text in texts])]
        )
        for name, texts in prompts.items()
    }


def prepared(folder, path, config, sets=None, *, num_workers=1, pool=None):
    """The stage in this process; the summary with that of its lists."""
    folder.mkdir(exist_ok=True)
    where, summaries = Location.of(folder), []

    def dropping(units):
        found, summary = clean_pool.drop(
            config,
            sets or {},
            units,
            where,
            partial(in_turns, num_workers),
            progress=Progress("prepare"),
            pool=pool,
        )
        summaries.append(summary)
        return found

    summary = prepare_here(
        folder, [path], config, num_workers=num_workers, pool=pool, dropping=dropping
    )
    lists = clean_pool.report(
        config,
        sets or {},
        where,
        partial(in_turns, num_workers),
        progress=Progress("prepare"),
        pool=pool,
    )
    return {**summary, **summaries[0], **lists}


def table(folder, name):
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def kept(folder):
    return [item["row"] for item in all_rows(folder, "rows")]


POOL = [
    row(0),
    row(1, instruction=QUESTION, id="mine"),
    row(2, output=f"They ask: {OTHER} I do not know."),
    b"{not JSON",
    row(4, instruction=QUESTION.replace("ducks", "hens")),
    row(5, instruction="Name a BIRD"),
    row(6),
]
FOUND = [
    (1, "gsm8k", 1, "same prompt"),
    (2, "gsm8k", 0, "overlap"),
    (4, "gsm8k", 1, "overlap"),
    (5, "birds", 0, "same prompt"),
]


@pytest.fixture
def sets(tmp_path):
    return held_out(tmp_path, gsm8k=[OTHER, QUESTION, QUESTION.lower()], birds=["Name a bird."])


@pytest.fixture
def path(tmp_path):
    return jsonl(tmp_path / "pool.jsonl", POOL)


@pytest.fixture(params=[None, 300], ids=["whole", "in slices"])
def slice_bytes(request, monkeypatch):
    """The input file as one slice, or as several."""
    if request.param:
        monkeypatch.setattr(prepare, "slices", partial(slices, slice_bytes=request.param))
    return request.param


@pytest.mark.usefixtures("slice_bytes")
@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize("mode", ["report", "drop"])
def test_rows_with_prompts_are_listed_and_counted(tmp_path, sets, path, mode, num_workers):
    config = settings(decontaminate=mode, eval={"gsm8k": "g", "birds": "b"}, rows_per_part=2)
    summary = prepared(tmp_path / "out", path, config, sets, num_workers=num_workers)

    lines = table(tmp_path / "out", "contaminated")
    assert [(i["row"], i["set"], i["eval_row"], i["kind"]) for i in lines] == FOUND
    assert {item["file"] for item in lines} == {path}
    assert lines[1]["share"] == 1.0 and 0.5 < lines[2]["share"] < 1.0
    assert summary["contamination"] == {
        "rows": 4,
        "sets": {
            "gsm8k": {"prompts": 2, "found": 2, "same_prompt": 1, "overlap": 2},
            "birds": {"prompts": 1, "found": 1, "same_prompt": 1, "overlap": 0},
        },
    }
    assert (
        "4 row(s) are like a prompt of an evaluation set (gsm8k 3, birds 1)" in summary["notes"][0]
    )
    ids = {item["row"]: item["example_id"] for item in all_rows(tmp_path / "out", "rows")}
    expected = [ids[number] for number, *_ in FOUND] if mode == "report" else [None] * 4
    assert [item["example_id"] for item in lines] == expected
    assert not (tmp_path / "out" / "staged" / "listed").exists()


def test_dropped_rows_are_rejected_and_counts_add_up(tmp_path, sets, path):
    config = settings(decontaminate="drop", eval={"gsm8k": "g"}, rows_per_part=3, max_rejected=0.2)
    summary = prepared(tmp_path / "out", path, config, sets)

    assert kept(tmp_path / "out") == [0, 6]
    assert summary["rejected"] == {"in an evaluation set": 4, "malformed JSON": 1}
    assert summary["rows"] == summary["kept"] + sum(summary["rejected"].values()) == 7
    excerpts = {i["row"]: i["excerpt"] for i in table(tmp_path / "out", "rejected")}
    uri = sets["gsm8k"][0].uri
    assert excerpts[1].startswith(f"the prompt of {uri} row 1 (from 0), gsm8k: ")
    assert excerpts[2].startswith(f"100% of the prompt of {uri} row 0 (from 0), gsm8k: ")


def test_a_list_changes_nothing_in_the_pool(tmp_path, sets, path):
    for name, mode in (("listed", "report"), ("plain", "off")):
        config = settings(decontaminate=mode, eval={"gsm8k": "g"}, near_duplicates=mode)
        prepared(tmp_path / name, path, config, sets)
    for file in sorted((tmp_path / "plain").glob("*.parquet")):
        assert file.read_bytes() == (tmp_path / "listed" / file.name).read_bytes()
    assert not (tmp_path / "plain" / "contaminated.parquet").exists()


def test_a_pool_that_is_an_evaluation_set_is_refused(tmp_path):
    path = jsonl(tmp_path / "pool.jsonl", [row(0), row(1), b"{"])
    config = settings(decontaminate="drop", eval={"same": "s"})
    sets = held_out(tmp_path, same=["say 0", "say 1"])
    with pytest.raises(DataError, match=r"no row is left\. 2 of 3 hold a prompt of an evaluation"):
        prepared(tmp_path / "out", path, config, sets)


def test_rows_of_a_set_that_cannot_be_used_are_worth_a_note(tmp_path, path):
    file = jsonl(tmp_path / "odd.jsonl", [{"question": "?"}, b"{", row(0, instruction=QUESTION)])
    config = settings(eval={"odd": file})
    summary = prepared(tmp_path / "out", path, config, {"odd": expand([file])})
    assert summary["contamination"]["sets"]["odd"]["found"] == 1
    assert "2 row(s) of data.eval.odd cannot be used" in summary["notes"][1]


REPEATING = [
    story(0),
    story(1, id="b"),
    story(0, output=LONG[0].replace("river", "lake")),
    row(1, output=LONG[1].upper(), id="c"),
    story(2),
    story(1, id="b"),
    story(3),
    story(0),
]
REPEATS = [(2, 0), (3, 1), (7, 0)]


@pytest.mark.usefixtures("slice_bytes")
@pytest.mark.parametrize("num_workers", [1, 3])
def test_repeating_rows_are_dropped_with_the_first_one_named(tmp_path, num_workers):
    path = jsonl(tmp_path / "pool.jsonl", REPEATING)
    config = settings(near_duplicates="drop", rows_per_part=2, max_rejected=0.2)
    summary = prepared(tmp_path / "out", path, config, num_workers=num_workers)

    assert kept(tmp_path / "out") == [0, 1, 4, 6]
    assert summary["rejected"] == {"duplicate id": 1, "near duplicate": 3}
    excerpts = {i["row"]: i["excerpt"] for i in table(tmp_path / "out", "rejected")}
    for number, first in REPEATS:
        assert excerpts[number].startswith(f"repeats {path} row {first} (from 0), similarity ")


@pytest.mark.parametrize("num_workers", [1, 3])
def test_repeating_rows_are_listed_with_the_first_one(tmp_path, num_workers):
    path = jsonl(tmp_path / "pool.jsonl", REPEATING)
    config = settings(near_duplicates="report", rows_per_part=2)
    summary = prepared(tmp_path / "out", path, config, num_workers=num_workers)

    lines = table(tmp_path / "out", "near_duplicates")
    ids = {item["row"]: item["example_id"] for item in all_rows(tmp_path / "out", "rows")}
    assert [(i["row"], i["first_row"]) for i in lines] == REPEATS
    assert [(i["example_id"], i["first_example_id"]) for i in lines] == [
        (ids[number], ids[first]) for number, first in REPEATS
    ]
    assert summary["near_duplicates"] == {"rows": 3, "repeated": 2}
    assert summary["kept"] == 7


def test_no_row_is_dropped_for_repeating_one_that_holds_a_prompt(tmp_path):
    near = "Three friends say: " + LONG[0]
    path = jsonl(tmp_path / "pool.jsonl", [row(0, output=QUESTION + LONG[0]), row(0, output=near)])
    sets = held_out(tmp_path, gsm8k=[QUESTION])
    config = settings(decontaminate="drop", near_duplicates="drop", eval={"gsm8k": "g"})
    summary = prepared(tmp_path / "out", path, config, sets)
    assert kept(tmp_path / "out") == [1]
    assert summary["rejected"] == {"in an evaluation set": 1}


@pytest.mark.parametrize("mode", ["report", "drop"])
def test_new_rows_that_nearly_repeat_the_pool_are_found(tmp_path, mode):
    off = settings(rows_per_part=2)
    prepared(tmp_path / "pool", jsonl(tmp_path / "old.jsonl", [story(0), story(1)]), off)
    new = [story(1), story(2), story(0, output=LONG[0].replace("river", "lake"))]
    pool = Parts(Location.of(tmp_path / "pool"))
    path = jsonl(tmp_path / "new.jsonl", new)
    config = settings(near_duplicates=mode, rows_per_part=2)
    summary = prepared(tmp_path / "out", path, config, pool=pool)

    assert summary["known"] == 1
    if mode == "drop":
        assert (kept(tmp_path / "out"), summary["rejected"]) == ([1], {"near duplicate": 1})
        return
    [line] = table(tmp_path / "out", "near_duplicates")
    [old, _] = all_rows(tmp_path / "pool", "rows")
    assert (line["row"], line["first_file"]) == (2, str(tmp_path / "old.jsonl"))
    assert line["first_example_id"] == old["example_id"]
