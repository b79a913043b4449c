"""Conversations as people store them, and the messages that templates get of them."""

import datetime
import json

import pyarrow as pa
import pytest

from s2l_ray.config.data import FieldNames
from s2l_ray.data.examples import (
    AFTER_LAST_ANSWER,
    BLANK_SYSTEM,
    Example,
    RowError,
    content_digest,
    read_example,
)

MESSAGES = FieldNames(messages="messages")
SHAREGPT = FieldNames(messages="conversations")
PAIR = FieldNames(prompt="prompt", response="completion")
Q, A = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
SCHEMA = {"name": "weather", "description": "Of a city.", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": SCHEMA}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}


def chat(*messages: dict, **columns) -> Example:
    return read_example({"messages": list(messages), **columns}, MESSAGES)


def given_turns(example: Example) -> list[dict]:
    """The messages as a chat template gets them."""
    return [message.turn for message in example.messages]


def learned(example: Example) -> list[str]:
    return [message.content for message in example.messages if message.learned]


@pytest.mark.parametrize(
    ("given", "role"),
    [
        ("developer", "system"),
        ("human", "user"),
        ("gpt", "assistant"),
        ("model", "assistant"),
        ("bot", "assistant"),
        ("Tool", "tool"),
        ("function", "tool"),
        ("observation", "tool"),
        ("ipython", "tool"),
        ("environment", "tool"),
        ("function-response", "tool"),
    ],
)
def test_roles_reach_the_template_by_the_names_that_templates_know(given, role):
    example = chat({"role": given, "content": "x"}, Q, A)

    assert given_turns(example) == [{"role": role, "content": "x"}, Q, A]
    assert [message.learned for message in example.messages] == [role == "assistant", False, True]


def test_a_conversation_with_tools_keeps_its_calls_and_their_results():
    said = {"role": "assistant", "content": None, "tool_calls": [CALL | {"id": "c1"}]}
    result = {"role": "tool", "content": "4 degrees", "tool_call_id": "c1", "name": "weather"}
    example = chat(Q, said, result, A, tools=[TOOL])

    assert given_turns(example) == [Q, said | {"content": ""}, result, A]
    assert example.tools == [TOOL]
    assert learned(example) == ["", "A"]
    assert '"city": "Oslo"' in example.context


@pytest.mark.parametrize("content", ["", None, "absent"])
@pytest.mark.parametrize(
    "calls",
    [
        [CALL],
        [{"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}],
        [{"name": "weather", "arguments": {"city": "Oslo"}}],
        json.dumps([CALL]),
        [json.dumps(CALL)],
    ],
)
def test_calls_of_every_shape_become_objects_with_a_function(calls, content):
    said = {"role": "assistant", "content": content, "tool_calls": calls}
    if content == "absent":
        del said["content"]
    example = chat(Q, said)

    assert given_turns(example)[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert json.loads(example.response) == [CALL]


def test_a_null_argument_in_json_text_is_the_callers_own():
    arguments = '{"city": "Oslo", "unit": null}'
    said = {"role": "assistant", "tool_calls": [{"name": "weather", "arguments": arguments}]}
    call = given_turns(chat(Q, said))[1]["tool_calls"][0]

    assert call["function"]["arguments"] == {"city": "Oslo", "unit": None}


def test_arguments_that_are_no_json_stay_as_text():
    said = {"role": "assistant", "tool_calls": [{"name": "python", "arguments": "1 + 1"}]}

    assert given_turns(chat(Q, said))[1]["tool_calls"][0]["function"]["arguments"] == "1 + 1"


@pytest.mark.parametrize(
    "said",
    [
        {"role": "assistant", "content": None, "function_call": CALL["function"]},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
        {"from": "tool_call", "value": json.dumps(CALL["function"])},
    ],
)
def test_the_older_shapes_of_a_call_are_read(said):
    assert given_turns(chat(Q, said))[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [CALL],
    }


@pytest.mark.parametrize(
    "tools", [[TOOL], [SCHEMA], TOOL, json.dumps([TOOL]), json.dumps([SCHEMA]), [json.dumps(TOOL)]]
)
def test_schemas_of_every_shape_become_one_list(tools):
    assert chat(Q, A, tools=tools).tools == [TOOL]


@pytest.mark.parametrize("tools", [None, "", [], "[]"])
def test_a_row_without_tools_has_none(tools):
    assert chat(Q, A, tools=tools).tools is None


def test_tools_that_are_no_schemas_are_refused():
    with pytest.raises(RowError, match="'tools' is of type str, not a list of tools' schemas"):
        chat(Q, A, tools="hammer")


def test_what_a_table_fills_with_nulls_does_not_reach_the_template():
    rows = [
        [Q, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
        [Q, A | {"name": "Ann"}],
        [Q, {"role": "assistant", "tool_calls": [{"name": "time", "arguments": {"zone": "CET"}}]}],
    ]
    stored = pa.table({"messages": rows}).to_pylist()

    calls = [given_turns(read_example(row, MESSAGES)) for row in stored]

    assert calls[0] == [Q, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    assert calls[1] == [Q, A | {"name": "Ann"}]
    assert calls[2][1]["tool_calls"][0]["function"] == {
        "name": "time",
        "arguments": {"zone": "CET"},
    }


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "mood"])
def test_other_keys_reach_the_template(key):
    assert given_turns(chat(Q, A | {key: "I think."})) == [Q, A | {key: "I think."}]


def test_text_parts_are_one_text_and_thinking_is_the_reasoning():
    parts = [{"type": "text", "text": "a ", "image_url": None}, {"type": "text", "text": "b"}]
    thought = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "A"}]

    example = chat({"role": "user", "content": parts}, {"role": "assistant", "content": thought})

    assert example.prompt == "a b"
    assert given_turns(example)[1] == A | {"reasoning_content": "Hm."}


@pytest.mark.parametrize("kind", ["image", "image_url", "input_audio", "audio", "video"])
def test_images_and_sounds_are_refused_as_such(kind):
    parts = [{"type": "text", "text": "What is it?"}, {"type": kind}]
    with pytest.raises(RowError, match=rf"content\[1\] is of type '{kind}'; models of text read"):
        chat({"role": "user", "content": parts}, A)


def test_a_row_with_images_beside_its_messages_is_refused():
    with pytest.raises(RowError, match="the row has 'images'; models of text read no images"):
        chat(Q, A, images=["cat.png"])
    assert chat(Q, A, images=[], image=None).response == "A"


@pytest.mark.parametrize(
    "exempt",
    [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": False}, {"loss": False}],
)
def test_an_answer_that_the_row_exempts_is_not_learned(exempt):
    example = chat(Q, A | exempt, Q, {"role": "assistant", "content": "B", "weight": 1})

    assert learned(example) == ["B"]
    assert given_turns(example)[1] == A
    assert content_digest(example) != content_digest(
        chat(Q, A, Q, {"role": "assistant", "content": "B"})
    )


def test_the_last_learned_answer_is_the_response():
    example = chat(Q, A, {"role": "user", "content": "Q2"}, A | {"content": "B", "weight": 0})

    assert (example.prompt, example.response, learned(example)) == ("Q", "A", ["A"])
    assert example.left_out == {AFTER_LAST_ANSWER: 2}


def test_a_weight_between_is_refused():
    with pytest.raises(RowError, match=r"messages\[1\].weight is 0.5; an answer is learned"):
        chat(Q, A | {"weight": 0.5})


def test_a_row_that_exempts_all_answers_is_refused():
    with pytest.raises(RowError, match="has 2 answers, and the row exempts all of them"):
        chat(Q, A | {"weight": 0}, Q, A | {"train": False})


def test_a_chat_that_ends_with_a_question_keeps_its_answers():
    example = chat(Q, A, {"role": "user", "content": "And then?"})

    assert given_turns(example) == [Q, A]
    assert example.left_out == {AFTER_LAST_ANSWER: 1}


@pytest.mark.parametrize("blank", ["", " \n", None])
@pytest.mark.parametrize("position", [0, 2])
def test_a_system_message_without_text_is_left_out_and_counted(blank, position):
    messages = [Q, A]
    messages.insert(position, {"role": "system", "content": blank})
    example = chat(*messages)

    assert given_turns(example) == [Q, A]
    assert example.left_out == {BLANK_SYSTEM: 1}


def test_an_answer_before_any_question_alone_is_refused():
    with pytest.raises(RowError, match="no message by a user before its last answer"):
        chat(A, Q)


@pytest.mark.parametrize("message", [A | {"content": ""}, A | {"content": "", "tool_calls": []}])
def test_an_empty_answer_is_refused(message):
    with pytest.raises(RowError, match=r"messages\[1\].content holds no text"):
        chat(Q, message, Q, A)


def test_what_a_tool_returns_may_be_empty_or_an_object():
    result = {"role": "tool", "content": {"degrees": 4}}
    example = chat(Q, {"role": "assistant", "tool_calls": [CALL]}, result, A)
    assert given_turns(example)[2] == {"role": "tool", "content": '{"degrees": 4}'}
    empty = chat(Q, {"role": "assistant", "tool_calls": [CALL]}, result | {"content": ""}, A)
    assert given_turns(empty)[2] == {"role": "tool", "content": ""}


@pytest.mark.parametrize(
    "value",
    [
        json.dumps([Q, A]),
        {"role": ["user", "assistant"], "content": ["Q", "A"]},
        [{"from": "human", "content": "Q"}, {"role": "assistant", "value": "A"}],
        [{"role": "user", "text": "Q"}, {"role": "assistant", "text": "A"}],
    ],
)
def test_messages_as_json_text_as_a_table_and_of_mixed_names_are_read(value):
    assert given_turns(read_example({"messages": value}, MESSAGES)) == [Q, A]


@pytest.mark.parametrize("value", ["hello", '{"role": "user"}', "[", {"role": "user"}, {}])
def test_what_is_no_list_of_messages_is_refused(value):
    with pytest.raises(RowError, match=r"wrong type: 'messages' is .* not a list of messages"):
        read_example({"messages": value}, MESSAGES)


def test_sharegpt_with_system_and_tools_beside_it():
    talk = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    row = {"conversations": talk, "system": "Be kind.", "tools": json.dumps([SCHEMA])}
    example = read_example(row, SHAREGPT)

    assert given_turns(example) == [{"role": "system", "content": "Be kind."}, Q, A]
    assert example.tools == [TOOL]
    own = [{"from": "system", "value": "Be brief."}, *talk]
    spoken = read_example(row | {"conversations": own}, SHAREGPT)
    assert [turn["content"] for turn in given_turns(spoken)] == ["Be brief.", "Q", "A"]


def test_a_row_with_a_conversation_says_how_to_read_it():
    row = {"talk": [Q, A], "id": "a"}
    with pytest.raises(RowError, match=r"fields: talk, id; data.fields: {messages: talk} reads"):
        read_example(row, FieldNames())


def test_of_a_conversational_prompt_and_completion_only_the_completion_is_learned():
    prompt = [{"role": "system", "content": "Be kind."}, Q, A, {"role": "user", "content": "Q2"}]
    answer = {"role": "assistant", "content": "A2"}
    example = read_example({"prompt": prompt, "completion": [answer]}, PAIR)

    assert given_turns(example) == [*prompt, answer]
    assert (learned(example), example.prompt, example.is_chat) == (["A2"], "Q2", True)
    as_json = {"prompt": json.dumps(prompt), "completion": json.dumps([answer])}
    assert read_example(as_json, PAIR) == example
    texts = read_example({"prompt": [Q], "completion": "A"}, PAIR)
    assert given_turns(texts) == [Q, A]
    for text in ("A", "[1] A", "[", '["A"]', '[{"role": "user"}]'):
        assert not read_example({"prompt": "Q", "completion": text}, PAIR).is_chat


def test_alpaca_with_history_and_system():
    row = {
        "instruction": "Q2",
        "input": "data",
        "output": "A2",
        "system": "Be kind.",
        "history": [["Q", "A"]],
    }
    example = read_example(row, FieldNames())

    last = [{"role": "user", "content": "Q2\n\ndata"}, {"role": "assistant", "content": "A2"}]
    assert given_turns(example) == [{"role": "system", "content": "Be kind."}, Q, A, *last]
    assert example.context == "System: Be kind.\nUser: Q\nAssistant: A\ndata"
    assert (example.prompt, example.is_chat) == ("Q2", False)
    assert example == read_example(row | {"history": '[["Q", "A"]]'}, FieldNames())


@pytest.mark.parametrize("own", [{"system": 3}, {"system": ""}, {"history": "Of Rome"}])
def test_a_column_of_that_name_with_something_else_is_the_users_own(own):
    row = {"instruction": "Q", "output": "A"}

    assert read_example(row | own, FieldNames()) == read_example(row, FieldNames())


def test_a_history_of_something_else_than_pairs_is_refused():
    with pytest.raises(RowError, match=r"history\[0\] is no pair of a question and its answer"):
        read_example({"instruction": "Q", "output": "A", "history": ["Q0"]}, FieldNames())


def test_fields_and_tools_enter_the_digest():
    plain = content_digest(chat(Q, A))
    others = [
        chat(Q, A | {"reasoning_content": "Hm."}),
        chat(Q, A, tools=[TOOL]),
        chat(Q, A | {"tool_calls": [CALL]}),
    ]
    assert len({plain, *map(content_digest, others)}) == 4


@pytest.mark.parametrize("value", [datetime.date(2025, 1, 1), b"\x89PNG"])
def test_a_call_that_json_cannot_hold_rejects_its_row(value):
    call = {"name": "weather", "arguments": {"on": value}}

    with pytest.raises(RowError, match=r"messages\[1\]: its tool calls are no JSON"):
        chat(Q, {"role": "assistant", "content": "", "tool_calls": [call]}, Q, A)
