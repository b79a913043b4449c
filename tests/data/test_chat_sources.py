"""Chat templates that replace a tokenizer's own, and the template that follows from the rows."""

import pytest

from s2l_ray.config.data import DataConfig, FieldNames
from s2l_ray.data.chat_sources import jinja_source, read_chat_template
from s2l_ray.data.examples import RowError, read_example
from s2l_ray.data.templates import check_fields, load_template
from s2l_ray.data.tokenise import prompt_ids, tokenise
from s2l_ray.errors import ConfigError
from tests import tiny

PAIR = FieldNames(prompt="prompt", response="completion")
TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hi!"},
]


def settings(**changes):
    return DataConfig(**{"train": ["unused"], **changes})


def text_of(row, config, tokenizer):
    example = read_example(row, config.fields)
    (item,) = tokenise([example], load_template(config), tokenizer, 1000)
    if isinstance(item, RowError):
        raise item
    start = item.num_prompt_tokens
    return tokenizer.decode(item.input_ids[:start]), tokenizer.decode(item.input_ids[start:])


@pytest.fixture
def with_marks():
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    return tokenizer


def rendered(source, tokenizer):
    return tokenizer.apply_chat_template(
        TURNS[:2], chat_template=source, tokenize=False, add_generation_prompt=True
    )


def test_chatml_is_that_of_its_inventors_where_the_tokenizer_has_its_marks(with_marks):
    assert rendered(jinja_source("chatml", with_marks), with_marks) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_without_them_a_turn_ends_with_the_token_at_which_generation_ends():
    tokenizer = tiny.tokenizer()
    assert rendered(jinja_source("chatml", tokenizer), tokenizer) == (
        f"<|im_start|>system\nBe kind.{tiny.EOS}\n<|im_start|>user\nHello?{tiny.EOS}\n"
        "<|im_start|>assistant\n"
    )


def test_a_chat_is_learned_as_chatml_has_it():
    config = settings(fields=FieldNames(messages="messages"), chat_template="chatml")
    prompt, answer = text_of({"messages": TURNS}, config, tiny.tokenizer())

    assert prompt.endswith("Hello?" + tiny.EOS + "\n<|im_start|>assistant\n")
    assert answer == f"Hi!{tiny.EOS}"


def test_a_file_replaces_the_template_of_the_tokenizer(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}")
    config = settings(template="chat", chat_template=str(path))
    tokenizer = tiny.tokenizer(chat_template="{{ 'another' }}")

    prompt, answer = text_of({"instruction": "Q", "output": "A"}, config, tokenizer)

    assert (prompt, answer.removesuffix(tiny.EOS).strip()) == ("[user] Q\n", "[assistant] A")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is neither chatml nor a file"), ("{prompt}", "does not contain `messages`")],
)
def test_what_is_no_chat_template_is_refused(tmp_path, content, message):
    path = tmp_path / "mine.jinja"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_chat_template(settings(chat_template=str(path)))


def test_a_file_that_is_no_jinja_is_named_by_its_key(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}{{ m.content }}")
    config = settings(template="chat", chat_template=str(path))

    with pytest.raises(ConfigError, match=r"data\.chat_template is no valid Jinja: .*endfor"):
        text_of({"instruction": "Q", "output": "A"}, config, tiny.tokenizer())


def test_auto_takes_the_chat_template_for_messages_and_alpaca_for_instructions():
    tokenizer = tiny.tokenizer(chat_template="{% for m in messages %}<{{ m.content }}>{% endfor %}")
    asked, answered = [TURNS[1]], [TURNS[2]]
    config = settings(fields=PAIR)

    chat = text_of({"prompt": asked, "completion": answered}, config, tokenizer)
    text = text_of({"prompt": "Hello?", "completion": "Hi!"}, config, tokenizer)

    assert chat[0] == "<Hello?>"
    assert "### Instruction:\nHello?" in text[0]
    rows = [{"prompt": asked, "completion": answered}, {"prompt": "Hello?", "completion": "Hi!"}]
    examples = [read_example(row, PAIR) for row in (*rows, *rows)]
    prompts = prompt_ids(examples, load_template(config), tokenizer)
    assert [tokenizer.decode(ids) for ids in prompts] == [chat[0], text[0]] * 2


@pytest.mark.parametrize("name", ["alpaca", "alpaca-official", "radiology"])
def test_messages_do_not_fit_into_a_named_text(name):
    config = settings(template=name, fields=PAIR)
    row = {"prompt": [TURNS[1]], "completion": [TURNS[2]]}
    with pytest.raises(RowError, match=r"the row holds messages.*data.template: chat"):
        text_of(row, config, tiny.tokenizer())

    with pytest.raises(ConfigError, match=f"{name} writes one question.*data.template: chat"):
        check_fields(settings(template=name, fields=FieldNames(messages="messages")))


def test_a_template_of_the_users_own_may_render_messages(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("{context}\nQ: {prompt}\nA: ")
    config = settings(template=str(path), fields=FieldNames(messages="messages"))

    check_fields(config)

    assert text_of({"messages": TURNS}, config, tiny.tokenizer()) == (
        "System: Be kind.\nQ: Hello?\nA: ",
        f"Hi!{tiny.EOS}",
    )


def test_a_chat_template_is_for_rows_of_instructions_too():
    config = settings(chat_template="chatml")

    check_fields(config)

    prompt, _ = text_of({"instruction": "Q", "output": "A"}, config, tiny.tokenizer())
    assert prompt == f"<|im_start|>user\nQ{tiny.EOS}\n<|im_start|>assistant\n"


def test_a_chat_template_that_nothing_uses_is_refused():
    with pytest.raises(ConfigError, match=r"has no effect with data.template: alpaca"):
        check_fields(settings(template="alpaca", chat_template="chatml"))
