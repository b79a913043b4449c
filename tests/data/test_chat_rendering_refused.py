"""What chat templates leave out, rewrite or refuse, and what only looks like it."""

import pytest

from s2l_ray.errors import ConfigError
from tests.data import chat_templates as families
from tests.data.chat_templates import tokenizer_with
from tests.data.test_chat_rendering import (
    CALLED,
    SAID,
    TURNS,
    answer,
    chat,
    outcome,
    refused,
    shown,
    user,
)

NO_SYSTEM = families.CHATML.replace(
    "{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"
)
ONE_ROUND = families.CHATML.replace("in messages %}", "in messages[-2:] %}")
SHORT = families.CHATML.replace("{{ m.content }}", "{{ m.content[:40] }}")
SQUEEZED = families.CHATML.replace("{{ m.content }}", "{{ m.content | replace('  ', ' ') }}")
TWICE = families.CHATML.replace("{{ m.content }}", "{{ m.content }} {{ m.content }}")
BACKWARDS = families.CHATML.replace("in messages %}", "in messages | reverse %}")


@pytest.mark.parametrize(
    ("source", "turns", "part"),
    [
        (
            NO_SYSTEM,
            [("system", "e"), *TURNS],
            "leaves out or rewrites the content of message 0 (system)",
        ),
        (ONE_ROUND, TURNS, "leaves out or rewrites the response of message 1 (assistant)"),
        (ONE_ROUND, [user("e"), user("Q"), answer("d")], "the content of message 0 (user)"),
        (
            SHORT,
            [user("Q"), answer("long " * 20)],
            "rewrites the response of message 1 (assistant)",
        ),
        (SHORT, [user("long " * 20), answer("A")], "rewrites the content of message 0 (user)"),
        (
            SQUEEZED,
            [user("Q"), answer("two  spaces")],
            "rewrites the response of message 1 (assistant)",
        ),
        (TWICE, [user("Q"), answer("d")], "writes 2 times the response of message 1 (assistant)"),
        (BACKWARDS, TURNS, "reorders the messages"),
    ],
)
def test_what_a_template_leaves_out_or_rewrites_is_refused_by_name(source, turns, part):
    said = refused(source, *turns)
    assert said.startswith("changed by the template: the tokenizer's chat template")
    assert part in said


def test_a_question_that_only_looks_present_is_missed():
    """The letter e stands in every prompt, but this template leaves out first questions."""
    source = families.CHATML.replace(
        "{{ m.content }}", "{% if not loop.first %}{{ m.content }}{% endif %}"
    )
    assert "the content of message 0 (user)" in refused(source, user("e"), answer("d"))


@pytest.mark.parametrize("said", ["Be brief. /no_think", "/no_think"])
def test_words_to_a_template_in_a_text_keep_their_meaning(said):
    mode = "{% if '/no_think' in messages[0].content %}/no_think{% else %}/think{% endif %}"
    source = f"MODE: {mode}\n\n{families.CHATML}"
    text = shown(source, ("system", said), *TURNS)
    assert text.startswith(f"MODE: /no_think\n<|im_start|>system\n{said}<|im_end|>")
    unnamed = source.replace("'/no_think' in", "22 >")
    unnamed = unnamed.replace(".content %}/", ".content | length %}/")
    assert "MODE: /no_think" in shown(unnamed, ("system", said), *TURNS)
    assert "MODE: /think" in shown(unnamed, ("system", said * 9), *TURNS)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (families.GEMMA, "System role not supported"),
        (families.MISTRAL.replace("!= (loop", "!= (1 == loop"), "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{{ messages[0].missing.part }}", "has no attribute 'missing'"),
        ("{{ messages[99].content }}", "has no element 99"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ {}.x.y.z() }}", "has no attribute 'x'"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "refuses the messages: "),
    ],
)
def test_whatever_a_template_raises_refuses_the_row_in_its_words(source, words):
    said = refused(source, *SAID)
    assert said.startswith("refused by the template: the tokenizer's chat template refuses the ")
    assert words in said


@pytest.mark.parametrize(
    "source",
    [
        families.CHATML.replace(
            "{{ m.content }}",
            "{% if m.role == 'user' %}{% for p in m.content %}{{ p.text }}{% endfor %}"
            "{% else %}{{ m.content }}{% endif %}",
        ),
        families.CHATML.replace(
            "{{ m.content }}",
            "{{ m.content[0].text if m.role == 'system' else m.content }}",
        ),
        families.CHATML.replace("{{ m.content }}", "{{ m.content[0]['text'] + '' }}"),
        families.CHATML.replace(
            "{{ m.content }}",
            "{% if m.content is string %}{{ m.content }}{% else %}{{ 1 / 0 }}{% endif %}",
        ),
    ],
)
def test_a_template_gets_parts_for_the_roles_whose_parts_it_reads(source):
    assert shown(source, *SAID) == shown(families.CHATML, *SAID)


def test_a_template_that_is_no_jinja_is_an_error_of_the_configuration():
    with pytest.raises(ConfigError, match=r"is no valid Jinja: .*endfor"):
        outcome("{% for m in messages %}", chat(*SAID))


def test_named_templates_need_a_default():
    made = tokenizer_with({"rag": families.CHATML, "tool_use": families.CHATML})
    with pytest.raises(ConfigError, match=r"has 2 chat templates \(rag, tool_use\), none of which"):
        outcome(None, chat(*SAID), made)
    made = tokenizer_with({"default": families.CHATML, "tool_use": families.QWEN}, eos="<|im_end|>")
    assert shown(None, *SAID, made=made) == shown(families.CHATML, *SAID)
    tools = [{"type": "function", "function": {"name": "weather"}}]
    assert "leaves out the tools" in outcome(None, chat(*CALLED, tools=tools), made)[0].detail
