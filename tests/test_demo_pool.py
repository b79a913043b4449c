"""The demo's pool: the same rows everywhere, rare tasks rare, nothing held out is trained on."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from s2l_ray import demo
from s2l_ray.errors import ConfigError


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    pytest.importorskip("reasoning_gym", reason='needs pip install "s2l-ray[demo]"')
    directory = tmp_path_factory.mktemp("pool")
    demo.write_pool(directory, seed=7)
    return directory


def test_task_frequencies_fall_like_one_over_rank(pool):
    counts = Counter(row["source"] for row in read(pool / "train.jsonl"))
    expected = dict(zip((task.name for task in demo.TASKS), demo.train_counts(), strict=True))
    assert counts == expected
    assert abs(sum(counts.values()) - demo.NUM_TRAIN) <= len(demo.TASKS) / 2
    assert max(counts.values()) > 20 * min(counts.values())


def test_every_task_is_held_out_equally_often(pool):
    counts = Counter(row["source"] for row in read(pool / "eval.jsonl"))
    assert counts == {task.name: demo.NUM_EVAL_PER_TASK for task in demo.TASKS}


def test_no_instruction_and_no_id_occurs_twice(pool):
    rows = read(pool / "train.jsonl") + read(pool / "eval.jsonl")
    for name in ("instruction", "id"):
        assert len({row[name] for row in rows}) == len(rows)


def test_every_output_ends_with_the_answer(pool):
    for row in read(pool / "train.jsonl") + read(pool / "eval.jsonl"):
        assert set(row) == {"instruction", "output", "answer", "source", "id"}
        assert row["answer"].strip() == row["answer"] != ""
        assert row["output"].endswith(f" The answer is {row['answer']}.")


def test_another_process_writes_the_same_pool(pool, tmp_path):
    code = "import sys; from pathlib import Path; from s2l_ray.demo import write_pool; "
    code += "write_pool(Path(sys.argv[1]), seed=7)"
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    for name in ("train.jsonl", "eval.jsonl"):
        assert (tmp_path / name).read_bytes() == (pool / name).read_bytes()


def test_another_seed_writes_another_pool(pool, tmp_path):
    demo.write_pool(tmp_path, seed=2**40)
    rows, others = read(pool / "train.jsonl"), read(tmp_path / "train.jsonl")
    assert {row["source"] for row in rows} == {row["source"] for row in others}
    shared = {row["instruction"] for row in rows} & {row["instruction"] for row in others}
    assert len(shared) < len(rows) / 2


def test_the_tokenizer_loads_and_gives_the_text_back(pool, tmp_path):
    transformers = pytest.importorskip("transformers")
    from s2l_ray.models import tokenizers

    demo.write_tokenizer(pool / "train.jsonl", tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    rows = read(pool / "eval.jsonl")
    texts = [f"{row['instruction']}\n{row['output']}" for row in rows] + ["Zoë → 漢字 🙂"]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]

    assert [tokenizer.decode(row) for row in ids] == texts
    assert len(tokenizer) == demo.VOCAB_SIZE
    assert (tokenizer.eos_token, tokenizer.pad_token) == (tokenizers.EOS, tokenizers.PAD)
    assert tokenizer.chat_template is None
    assert sum(map(len, ids)) / len(ids) < 60
    assert len(tokenizer("2718", add_special_tokens=False)["input_ids"]) == 4


def test_the_tokenizer_is_the_same_every_time(pool, tmp_path):
    pytest.importorskip("transformers")
    for name in ("a", "b"):
        demo.write_tokenizer(pool / "train.jsonl", tmp_path / name)
    one, other = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("a", "b"))
    assert one == other


def test_without_reasoning_gym_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match=r'pip install "s2l-ray\[demo\]"'):
        demo.write_pool(tmp_path, seed=0)
