"""Which text of a chat is learned, with templates as those of well-known families."""

import datetime
import json

import pytest

from s2l_ray.config.data import DataConfig, FieldNames
from s2l_ray.data import rendering, tokenise
from s2l_ray.data.examples import RowError, read_example
from s2l_ray.data.templates import load_template
from tests.data import chat_templates as families
from tests.data.chat_templates import tokenizer_with

FIELDS = FieldNames(messages="messages")
SAID = (("system", "Be kind."), ("user", "Q one"), ("assistant", "A one"), ("user", "Q two"))
SAID = (*SAID, ("assistant", "A two"))
TURNS = SAID[1:]


def user(content):
    return {"role": "user", "content": content}


def answer(content, **fields):
    return {"role": "assistant", "content": content, **fields}


def tool(content):
    return {"role": "tool", "content": content}


def call(name, **arguments):
    return {"type": "function", "id": "c1", "function": {"name": name, "arguments": arguments}}


def chat(*turns, **row):
    said = [t if isinstance(t, dict) else {"role": t[0], "content": t[1]} for t in turns]
    return read_example({"messages": said, **row}, FIELDS)


def outcome(source, example, made=None, **settings):
    made = made or tokenizer_with(source)
    data = DataConfig(train=["x"], template="chat", fields=FIELDS, **settings)
    (item,) = tokenise.tokenise([example], load_template(data), made, 10_000)
    return item, made


def shown(source, *turns, made=None, row=(), **settings):
    """The text that a model reads, with brackets around what is learned."""
    example = chat(*turns, **dict(row))
    item, made = outcome(source, example, made, **settings)
    assert not isinstance(item, RowError), item
    data = DataConfig(train=["x"], template="chat", fields=FIELDS, **settings)
    asked = tokenise.prompt_ids([example], load_template(data), made)
    assert asked == [item.input_ids[: item.response_ranges[-1][0]]]
    return "".join(
        f"⟦{text}⟧" if has_loss else text for text, has_loss in tokenise.decoded(item, made)
    )


def refused(source, *turns, row=(), **settings):
    item, _ = outcome(source, chat(*turns, **dict(row)), **settings)
    assert isinstance(item, RowError), item
    return f"{item.reason}: {item.detail}"


EXPECTED = {
    "CHATML": "<|im_start|>user\nQ one<|im_end|>\n<|im_start|>assistant\n⟦A one<|im_end|>⟧\n"
    "<|im_start|>user\nQ two<|im_end|>\n<|im_start|>assistant\n⟦A two<|im_end|>⟧",
    "LLAMA": "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 01 Jan 2025\n\n"
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nQ one<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦A one<|eot_id|>⟧"
    "<|start_header_id|>user<|end_header_id|>\n\nQ two<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦A two<|eot_id|>⟧",
    "QWEN": "<|im_start|>user\nQ one<|im_end|>\n<|im_start|>assistant\n⟦A one<|im_end|>⟧\n"
    "<|im_start|>user\nQ two<|im_end|>\n<|im_start|>assistant\n"
    "⟦<think>\n\n</think>\n\nA two<|im_end|>⟧",
    "GEMMA": "<s><start_of_turn>user\nQ one<end_of_turn>\n<start_of_turn>model\n"
    "⟦A one<end_of_turn>⟧\n<start_of_turn>user\nQ two<end_of_turn>\n<start_of_turn>model\n"
    "⟦A two<end_of_turn>\n</s>⟧",
    "MISTRAL": "<s>[INST] Q one[/INST]⟦ A one</s>⟧[INST] Q two[/INST]⟦ A two</s>⟧",
    "DEEPSEEK": "<s><|User|>Q one<|Assistant|>⟦A one</s>⟧<|User|>Q two<|Assistant|>⟦A two</s>⟧",
    "GRANITE": "<|start_of_role|>system<|end_of_role|>Today's Date: January 01, 2025.\nBe helpful."
    "<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>Q one<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>⟦A one<|end_of_text|>⟧\n"
    "<|start_of_role|>user<|end_of_role|>Q two<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>⟦A two<|end_of_text|>⟧",
    "CHANNELS": "<|start|>user<|message|>Q one<|end|><|start|>assistant"
    "⟦<|channel|>final<|message|>A one<|end|>⟧<|start|>user<|message|>Q two<|end|>"
    "<|start|>assistant⟦<|channel|>final<|message|>A two<|return|>⟧",
    "PHI": "<|user|>\nQ one<|end|>\n<|assistant|>\n⟦A one<|end|>⟧\n<|user|>\nQ two<|end|>\n"
    "<|assistant|>\n⟦A two<|end|>\n</s>⟧",
    "UNCLOSED": "[gMASK]<|user|>\nQ one<|assistant|>\n⟦A one⟧<|user|>\nQ two<|assistant|>\n"
    "⟦A two</s>⟧",
    "PLAIN": "user: Q one\nassistant: ⟦A one\n⟧user: Q two\nassistant: ⟦A two\n</s>⟧",
}
EXPECTED |= {"PARTS": EXPECTED["CHATML"], "OPENS_THINKING": EXPECTED["CHATML"]}
EXPECTED["MARKED"] = EXPECTED["CHATML"].replace("⟧\n", "⟧")


@pytest.mark.parametrize("family", EXPECTED)
def test_every_answer_is_learned_with_the_marker_that_closes_it(family):
    assert shown(getattr(families, family), *TURNS) == EXPECTED[family]


@pytest.mark.parametrize("family", EXPECTED)
def test_with_turns_last_the_same_text_is_read_and_the_last_answer_learned(family):
    text = shown(getattr(families, family), *TURNS, turns="last")

    start, _, rest = EXPECTED[family].rpartition("⟦")
    assert text == start.replace("⟦", "").replace("⟧", "") + "⟦" + rest


@pytest.mark.parametrize("family", EXPECTED)
@pytest.mark.parametrize("said", ["d", "e", "i", "n", "end", "<", "assistant", "Q one", "x\n\ny"])
def test_short_answers_and_answers_that_occur_elsewhere_are_found(family, said):
    source = getattr(families, family)
    text = shown(source, user("Q one"), answer(said))

    assert text == shown(source, user("Q one"), answer("unusual")).replace("unusual", said)


@pytest.mark.parametrize(
    "request_text", ["### A:\n", "\n### A:\n", "\n\n\n\n### A:\n", "\n###A:\n"]
)
@pytest.mark.parametrize("said", ["A one", "\n A one"])
def test_a_request_with_other_white_space_is_no_part_of_the_answer(request_text, said):
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}### Q:\n{{ m.content }}\n\n"
        "{% else %}{{ '\n### A:\n' + m.content }}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '" + request_text + "' }}{% endif %}"
    )
    made = tokenizer_with(source, eos="</s>")

    text = shown(source, user("Q one"), answer(said), made=made)
    assert text == f"### Q:\nQ one\n\n\n### A:\n⟦{said}</s>⟧"


def test_answers_with_and_without_a_thought_follow_one_prompt():
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}<|im_end|>"
        "{% else %}<|im_start|>assistant\n<think>"
        "{% if m.reasoning_content %}{{ '\n' + m.reasoning_content + '\n' }}{% endif %}"
        "</think>{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{{ '\n' }}{% endif %}"
    )

    plain = shown(source, user("Q"), answer("A"))
    thoughtful = shown(source, user("Q"), answer("A", reasoning_content="Hm."))
    assert thoughtful.split("⟦")[0] == plain.split("⟦")[0]


@pytest.mark.parametrize("family", sorted(set(EXPECTED) - {"GEMMA"}))
def test_a_closing_question_is_left_out_and_earlier_answers_are_learned(family):
    source = getattr(families, family)

    assert shown(source, *SAID, user("Thanks!")) == shown(source, *SAID)


@pytest.mark.parametrize("family", ["CHATML", "QWEN", "LLAMA", "MISTRAL", "MARKED"])
def test_an_answer_that_the_row_exempts_is_read_and_not_learned(family):
    source = getattr(families, family)
    turns = [user("Q one"), answer("A one", weight=0), user("Q two"), answer("A two")]

    assert shown(source, *turns) == shown(source, *TURNS, turns="last")


@pytest.mark.parametrize("turns", [TURNS, SAID, [*TURNS, ("user", "Q3"), ("assistant", "d")]])
def test_what_the_template_marks_as_generated_is_what_is_learned(turns):
    example = chat(*turns)
    item, made = outcome(families.MARKED, example)
    oracle = made.apply_chat_template(
        [message.turn for message in example.messages],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    learned = [0] * len(item.input_ids)
    for start, end in item.response_ranges:
        learned[start:end] = [1] * (end - start)

    assert item.input_ids == oracle["input_ids"][: len(item.input_ids)]
    assert learned == oracle["assistant_masks"][: len(item.input_ids)]
    assert not any(oracle["assistant_masks"][len(item.input_ids) :])


@pytest.mark.parametrize("family", ["CHATML", "LLAMA", "MISTRAL", "GEMMA", "GRANITE", "DEEPSEEK"])
def test_a_loop_over_turns_learns_the_same(family):
    turns = [user("Q one"), answer("A one"), user("Q two"), answer("A two"), user("3"), answer("d")]
    item, made = outcome(getattr(families, family), chat(*turns))
    day = datetime.datetime(2025, 1, 1)
    source = made.chat_template.replace("strftime_now('%d %b %Y')", repr(day.strftime("%d %b %Y")))
    source = source.replace("strftime_now('%B %d, %Y')", repr(day.strftime("%B %d, %Y")))
    excess = "<think>\n" if family == "DEEPSEEK" else ""
    learned = []
    for i, turn in enumerate(turns):
        if turn["role"] == "assistant":
            said = {"tokenize": False, "chat_template": source}
            before = made.apply_chat_template(turns[:i], add_generation_prompt=True, **said)
            whole = made.apply_chat_template(turns[: i + 1], **said)
            learned.append(whole.removeprefix(before.removesuffix(excess)).rstrip("\n"))

    found = [text for text, has_loss in tokenise.decoded(item, made) if has_loss]
    assert [text.removesuffix("\n</s>") for text in found] == [
        text.removesuffix("\n</s>") for text in learned
    ]


def test_reasoning_is_learned_where_the_template_writes_it():
    asked = "<|im_start|>user\nQ one<|im_end|>\n<|im_start|>assistant\n"
    spaced = "⟦<think>\nbecause\n</think>\n\nA one<|im_end|>⟧"
    for said in ("<think>because</think>A one", "<think>\nbecause\n\n</think>\n\nA one"):
        assert shown(families.QWEN, user("Q one"), answer(said)) == asked + spaced
        # A prompt does not depend on the answer: both kinds of rows are asked alike.
        assert shown(families.OPENS_THINKING, user("Q one"), answer(said)) == (
            f"{asked}⟦{said}<|im_end|>⟧"
        )
    apart = answer("A one", reasoning_content="because")
    assert shown(families.QWEN, user("Q one"), apart) == asked + spaced


@pytest.mark.parametrize(
    "last", [answer("<think>because</think>A"), answer("A", reasoning_content="because")]
)
@pytest.mark.parametrize("family", ["DEEPSEEK", "CHATML"])
def test_an_answer_whose_reasoning_the_template_leaves_out_is_refused(family, last):
    source = getattr(families, family)
    if family == "CHATML" and "reasoning_content" not in last:
        assert "⟦<think>because</think>A<|im_end|>⟧" in shown(source, user("Q"), last)
        return
    named = "changed by the template: the tokenizer's chat template leaves out or rewrites the "
    named += "reasoning of message"
    assert refused(source, user("Q"), last) == f"{named} 1 (assistant)"
    # No answer keeps its reasoning here, so it is no matter of earlier turns.
    assert refused(source, user("Q"), last, *TURNS) == f"{named} 1 (assistant)"


def test_reasoning_that_the_template_leaves_out_of_earlier_turns_is_counted():
    turns = [user("Q one"), answer("<think>why</think>A one"), user("Q two")]
    last = answer("<think>because</think>A two")
    text = shown(families.QWEN, *turns, last)

    assert [part for part in text.split("⟦") if "⟧" in part] == [
        "A one<|im_end|>⟧\n<|im_start|>user\nQ two<|im_end|>\n<|im_start|>assistant\n",
        "<think>\nbecause\n</think>\n\nA two<|im_end|>⟧",
    ]
    item, _ = outcome(families.QWEN, chat(*turns, last))
    assert item.notes == (rendering.REASONING_DROPPED,)


def test_the_text_around_a_thought_that_the_template_loses_is_missed():
    said = "First. <think>because</think>A one"
    assert "the reasoning of message 1" in refused(families.QWEN, user("Q"), answer(said))


QWEN_CALL = (
    '⟦<tool_call>\n{"name": "weather", "arguments": {"city": "Rome \\"x\\"", "days": 3}}\n'
    "</tool_call><|im_end|>⟧"
)
CALLED = [
    user("How warm?"),
    answer("", tool_calls=[call("weather", city='Rome "x"', days=3)]),
    tool('{"t": 21}'),
    answer("21 degrees"),
]


def test_tool_calls_are_learned_and_results_are_read():
    text = shown(families.QWEN, *CALLED)
    assert text == (
        f"<|im_start|>user\nHow warm?<|im_end|>\n<|im_start|>assistant\n{QWEN_CALL}\n"
        '<|im_start|>user\n<tool_response>\n{"t": 21}\n</tool_response><|im_end|>\n'
        "<|im_start|>assistant\n⟦<think>\n\n</think>\n\n21 degrees<|im_end|>⟧"
    )
    # This template writes the result as JSON text, and the schemas before the first question.
    tools = [{"type": "function", "function": {"name": "weather", "description": "of a town"}}]
    text = shown(families.LLAMA, *CALLED, row={"tools": tools})
    header = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert (
        f'{header}⟦{{"name": "weather", "parameters": {{"city": "Rome \\"x\\"", "days": 3}}}}'
        "<|eot_id|>⟧"
    ) in text
    assert '"{\\"t\\": 21}"<|eot_id|>' in text
    assert text.endswith(f"{header}⟦21 degrees<|eot_id|>⟧")


@pytest.mark.parametrize("thought", [{}, {"reasoning_content": "Look it up."}])
@pytest.mark.parametrize("arguments", [{}, {"at": "Rome"}, {"at": {"days": [1, "x", 2.5]}, "n": 3}])
def test_a_call_is_learned_to_its_own_end_wherever_it_stands(arguments, thought):
    asked = [user("Q"), answer("", tool_calls=[call("look", **arguments)], **thought)]
    given = [*asked, tool("sun"), answer("Sunny.")]
    made = tokenizer_with(families.CALLS)
    prompt = "<|start|>user<|message|>Q<|end|><|start|>assistant"
    said = f" to=look<|message|><f=look>{json.dumps(arguments)}</f><|call|>"

    if not thought:
        assert shown(families.CALLS, *asked, made=made) == f"{prompt}⟦{said}<|return|>⟧"
    whole = shown(families.CALLS, *given, made=made)
    assert whole == (
        f"{prompt}⟦{said}⟧<|start|>look<|message|>sun<|end|>"
        "<|start|>assistant⟦<|message|>Sunny.<|return|>⟧"
    )


def test_a_call_that_the_template_leaves_out_is_refused():
    assert "the name of a tool call of message 1 (assistant)" in refused(families.CHATML, *CALLED)
    no_arguments = families.QWEN.replace("c.function.arguments | tojson", "'{}'")
    assert "arguments of a tool call of message 1" in refused(no_arguments, *CALLED)
    numbers = [user("Q"), answer("", tool_calls=[call("add", a=2, b=3)])]
    assert shown(families.QWEN, *numbers).count("⟦") == 1
    assert "argument 'a' of a tool call of message 1" in refused(no_arguments, *numbers)
    two = [user("Q"), answer("", tool_calls=[call("one", a="x"), call("two", a="y")])]
    assert "only supports single tool-calls at once!" in refused(families.LLAMA, *two)


def test_tools_that_the_template_leaves_out_are_missed():
    tools = [{"type": "function", "function": {"name": "weather", "description": "of a town"}}]
    said = refused(families.CHATML, *TURNS, row={"tools": tools})
    assert said == "changed by the template: the tokenizer's chat template leaves out the tools"


def test_what_a_template_generates_in_several_blocks_is_learned_and_nothing_else():
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
        "{% generation %}{{ m.content }}{% endgeneration %} -- "
        "{% for c in m.tool_calls or [] %}{% generation %}{{ c.function.name }}"
        "{{ c.function.arguments | tojson }}{% endgeneration %};{% endfor %}"
        "<|im_end|>\n{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    looks = answer("I look.", tool_calls=[call("look", at="x")])
    turns = [user("Q"), looks, tool("y"), answer("d")]
    assert shown(source, *turns) == (
        'Q<|im_start|>assistant\n⟦I look.⟧ -- ⟦look{"at": "x"}⟧;<|im_end|>\ny'
        "<|im_start|>assistant\n⟦d⟧"
    )
    partly = source.replace("{% generation %}{{ c.function.name }}", "{{ c.function.name }}")
    partly = partly.replace("{{ c.function.arguments", "{% generation %}{{ c.function.arguments")
    assert "generation blocks leave out a part of message 1" in refused(partly, *turns)


def test_a_template_takes_the_date_of_the_configuration_for_today():
    day = datetime.date(2024, 7, 26)
    assert "Today Date: 26 Jul 2024\n" in shown(families.LLAMA, *SAID, date=day)
    assert "Date: July 26, 2024." in shown(families.GRANITE, *TURNS, date=day)
    # One process may read several configurations.
    assert "Today Date: 01 Jan 2025\n" in shown(families.LLAMA, *SAID)


@pytest.mark.parametrize("blank", ["", " \n", "\t"])
def test_end_markers_that_the_data_has_stand_once_and_are_counted(blank):
    closed = [user(f"Q<|im_end|>{blank}"), answer(f"d<|im_end|><|im_end|>{blank}")]
    expected = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n⟦d<|im_end|>⟧"
    assert shown(families.CHATML, *closed) == expected
    assert outcome(families.CHATML, chat(*closed))[0].notes == (rendering.END_IN_TEXT,)
    assert outcome(families.CHATML, chat(user("Q"), answer("d")))[0].notes == ()
    # The marker of a turn may be another one than the end-of-sequence.
    turns = [user("Q"), answer(f"d<end_of_turn>{blank}")]
    assert shown(families.GEMMA, *turns) == shown(families.GEMMA, user("Q"), answer("d"))


def test_a_blank_system_message_at_the_end_changes_nothing():
    example = chat(*TURNS, ("system", " \n"))
    assert outcome(families.CHATML, example)[0] == outcome(families.CHATML, chat(*TURNS))[0]
    assert sum(example.left_out.values()) == 1


def test_an_end_marker_within_an_answer_stays():
    text = shown(families.CHATML, user("Q"), answer("a<|im_end|>b"))
    assert text.endswith("⟦a<|im_end|>b<|im_end|>⟧")


@pytest.mark.parametrize("said", ["a<|im_end|><think>", "a<think> ", "<think>", "</think><think>"])
def test_marks_at_the_end_of_an_answer_are_learned(said):
    text = shown(families.OPENS_THINKING, user("Q"), answer(said))
    assert text == f"<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n⟦{said}<|im_end|>⟧"


def test_a_row_without_a_learned_turn_is_refused():
    example = chat(*TURNS)
    messages = tuple(type(m)(m.role, m.content) for m in example.messages)
    exempt = type(example)(**{**vars(example), "messages": messages})
    item, _ = outcome(families.CHATML, exempt)
    assert item.reason == "no learned turn"


def test_a_cut_row_keeps_the_turns_that_fit():
    whole, made = outcome(families.CHATML, chat(*TURNS))
    data = DataConfig(train=["x"], template="chat", fields=FIELDS)
    (first, second) = whole.response_ranges

    def cut(limit):
        return tokenise.tokenise([chat(*TURNS)], load_template(data), made, limit)[0]

    assert cut(second[0] + 1).response_ranges == [first, (second[0], second[0] + 1)]
    assert cut(second[0]).response_ranges == [first]
    assert cut(first[0] + 1).input_ids == whole.input_ids[: first[0] + 1]
    assert cut(first[0]).reason == "no response tokens left"


def test_a_placeholder_in_the_data_is_a_text_like_others():
    said = "S2Lplaceholder0E"
    assert f"⟦{said}<|im_end|>⟧" in shown(families.CHATML, user(said), answer(said))
