"""Rows and templates that name the same thing differently."""

import datetime

import pytest

from s2l_ray.config.data import DataConfig, FieldNames
from s2l_ray.data.examples import read_example
from s2l_ray.data.templates import load_template
from s2l_ray.data.tokenise import TokenisedExample, tokenise
from tests import tiny

CALL = {"name": "weather", "arguments": {"city": "Oslo"}}
GENERIC = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def text(messages, template):
    """What a model reads of a conversation."""
    config = DataConfig(train=["unused"], fields=FieldNames(messages="messages"))
    tokenizer = tiny.tokenizer(chat_template=template)
    example = read_example({"messages": messages}, config.fields)
    (item,) = tokenise([example], load_template(config), tokenizer, 5000)
    assert isinstance(item, TokenisedExample), item
    return tokenizer.decode(item.input_ids)


@pytest.mark.parametrize(
    ("named", "usual"),
    [
        ("developer", "system"),
        ("ipython", "tool"),
        ("observation", "tool"),
        ("environment", "tool"),
        ("function", "tool"),
    ],
)
def test_a_role_keeps_its_name_where_the_template_knows_it(named, usual):
    asked, answered = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
    messages = [{"role": named, "content": "x"}, asked, answered]
    knowing = "{% if messages[0].role == '" + named + "' %}!{% endif %}" + GENERIC

    assert f"<{usual}>x" in text(messages, GENERIC)
    assert text(messages, knowing).startswith(f"!<{named}>x")


@pytest.mark.parametrize("given", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("read", ["reasoning_content", "thinking"])
def test_reasoning_has_the_name_that_the_template_reads(given, read):
    answered = {"role": "assistant", "content": "A", given: "Hm"}
    template = GENERIC.replace("{{ m.content }}", f"{{{{ m.{read} }}}}|{{{{ m.content }}}}")

    assert "<assistant>Hm|A" in text([{"role": "user", "content": "Q"}, answered], template)


@pytest.mark.parametrize("arguments", [CALL["arguments"], '{"city": "Oslo"}'])
@pytest.mark.parametrize(
    "written",
    ["c.function.arguments | tojson", "'' + c.function.arguments"],
    ids=["as an object", "as text"],
)
def test_arguments_have_the_form_that_the_template_expects(written, arguments):
    said = {"role": "assistant", "tool_calls": [CALL | {"arguments": arguments}]}
    calls = (
        "{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function.name }} "
        "{{ " + written + " }}{% endfor %}{% endif %}{{ m.content }}"
    )
    template = GENERIC.replace("{{ m.content }}", calls)

    assert '<assistant>weather {"city": "Oslo"}' in text(
        [{"role": "user", "content": "Q"}, said], template
    )


@pytest.mark.parametrize("value", ["", "x", 1, ["x"], {"a": 1}, datetime.date(2025, 1, 1)])
@pytest.mark.parametrize("role", ["user", "tool"])
def test_only_the_assistant_calls_tools(role, value):
    others = {"role": role, "content": "" if role == "tool" else "x", "tool_calls": value}
    asked, answered = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
    template = GENERIC.replace(
        "{{ m.content }}",
        "{{ m.content }}{% if m.role == 'assistant' %}{% for c in m.tool_calls or [] %}"
        "{{ '' + c.function.arguments }}{% endfor %}{% endif %}",
    )

    assert text([others, asked, answered], template).endswith("<assistant>A</s><|end|>")
