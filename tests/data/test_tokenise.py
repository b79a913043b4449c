"""The tokens and the mask of every template, on small tokenizers trained here."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from s2l_ray.config.data import DataConfig, FieldNames
from s2l_ray.data import rendering, tokenise
from s2l_ray.data.examples import RowError, read_example
from s2l_ray.data.templates import load_template
from s2l_ray.errors import ConfigError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BARE = (  # no end-of-sequence anywhere
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
THINKING = (  # asks for an answer differently from how it shows one
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
)
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
FIELDS = FieldNames()
CHAT_FIELDS = FieldNames(messages="messages")

PLAIN = read_example({"instruction": "Add 1 and 2.", "output": "The answer is 3."}, FIELDS)
WITH_INPUT = read_example(
    {"instruction": "Sum up.", "input": "A {prompt}!", "output": "So."}, FIELDS
)

ALPACA_PLAIN = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\nAdd 1 and 2.\n\n### Response:"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nSum up.\n\n### Input:\nA {prompt}!\n\n### Response:"
)
RADIOLOGY_PLAIN = (
    "Below are the findings in a radiology report. Write an impression that diagnostically "
    "summarizes the findings.\n\n### Findings:\nAdd 1 and 2.\n\n### Impression:"
)


def tokenizer(*, adds=(), eos="</s>", chat_template=None, learn=()):
    """A byte-level BPE tokenizer that puts `adds` (bos, eos) around a text by itself."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [ALPACA_PLAIN, ALPACA_INPUT, "The answer is 3. \n\n\n"] * 4
    inner.train_from_iterator([*texts, *learn], trainer)
    if adds:
        shape = " ".join({"bos": "<s>", "text": "$A", "eos": "</s>"}[part] for part in adds)
        ids = [(token, inner.token_to_id(token)) for token in ("<s>", "</s>")]
        inner.post_processor = processors.TemplateProcessing(single=shape, special_tokens=ids)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=SPECIAL[0], eos_token=eos, model_max_length=64
    )
    made.chat_template = chat_template
    return made


NO_BOS = tokenizer()
BOS = tokenizer(adds=("bos", "text"))
BOS_EOS = tokenizer(adds=("bos", "text", "eos"))
CHAT = tokenizer(eos="<|im_end|>", chat_template=CHATML)


def named(template, **settings):
    return load_template(DataConfig(train=["x"], template=template, **settings))


def tokens(example, template, with_tokenizer, max_tokens=10_000):
    (item,) = tokenise.tokenise([example], named(template), with_tokenizer, max_tokens)
    return item


def masked(item, with_tokenizer):
    return with_tokenizer.decode(item.input_ids[: item.num_prompt_tokens])


def learned(item, with_tokenizer):
    return with_tokenizer.decode(item.input_ids[item.num_prompt_tokens :])


def chat(*said):
    return read_example({"messages": [{"role": r, "content": c} for r, c in said]}, CHAT_FIELDS)


@pytest.mark.parametrize(
    ("name", "example", "text"),
    [
        ("alpaca", PLAIN, ALPACA_PLAIN + "\n"),
        ("alpaca", WITH_INPUT, ALPACA_INPUT + "\n"),
        ("alpaca-official", PLAIN, ALPACA_PLAIN),
        ("alpaca-official", WITH_INPUT, ALPACA_INPUT),
        ("radiology", PLAIN, RADIOLOGY_PLAIN),
    ],
)
@pytest.mark.parametrize(("made", "bos"), [(NO_BOS, ""), (BOS, "<s>")])
def test_the_masked_tokens_spell_the_prompt_and_the_others_the_response(
    name, example, text, made, bos
):
    item = tokens(example, name, made)

    assert named(name).render_prompt(example) == text
    assert masked(item, made) == bos + text
    assert learned(item, made) == example.response + "</s>"


@pytest.mark.parametrize("name", ["alpaca", "alpaca-official", "radiology"])
def test_a_tokenizer_that_closes_texts_itself_closes_the_response_alone(name):
    item = tokens(PLAIN, name, BOS_EOS)

    assert masked(item, BOS_EOS) == "<s>" + named(name).render_prompt(PLAIN)
    assert learned(item, BOS_EOS) == "The answer is 3.</s>"
    assert tokenise.prompt_ids([PLAIN], named(name), BOS_EOS) == [
        item.input_ids[: item.num_prompt_tokens]
    ]


@pytest.mark.parametrize("name", ["alpaca", "alpaca-official"])
@pytest.mark.parametrize("made", [NO_BOS, BOS, BOS_EOS])
def test_an_end_of_sequence_in_the_data_stands_once_and_is_counted(name, made):
    closed = read_example({"instruction": "Add 1 and 2.", "output": "3.</s></s> \n"}, FIELDS)
    item = tokens(closed, name, made)

    assert learned(item, made) == "3.</s>"
    assert item.notes == (rendering.END_IN_TEXT,)
    nothing = read_example({"instruction": "Add 1 and 2.", "output": "</s>"}, FIELDS)
    assert tokens(nothing, name, made).reason == "empty field"


def test_a_template_file_that_writes_the_beginning_itself_has_one_beginning(tmp_path):
    (tmp_path / "mine.txt").write_text("<s>Q: {prompt}\nA: ")
    item = tokens(PLAIN, str(tmp_path / "mine.txt"), BOS)

    assert masked(item, BOS) == "<s>Q: Add 1 and 2.\nA: "


def test_the_joint_template_tokenises_prompt_and_response_as_one_text():
    text = named("alpaca-official").render_prompt(PLAIN) + "The answer is 3.</s>"

    assert tokens(PLAIN, "alpaca-official", BOS).input_ids == BOS(text)["input_ids"]


def test_the_joint_template_tokenises_apart_where_a_token_would_span_the_border():
    made = tokenizer(learn=["::?? ::?? ::??"] * 50)
    example = read_example({"instruction": "Q", "output": ":??"}, FIELDS)
    text = named("alpaca-official").render_prompt(example)
    prompt = made(text)["input_ids"]
    assert made(text + ":??")["input_ids"][: len(prompt)] != prompt, "a token spans the border"

    item = tokens(example, "alpaca-official", made)

    assert (masked(item, made), learned(item, made)) == (text, ":??</s>")
    assert tokenise.prompt_ids([example], named("alpaca-official"), made) == [prompt]


@pytest.mark.parametrize("name", ["alpaca", "alpaca-official", "chat", "auto"])
def test_rows_do_not_influence_one_another(name):
    template = named(name)
    rows = [PLAIN, WITH_INPUT]
    if name in ("chat", "auto"):
        rows.insert(1, chat(("user", "Hi"), ("assistant", "Hello")))

    together = tokenise.tokenise(rows, template, CHAT, 512)

    assert together == [tokenise.tokenise([row], template, CHAT, 512)[0] for row in rows]
    assert tokenise.tokenise([], template, CHAT, 512) == []
    assert tokenise.prompt_ids([], template, CHAT) == []


@pytest.mark.parametrize("name", ["alpaca", "radiology", "chat"])
def test_generation_starts_from_the_masked_tokens(name):
    template = named(name)
    items = tokenise.tokenise([PLAIN, WITH_INPUT], template, CHAT, 512)

    assert tokenise.prompt_ids([PLAIN, WITH_INPUT], template, CHAT) == [
        item.input_ids[: item.num_prompt_tokens] for item in items
    ]


@pytest.mark.parametrize("name", ["alpaca", "alpaca-official", "chat"])
def test_a_long_row_is_cut_on_the_right_and_refused_when_no_response_is_left(name):
    whole = tokens(PLAIN, name, CHAT)
    n = whole.num_prompt_tokens

    one_left = tokens(PLAIN, name, CHAT, max_tokens=n + 1)
    none_left = tokens(PLAIN, name, CHAT, max_tokens=n)

    assert one_left.input_ids == whole.input_ids[: n + 1]
    assert one_left.num_prompt_tokens == n
    assert isinstance(none_left, RowError)
    assert none_left.reason == "no response tokens left"
    assert f"{n} tokens of {n} allowed" in none_left.detail


def test_a_row_whose_only_learned_token_nothing_predicts_is_refused():
    bare = tokenizer(chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    greeting = chat(("assistant", "Hello"), ("user", "hi"), ("assistant", "you"))

    (two_left,) = tokenise.tokenise([greeting], named("chat"), bare, 2)
    (one_left,) = tokenise.tokenise([greeting], named("chat"), bare, 1)

    assert (two_left.response_ranges, two_left.num_response_tokens) == ([(0, 2)], 1)
    assert isinstance(one_left, RowError)
    assert (one_left.reason, one_left.detail) == (
        "no response tokens left",
        "nothing stands before the first one",
    )


@given(text=st.text(min_size=1).filter(str.strip), limit=st.integers(2, 80))
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back_whole_or_cut(text, limit):
    example = read_example({"instruction": "Q", "output": text}, FieldNames())
    whole, cut = tokens(example, "alpaca", BOS), tokens(example, "alpaca", BOS, limit)

    response = BOS(text, add_special_tokens=False)["input_ids"]
    assert whole.input_ids[whole.num_prompt_tokens :] == [*response, BOS.eos_token_id]
    if isinstance(cut, RowError):
        assert whole.num_prompt_tokens >= limit
    else:
        assert cut.input_ids == whole.input_ids[:limit]


def test_every_answer_of_a_chat_is_learned_and_ends_with_one_end_of_sequence():
    said = ("system", "Be kind."), ("user", "Q1"), ("assistant", "A1"), ("user", "Q2")
    item = tokens(chat(*said, ("assistant", "A2")), "chat", CHAT)

    assert tokenise.decoded(item, CHAT) == [
        (
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n"
            "<|im_start|>assistant\n",
            False,
        ),
        ("A1<|im_end|>", True),
        ("\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n", False),
        ("A2<|im_end|>", True),
    ]


def test_the_chat_template_adds_the_special_tokens_not_the_tokenizer():
    made = tokenizer(adds=("bos", "text", "eos"), chat_template=CHATML)

    assert tokens(PLAIN, "chat", made).input_ids[0] == made.convert_tokens_to_ids("<|im_start|>")
    assert learned(tokens(PLAIN, "chat", made), made) == "The answer is 3.<|im_end|>\n</s>"


def test_an_end_of_sequence_that_the_chat_template_lacks_is_added():
    made = tokenizer(chat_template=BARE)
    item = tokens(chat(("user", "Q"), ("assistant", "a </s> b")), "chat", made)

    assert masked(item, made) == "user: Q\nassistant: "
    assert learned(item, made) == "a </s> b\n</s>"


def test_a_template_that_opens_answers_differently_is_masked_up_to_the_answer_it_shows():
    made = tokenizer(eos="<|im_end|>", chat_template=THINKING)
    item = tokens(chat(("user", "Q"), ("assistant", " A \n")), "chat", made)

    assert masked(item, made) == "<|im_start|>user\nQ<|im_end|><|im_start|>assistant\n"
    assert learned(item, made) == "A<|im_end|>"


def test_messages_that_the_chat_template_refuses_reject_their_row_alone():
    made = tokenizer(eos="<|im_end|>", chat_template=STRICT)
    refused = chat(("system", "S"), ("user", "Q"), ("assistant", "A"))

    first, second = tokenise.tokenise([refused, PLAIN], named("chat"), made, 99)

    assert (first.reason, "no system" in first.detail) == ("refused by the template", True)
    assert learned(second, made) == "The answer is 3.<|im_end|>"
    with pytest.raises(RowError, match="refuses the messages: no system"):
        tokenise.prompt_ids([refused], named("chat"), made)


def test_an_answer_that_the_chat_template_rewrites_is_refused():
    made = tokenizer(chat_template=THINKING.replace("m.content | trim", "m.content | upper"))
    item = tokens(chat(("user", "Q"), ("assistant", "Two words.")), "chat", made)

    assert item.reason == "changed by the template"
    assert "rewrites the response" in item.detail


def test_a_tokenizer_without_a_chat_template_is_refused():
    for call in (tokenise.prompt_ids, lambda *args: tokenise.tokenise(*args, 9)):
        with pytest.raises(
            ConfigError, match=r"has no chat template\. Use a tokenizer that has one"
        ):
            call([PLAIN], named("chat"), NO_BOS)


@pytest.mark.parametrize("scheme", ["always", "first"])
def test_a_chat_has_the_tokens_of_its_whole_text_where_texts_get_a_space(scheme):
    pieces = [SPECIAL[0], "▁", *"\nabcdeghinorstuAQ12:."]
    inner = Tokenizer(models.BPE({piece: i for i, piece in enumerate([*pieces, SPECIAL[1]])}, []))
    inner.add_special_tokens(SPECIAL[:2])
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    ends = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1]}
    made = PreTrainedTokenizerFast(tokenizer_object=inner, **ends)
    made.chat_template = "{{ bos_token }}" + BARE.replace("}}\n", "}}{{ eos_token }}\n")
    assert made.tokenize("a", add_special_tokens=False) == ["▁", "a"]

    said = ("user", "Q1"), ("assistant", "A1"), ("user", "Q2"), ("assistant", "A2")
    item = tokens(chat(*said), "chat", made)

    whole = made.apply_chat_template(
        [{"role": role, "content": content} for role, content in said], return_dict=False
    )
    assert item.input_ids == whole[: len(item.input_ids)]
    learned = [made.convert_ids_to_tokens(item.input_ids[a:b]) for a, b in item.response_ranges]
    assert learned == [["A", "1", "</s>"], ["A", "2", "</s>"]]
