"""The target stage: tokens of the selected rows, and the model that comes out."""

import json

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.config.data import DataConfig
from s2l_ray.config.training import TargetConfig
from s2l_ray.errors import DataError
from s2l_ray.progress import Progress
from s2l_ray.storage.location import Location
from s2l_ray.training import loop, target
from s2l_ray.training.batches import TrainingPlan
from s2l_ray.training.token_parts import TokenParts
from tests import tiny

ROWS = [
    {
        "instruction": f"add {i} and 1",
        "output": f"it is {i + 1}",
        "notes": [i],
        "example_id": f"e{i}",
    }
    for i in range(20)
]


@pytest.fixture
def cluster(ray_cluster, monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")


@pytest.fixture
def template(tmp_path):
    (tmp_path / "template.txt").write_text("Q: {prompt} A: ")
    return str(tmp_path / "template.txt")


def selected_jsonl(tmp_path, rows=ROWS):
    place = Location.of(tmp_path) / "selected.jsonl"
    place.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode())
    return place


def data(template, **changes):
    usual = {"train": ["unused"], "template": template, "rows_per_part": 8, "max_tokens": 64}
    return DataConfig(**{**usual, **changes})


def test_rows_of_either_format_become_the_same_tokens(tmp_path, template):
    model = str(tiny.save(tmp_path / "model"))
    as_jsonl = selected_jsonl(tmp_path)
    as_parquet = Location.of(tmp_path) / "selected.parquet"
    own = {key: [row[key] for row in ROWS] for key in ROWS[0] if key != "example_id"}
    ids = [row["example_id"] for row in ROWS]
    as_parquet.write_table(pa.table({**own, "example_id": ids}))

    tables = []
    for selected in (as_jsonl, as_parquet):
        tokens = Location.of(tmp_path) / f"tokens-{selected.name}"
        assert target.tokenise(selected, tokens, data(template), model) == (20, [])
        tables.append([(tokens / name).read_table() for name in tokens.names()])

    assert list(target.selected_rows(as_parquet)) == list(target.selected_rows(as_jsonl))
    assert [part.num_rows for part in tables[0]] == [8, 8, 4]
    assert all(one.equals(other) for one, other in zip(*tables, strict=True))
    first = tables[0][0].to_pylist()[0]
    text = AutoTokenizer.from_pretrained(model).decode(first["input_ids"])
    assert first["example_id"] == "e0" and text == f"Q: add 0 and 1 A: it is 1{tiny.EOS}"
    assert first["num_prompt_tokens"] == len("Q: add 0 and 1 A: ")
    assert first["num_tokens"] == len(first["input_ids"])


def test_rows_without_response_tokens_are_named_or_refused(tmp_path, template):
    model = str(tiny.save(tmp_path / "model"))
    long = {"instruction": "x" * 70, "output": "y", "example_id": "long"}
    selected = selected_jsonl(tmp_path, [*ROWS, long])
    tokens = Location.of(tmp_path) / "tokens"

    tolerant = data(template, max_rejected=0.05)
    assert target.tokenise(selected, tokens, tolerant, model) == (21, ["long"])
    assert sum(TokenParts.of([tokens / name for name in tokens.names()]).num_rows) == 20

    with pytest.raises(DataError, match=r"1 of 21 selected rows .*\(long\)\. Raise data\.max_tok"):
        target.tokenise(selected, tokens, data(template), model)


def test_rows_that_the_targets_template_refuses_are_not_said_to_be_long(tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "strict.jinja").write_text("{{ raise_exception('never') or messages }}")
    strict = data("chat", chat_template=str(tmp_path / "strict.jinja"))
    selected, tokens = selected_jsonl(tmp_path), Location.of(tmp_path) / "tokens"

    words = r"20 refused by the template: .*: never \(e0, e1, e2, \.\.\.\)\. Raise"
    with pytest.raises(DataError, match=rf"20 of 20 selected rows cannot be used .*{words}"):
        target.tokenise(selected, tokens, strict, str(tmp_path / "tokenizer"))


@pytest.mark.ray
def test_two_shards_leave_the_model_that_one_replica_learns(tmp_path, cluster):
    model = str(tiny.save(tmp_path / "before"))
    selected = selected_jsonl(tmp_path)
    config = TargetConfig(
        model=model,
        zero_stage=3,
        workers=2,
        batch_size=8,
        micro_batch_size=2,
        learning_rate=1e-3,
        precision="fp32",
        max_steps=4,
        resume_every=2,
    )
    out = StageDir(Location.of(tmp_path) / "target", "target", {"target.model": model})
    out.begin()
    chats = data("chat", chat_template="chatml", max_tokens=128)

    with Progress("target") as progress:
        summary = target.run(config, chats, selected, out, seed=3, progress=progress)

    tokens = Location.of(tmp_path) / "tokens"
    target.tokenise(selected, tokens, chats, model)
    parts = TokenParts.of([tokens / name for name in tokens.names()])
    cpu = torch.device("cpu")
    before = AutoModelForCausalLM.from_pretrained(model)
    replica = loop.Replica(before, config, device=cpu, dtype=torch.float32)
    reports = list(loop.steps(replica, TrainingPlan(parts, config, 3, 4)))
    assert summary["loss_nats"] == pytest.approx(reports[-1].loss_nats, rel=1e-5)
    assert (summary["num_rows"], summary["num_rejected"], summary["num_steps"]) == (20, 0, 4)
    out.finish(summary, seconds=1.0)
    assert out.location.names() == ["_manifest.json", "model"]
    learned = AutoModelForCausalLM.from_pretrained(f"{out.location}/model")
    tokenizer = AutoTokenizer.from_pretrained(f"{out.location}/model")
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "add"}], tokenize=False)
    assert asked == f"<|im_start|>user\nadd{tiny.EOS}\n"
    for name, weight in replica.model.named_parameters():
        # A key's bias changes nothing, and Adam makes full steps out of its gradient's rounding.
        if name.endswith("query_key_value.bias"):
            continue
        torch.testing.assert_close(
            learned.get_parameter(name), weight, rtol=1e-4, atol=2e-5, msg=name
        )
