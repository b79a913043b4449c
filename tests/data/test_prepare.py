"""Prepare: every input row ends in its part or among the rejected ones, whoever does the work."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ray import hashing
from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import Parts, original_rows
from s2l_ray.config.data import DataConfig, FieldNames
from s2l_ray.data import prepare
from s2l_ray.data.compared_tables import NAMES
from s2l_ray.data.examples import REASONS
from s2l_ray.data.part_tokeniser import PartTokeniser
from s2l_ray.data.raw_parts import FileCutter
from s2l_ray.data.slices import slices
from s2l_ray.errors import DataError
from s2l_ray.progress import Progress
from s2l_ray.storage.input_files import expand
from s2l_ray.storage.location import Location
from tests import tiny

TEMPLATE = "Q: {prompt} A: "
EOS_ID = 256


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def template(tmp_path):
    (tmp_path / "template.txt").write_text(TEMPLATE)
    return str(tmp_path / "template.txt")


def row(number, **changes):
    return {"instruction": f"say {number}", "output": f"it is {number}"} | changes


def jsonl(path, rows):
    """Every row one line; bytes are a line as it is."""
    lines = [item if isinstance(item, bytes) else json.dumps(item).encode() for item in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(path)


def settings(template="alpaca", **changes):
    usual = {"rows_per_part": 4, "template": template, "max_tokens": 64, "max_rejected": 1.0}
    return DataConfig(**{"train": ["unused"], **usual, **changes})


def prepare_here(folder, paths, config, tokenizer=None, *, num_workers=1, pool=None, dropping=None):
    """The stage as its workers do it, in this process: the last unit first, taken in turns."""
    files, staged = expand(paths), Location.of(folder) / "staged"
    cutters = [FileCutter(staged, config.fields, config.rows_per_part) for _ in range(num_workers)]
    cut = [
        cutters[number % num_workers](unit)
        for number, unit in reversed(list(enumerate(prepare.cutting_units(files))))
    ]
    parts = prepare.raw_parts(cut[::-1])
    workers = [PartTokeniser(Location.of(folder), config, tokenizer) for _ in range(num_workers)]
    results = {}
    units = prepare.tokenising_units(files, parts, staged, pool)
    units = dropping(units) if dropping else units
    for number, unit in reversed(list(enumerate(units))):
        results[number] = workers[number % num_workers](unit)
    in_order = [results[number] for number in range(len(parts))]
    prepare.merge_rejected(Location.of(folder), len(parts))
    summary = prepare.summarise(in_order, tokenizer)
    prepare.check_rejected(summary, in_order, config.max_rejected, Location.of(folder))
    return summary


def tables(folder, prefix="part"):
    return list(Parts(Location.of(folder), prefix).tables())


def all_rows(folder, prefix="part"):
    return [item for table in tables(folder, prefix) for item in table.to_pylist()]


def rejected(folder):
    found = (Location.of(folder) / "rejected.parquet").read_table().to_pylist()
    return [(item["file"], item["row"], item["reason"]) for item in found]


def part_bytes(folder):
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.suffix == ".parquet"
    }


BAD = {
    2: (b'{"instruction": "half', "malformed JSON"),
    3: (b'{"instruction": "\xff", "output": "x"}', "invalid UTF-8"),
    5: ({"instruction": "no answer"}, "missing field"),
    6: (row(6, output="  "), "empty field"),
    7: (row(7, output=7), "wrong type"),
    8: (b"[1, 2]", "wrong type"),
    9: (row(9, instruction="x" * 70), "no response tokens left"),
    10: (b'{"instruction": "\\ud83d", "output": "x"}', "invalid UTF-8"),
    12: (row(12, id="one"), "duplicate id"),
    13: (row(13, id=True), "wrong type"),
}
POOL = [BAD[i][0] if i in BAD else row(i) for i in range(19)]
POOL[1] = row(1, id="one")


@pytest.mark.parametrize("rows_per_part", [1, 4, 7, 100])
def test_every_row_is_in_the_part_of_its_place_or_rejected_with_a_reason(
    tmp_path, template, tokenizer, rows_per_part
):
    path = jsonl(tmp_path / "pool.jsonl", POOL)
    config = settings(template, rows_per_part=rows_per_part)
    summary = prepare_here(tmp_path / "out", [path], config, tokenizer)

    good = [number for number in range(len(POOL)) if number not in BAD]
    assert rejected(tmp_path / "out") == [(path, i, reason) for i, (_, reason) in BAD.items()]
    of_templates = {"refused by the template", "changed by the template", "no learned turn"}
    assert {reason for _, reason in BAD.values()} == set(REASONS) - of_templates
    assert summary["rejected"] == Counter(reason for _, reason in BAD.values())
    assert (summary["rows"], summary["kept"]) == (19, 9)
    starts = range(0, 19, rows_per_part)
    expected = [[i for i in good if start <= i < start + rows_per_part] for start in starts]
    assert [table["row"].to_pylist() for table in tables(tmp_path / "out", "rows")] == expected
    assert summary["rows_per_part"] == [len(numbers) for numbers in expected]
    ids = [[item["example_id"] for item in all_rows(tmp_path / "out", k)] for k in ("part", "rows")]
    assert ids[0] == ids[1]
    assert [item["file"] for item in all_rows(tmp_path / "out", "rows")] == [path] * len(good)


def test_tokens_are_those_of_template_response_and_end(tmp_path, template, tokenizer):
    rows = [row(0, source="a"), row(1, instruction="käse", source="b"), row(2, output="y" * 99)]
    path = jsonl(tmp_path / "pool.jsonl", rows)
    summary = prepare_here(tmp_path / "out", [path], settings(template), tokenizer)

    found = all_rows(tmp_path / "out")
    for item, original in zip(found, rows, strict=True):
        prompt = TEMPLATE.replace("{prompt}", original["instruction"]).encode()
        expected = [*prompt, *original["output"].encode(), EOS_ID][:64]
        assert item["input_ids"] == expected
        assert (item["num_prompt_tokens"], item["num_tokens"]) == (len(prompt), len(expected))
    assert [item["stratum"] for item in found] == ["a", "b", ""]
    assert summary["strata"] == {"": 1, "a": 1, "b": 1}
    assert summary["cut"] == 1
    assert summary["tokens"] == sum(len(item["input_ids"]) for item in found)
    assert summary["prompt_tokens"] == sum(item["num_prompt_tokens"] for item in found)


def test_ids_come_from_the_field_or_from_the_content_and_its_occurrence(tmp_path):
    same = row(0, note="not trained on")
    rows = [row(0), row(1, id=7), same, row(1), row(0, source="s"), row(0), row(0, input="c")]
    path = jsonl(tmp_path / "pool.jsonl", rows)
    summary = prepare_here(tmp_path / "out", [path], settings(rows_per_part=2))

    ids = [item["example_id"] for item in all_rows(tmp_path / "out")]
    assert ids[1] == "7"
    assert (ids[2], ids[5]) == (f"{ids[0]}-1", f"{ids[0]}-2")
    assert all(len(ids[i]) == 32 and int(ids[i], 16) for i in (0, 3, 4, 6))
    assert len(set(ids)) == len(ids)
    assert (summary["kept"], summary["duplicates"]) == (7, 2)
    assert list(original_rows(tables(tmp_path / "out", "rows")[1])) == rows[2:4]

    backwards = jsonl(tmp_path / "backwards.jsonl", rows[::-1])
    prepare_here(tmp_path / "again", [backwards], settings(rows_per_part=3))
    assert sorted(item["example_id"] for item in all_rows(tmp_path / "again")) == sorted(ids)


def test_a_repeated_id_is_rejected_in_any_later_file_whatever_its_content(tmp_path):
    one = jsonl(tmp_path / "one.jsonl", [row(0, id="x"), row(1, id=5), row(2, id="")])
    two = jsonl(tmp_path / "two.jsonl", [row(3, id="5"), row(2, id=None), row(0, id="x")])
    summary = prepare_here(tmp_path / "out", [one, two], settings())
    assert rejected(tmp_path / "out") == [(two, 0, "duplicate id"), (two, 2, "duplicate id")]
    assert (summary["kept"], summary["duplicates"]) == (4, 1)


def test_only_duplicates_that_are_kept_are_counted(tmp_path, template, tokenizer):
    long = row(0, instruction="x" * 70)
    path = jsonl(tmp_path / "pool.jsonl", [long, row(1), long, row(1)])
    summary = prepare_here(tmp_path / "out", [path], settings(template), tokenizer)
    assert (summary["kept"], summary["duplicates"]) == (2, 1)


def test_chat_rows_of_either_shape_become_the_same_examples(tmp_path, template, tokenizer):
    turns = [("system", "be kind"), ("user", "hello"), ("assistant", "hi")]
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    messages = [{"role": role, "content": text} for role, text in turns]
    sharegpt = [{"from": names[role], "value": text} for role, text in turns]
    unanswered = messages[:2]
    path = jsonl(
        tmp_path / "pool.jsonl",
        [{"talk": talk, "source": "s"} for talk in (messages, sharegpt, unanswered)],
    )
    config = settings(template, fields=FieldNames(messages="talk"))
    prepare_here(tmp_path / "out", [path], config, tokenizer)

    first, second = all_rows(tmp_path / "out")
    assert second["example_id"] == f"{first['example_id']}-1"
    assert first["input_ids"] == second["input_ids"]
    assert bytes(first["input_ids"][first["num_prompt_tokens"] : -1]) == b"hi"
    assert rejected(tmp_path / "out") == [(path, 2, "missing field")]
    assert [item["talk"] for item in original_rows(tables(tmp_path / "out", "rows")[0])] == [
        messages,
        sharegpt,
    ]


def test_messages_that_rows_lost_are_counted_in_notes(tmp_path, template, tokenizer):
    turns = [("system", " "), ("user", "hello"), ("assistant", "hi"), ("user", "bye")]
    talk = [{"role": role, "content": text} for role, text in turns]
    path = jsonl(tmp_path / "pool.jsonl", [{"talk": talk}, {"talk": talk}, {"talk": talk[1:3]}])
    config = settings(template, fields=FieldNames(messages="talk"), rows_per_part=1)

    summary = prepare_here(tmp_path / "out", [path], config, tokenizer)

    assert summary["notes"] == [
        "2 messages after the last answer left out",
        "2 system messages without text left out",
        "2 of the rows kept repeat an earlier one; data.near_duplicates: drop would leave them out",
    ]
    assert bytes(all_rows(tmp_path / "out")[0]["input_ids"][:-1]) == b"Q: hello A: hi"


def test_without_a_tokenizer_rows_and_ids_are_kept_and_tokens_are_empty(
    tmp_path, template, tokenizer
):
    rows = [row(0), row(0), row(1, id="a"), row(2, id="a")]
    path = jsonl(tmp_path / "pool.jsonl", rows)
    prepare_here(tmp_path / "with", [path], settings(template), tokenizer)
    summary = prepare_here(tmp_path / "without", [path], settings(template))
    [full], [bare] = tables(tmp_path / "with"), tables(tmp_path / "without")
    assert bare["example_id"].equals(full["example_id"])
    assert bare["input_ids"].to_pylist() == [[], [], []]
    assert bare["num_tokens"].to_pylist() == bare["num_prompt_tokens"].to_pylist() == [0, 0, 0]
    assert tables(tmp_path / "with", "rows")[0].equals(tables(tmp_path / "without", "rows")[0])
    assert (summary["tokens"], summary["tokenizer"]) == (0, None)


def test_a_file_in_slices_gives_the_rows_of_the_whole_file(
    tmp_path, template, tokenizer, monkeypatch
):
    path = jsonl(tmp_path / "pool.jsonl", [b"", *POOL, b"  ", *POOL, row(0)])
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    of_whole = prepare_here(whole, [path], settings(template), tokenizer)
    monkeypatch.setattr(prepare, "slices", lambda file: slices(file, 300))
    of_cut = prepare_here(cut, [path], settings(template), tokenizer)

    assert len(slices(*expand([path]), 300)) > 4
    assert all_rows(cut) == all_rows(whole)
    for read in (original_rows, lambda table: table.select(NAMES.names).to_pylist()):
        of_both = [[r for t in tables(out, "rows") for r in read(t)] for out in (cut, whole)]
        assert of_both[0] == of_both[1]
    assert rejected(cut) == rejected(whole) and rejected(cut)[-1][1] > len(POOL)
    assert of_cut | {"rows_per_part": []} == of_whole | {"rows_per_part": []}
    assert sum(of_cut["rows_per_part"]) == sum(of_whole["rows_per_part"])


def test_the_same_files_come_out_of_one_worker_and_of_two(tmp_path, template, tokenizer):
    one = jsonl(tmp_path / "one.jsonl", POOL)
    two = jsonl(tmp_path / "two.jsonl", POOL[::-1])
    config = settings(template, rows_per_part=3)
    alone = prepare_here(tmp_path / "alone", [one, two], config, tokenizer)
    shared = prepare_here(tmp_path / "shared", [one, two], config, tokenizer, num_workers=2)
    assert shared == alone
    assert part_bytes(tmp_path / "shared") == part_bytes(tmp_path / "alone")


@given(st.lists(st.tuples(*[st.sampled_from([0, 1, 2**63, 2**64 - 1])] * 2), max_size=40))
def test_an_occurrence_is_the_number_of_equal_rows_before(digests):
    seen, expected = Counter(), []
    for digest in digests:
        expected.append(seen[digest])
        seen[digest] += 1
    digest_N2 = np.array(digests, np.uint64).reshape(-1, 2)
    assert hashing.occurrences(digest_N2).tolist() == expected


def run(folder, paths, config, tokenizer):
    out = StageDir(Location.of(folder), "prepare", {"data.train": "the same"})
    out.begin()
    with Progress("prepare") as progress:
        return out.finish(
            prepare.run(config, expand(paths), tokenizer, out, progress=progress), seconds=1.0
        )


def times(folder):
    kinds = ("part-", "rows-")
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.name.startswith(kinds)}


@pytest.mark.ray
def test_a_raised_limit_goes_on_from_the_work_that_is_there(
    tmp_path, template, tokenizer, ray_cluster
):
    paths = [jsonl(tmp_path / f"{n}.jsonl", POOL[n::2]) for n in range(2)]
    strict, tolerant = (settings(template, max_rejected=share) for share in (0.1, 0.6))
    with pytest.raises(DataError, match="10 of 19 rows"):
        run(tmp_path / "out", paths, strict, tokenizer)
    before = times(tmp_path / "out")
    assert len(before) == 12 and not (tmp_path / "out" / "_manifest.json").exists()
    assert len(rejected(tmp_path / "out")) == 10

    manifest = run(tmp_path / "out", paths, tolerant, tokenizer)
    assert times(tmp_path / "out") == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [*before, "_manifest.json", "rejected.parquet"]
    )
    assert manifest.summary == prepare_here(tmp_path / "here", paths, tolerant, tokenizer)
    assert part_bytes(tmp_path / "out") == part_bytes(tmp_path / "here")


@pytest.mark.ray
def test_an_empty_pool_is_refused(tmp_path, ray_cluster):
    path = jsonl(tmp_path / "pool.jsonl", [])
    with pytest.raises(DataError, match=r"no rows in 1 file\(s\) \(.*pool\.jsonl\)"):
        run(tmp_path / "out", [path], settings(), None)


@pytest.mark.ray
def test_a_tokenizer_may_lie_on_an_object_store(tmp_path, s3_bucket):
    tiny.tokenizer().save_pretrained(tmp_path / "tokenizer")
    place = Location.of(f"{s3_bucket}/checkpoints/step-000005")
    place.upload(tmp_path / "tokenizer")

    worker = PartTokeniser(Location.of(tmp_path), DataConfig(train=["unused"]), place.uri)
    assert worker.tokenizer.encode("a b") == tiny.tokenizer().encode("a b")


def test_an_answer_is_no_matter_of_the_pool(tmp_path):
    rows = [row(0, answer=["a", "list"]), row(1, answer=3), row(2, answer=True)]
    summary = prepare_here(tmp_path / "out", [jsonl(tmp_path / "pool.jsonl", rows)], settings())
    assert summary["kept"] == 3 and rejected(tmp_path / "out") == []
