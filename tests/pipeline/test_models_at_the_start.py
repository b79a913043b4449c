"""Models and held-out rows that a run could not use: refused in its first second, and by plan."""

import json

import pytest
from transformers import AutoModelForSeq2SeqLM, T5Config

from s2l_ray.artifacts.stage import PoolSize
from s2l_ray.config.load import from_tree
from s2l_ray.errors import UserError
from s2l_ray.estimate import plan
from s2l_ray.pipeline import run as pipeline
from s2l_ray.training.declaration import TARGET
from tests import handmade, tiny

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def tree(tmp_path):
    """A configuration whose reference and target are small and whole."""
    tree = handmade.inputs(tmp_path)
    tree = handmade.changed(tree, "reference.model", str(tiny.save(tmp_path / "small")))
    return handmade.changed(tree, "target.model", str(tiny.save(tmp_path / "large", "llama")))


def refusals(tree):
    """What `s2l plan` and `s2l run` say to a configuration; an empty text if plan accepts it."""
    config, messages = from_tree(tree, "test"), []
    for command in (lambda: plan.lines(config, tflops=1.0), lambda: pipeline.run(config)):
        try:
            command()
            return [""]
        except UserError as error:
            messages.append(str(error))
    return messages


def assert_refused(tree, *parts):
    messages = refusals(tree)
    assert len(messages) == 2 and messages[0] == messages[1]
    for part in parts:
        assert part in messages[0]


def as_chats(tree, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "x"}]}
        for q in ("a", "b", "c")
    ]
    for name in ("pool.jsonl", "held.jsonl"):
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = tree["data"] | {"fields": {"messages": "messages"}, "template": "chat"}
    tiny.tokenizer(chat_template=CHAT).save_pretrained(tmp_path / "small")
    return tree | {"data": data, "selection": {"budget": 2}}


def test_what_can_be_used_is_not_refused(tree):
    assert refusals(tree) == [""]


def test_a_target_without_a_chat_template(tree, tmp_path):
    tree = as_chats(tree, tmp_path)
    assert_refused(tree, f"tokenizer '{tmp_path}/large' has no chat template")
    tiny.tokenizer(chat_template=CHAT).save_pretrained(tmp_path / "large")
    assert refusals(tree) == [""]


def test_a_target_whose_template_refuses_every_row(tree, tmp_path):
    tree = as_chats(tree, tmp_path)
    refusing = "{{ raise_exception('only tools are answered') }}"
    tiny.tokenizer(chat_template=refusing).save_pretrained(tmp_path / "large")
    assert_refused(tree, "data.train: none of the first 3 rows", "only tools are answered")


@pytest.mark.parametrize("key", ["reference", "target"])
def test_fewer_positions_than_the_first_rows_have_tokens(tree, tmp_path, key):
    short = tiny.save(tmp_path / "short", "gpt2", n_positions=8)
    tree = handmade.changed(tree, f"{key}.model", str(short))
    assert_refused(tree, "the model (gpt2) has 8 positions", "data.max_tokens")


def test_positions_that_the_rows_do_not_need_are_not_missed(tree, tmp_path):
    short = tiny.save(tmp_path / "short", "gpt2", n_positions=64)
    tree = handmade.changed(tree, "data.max_tokens", 500)
    assert refusals(handmade.changed(tree, "target.model", str(short))) == [""]


def test_the_longest_row_of_the_pool_is_compared_as_soon_as_it_is_known(tree, tmp_path):
    short = tiny.save(tmp_path / "short", "gpt2", n_positions=64)
    config = from_tree(handmade.changed(tree, "target.model", str(short)), "test")
    pool = {"rows": 3, "new_strata": frozenset()}
    TARGET.check_pool(config, PoolSize(prepared={"longest_tokens": 65}, **pool))
    with pytest.raises(UserError, match=r"longest row has 66 tokens.* has 64 positions"):
        TARGET.check_pool(config, PoolSize(prepared={"longest_tokens": 66}, **pool))
    TARGET.check_pool(config, PoolSize(prepared={}, **pool))  # of an older version


@pytest.mark.parametrize("key", ["reference", "target"])
def test_a_tokenizer_with_more_tokens_than_the_model(tree, tmp_path, key):
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<new>"])
    folder = tmp_path / {"reference": "small", "target": "large"}[key]
    tokenizer.save_pretrained(folder)
    assert_refused(tree, "the tokenizer has 259 tokens", "knows 258")


def test_a_tokenizer_without_an_end_of_sequence(tree, tmp_path):
    tiny.tokenizer(eos=None).save_pretrained(tmp_path / "large")
    assert_refused(tree, f"{tmp_path}/large has no end-of-sequence token")


def test_a_model_that_is_no_causal_language_model(tree, tmp_path):
    config = T5Config(vocab_size=258, d_model=16, d_ff=32, num_layers=1, num_heads=2, d_kv=8)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "t5")
    tiny.tokenizer().save_pretrained(tmp_path / "t5")
    tree = handmade.changed(tree, "target.model", str(tmp_path / "t5"))
    assert_refused(tree, f"model {tmp_path}/t5", "t5 is no causal language model")


def test_held_out_rows_with_other_fields(tree, tmp_path):
    (tmp_path / "held.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n' * 3)
    assert_refused(tree, "data.eval.held", "3 rows", "instruction", "row 0")


def test_a_held_out_prompt_that_fills_the_positions_of_the_target(tree, tmp_path):
    short = tiny.save(tmp_path / "short", "gpt2", n_positions=64)
    row = {"instruction": "a " * 40, "output": "x"}
    (tmp_path / "held.jsonl").write_text(json.dumps(row) + "\n")
    tree = handmade.changed(tree, "target.model", str(short))
    assert_refused(tree, "data.eval.held: a prompt of 87 tokens fills all 64 positions")


def test_checkpoints_that_are_not_whole(tree, tmp_path):
    for step in (1, 2):
        tiny.save(tmp_path / "out" / f"checkpoint-{step}")
    (tmp_path / "out" / "checkpoint-2" / "model.safetensors").unlink()
    tree = {**tree, "reference": {"path": str(tmp_path / "out")}}
    assert_refused(tree, "1 of 2 checkpoints", "checkpoint-2")
