"""Rows as they come from real files, and every way in which one cannot be used."""

import json
import pickle

import pytest

from s2l_ray.config.data import FieldNames
from s2l_ray.data.examples import REASONS, Message, RowError, content_digest, read_example

FIELDS = FieldNames()
CHAT = FieldNames(messages="conversations")
ROW = {"instruction": "Add.", "input": "1 and 2", "output": "3", "source": "toy", "id": "a-1"}
HALF_PAIR = json.loads('"half a pair: \\ud83d"')


def turns(*pairs, role="role", text="content"):
    return {"conversations": [{role: who, text: said} for who, said in pairs]}


def test_a_row_of_fields_is_a_question_with_its_context_and_an_answer():
    example = read_example(ROW | {"answer": "3"}, FIELDS)

    assert (example.prompt, example.context, example.response) == ("Add.", "1 and 2", "3")
    assert example.messages == (
        Message("user", "Add.\n\n1 and 2"),
        Message("assistant", "3", learned=True),
    )
    assert (example.stratum, example.id, example.answer) == ("toy", "a-1", "3")


@pytest.mark.parametrize(
    "absent", [{}, {"input": None, "source": None, "id": None, "answer": None}]
)
@pytest.mark.parametrize("empty", [{}, {"input": "", "source": "", "id": "", "answer": ""}])
def test_optional_fields_may_be_absent_null_or_empty(absent, empty):
    example = read_example({"instruction": "Q", "output": "A"} | absent | empty, FIELDS)

    assert (example.context, example.stratum, example.id, example.answer) == ("", "", None, None)
    assert example.messages == (Message("user", "Q"), Message("assistant", "A", learned=True))


def test_fields_that_the_configuration_switches_off_are_not_read():
    fields = FieldNames(context=None, stratum=None, id=None, answer=None)
    example = read_example(ROW | {"input": 1.5, "id": [], "source": {}}, fields)

    assert (example.context, example.stratum, example.id, example.answer) == ("", "", None, None)


def test_numbers_are_taken_as_text_where_a_label_is_expected():
    example = read_example(ROW | {"id": 7, "source": 0, "answer": 2.5}, FIELDS)

    assert (example.id, example.stratum, example.answer) == ("7", "0", "2.5")


def test_the_response_is_no_final_answer_though_a_field_of_that_name_holds_it():
    fields = FieldNames(prompt="question", response="answer")
    row = {"question": "2 + 2?", "answer": "Two and two. The answer is 4."}
    assert read_example(row, fields).answer is None
    assert (
        read_example(row | {"final": 4}, fields.model_copy(update={"answer": "final"})).answer
        == "4"
    )


def test_white_space_around_a_text_is_kept():
    example = read_example({"instruction": " Q\n", "output": "\tA "}, FIELDS)

    assert (example.prompt, example.response) == (" Q\n", "\tA ")


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        ({"output": None}, "empty field", "'output' is null"),
        ({"output": " \n"}, "empty field", "'output' holds no text"),
        ({"instruction": ""}, "empty field", "'instruction' holds no text"),
        ({"instruction": 5}, "wrong type", "'instruction' is of type int, not text"),
        ({"output": ["a"]}, "wrong type", "'output' is of type list"),
        ({"output": b"a"}, "wrong type", "'output' is of type bytes"),
        ({"input": 5}, "wrong type", "'input' is of type int"),
        ({"id": 1.5}, "wrong type", "'id' is of type float"),
        ({"id": True}, "wrong type", "'id' is of type bool"),
        ({"source": ["a"]}, "wrong type", "'source' is of type list"),
        ({"answer": {}}, "wrong type", "'answer' is of type dict"),
        ({"output": HALF_PAIR}, "invalid UTF-8", "'output' has an unpaired surrogate at character"),
        ({"id": HALF_PAIR}, "invalid UTF-8", "'id' has an unpaired surrogate"),
    ],
)
def test_a_row_that_does_not_fit_says_why(change, reason, detail):
    with pytest.raises(RowError) as error:
        read_example(ROW | change, FIELDS)

    assert error.value.reason == reason
    assert detail in error.value.detail


def test_an_absent_required_field_is_named():
    with pytest.raises(RowError, match="missing field: no 'output'; the row's fields: none"):
        read_example({}, FieldNames(prompt="output"))


@pytest.mark.parametrize("row", [[1, 2], "text", 3, None])
def test_a_row_that_is_no_object_is_refused(row):
    with pytest.raises(RowError, match="wrong type: the row is"):
        read_example(row, FIELDS)


@pytest.mark.parametrize(
    "row",
    [
        turns(("user", "Q"), ("assistant", "A")),
        turns(("human", "Q"), ("gpt", "A"), role="from", text="value"),
        turns(("Human", "Q"), ("GPT", "A"), role="from", text="value"),
        turns((" USER ", "Q"), ("Assistant", "A")),
        turns(("system", ""), ("user", "Q"), ("assistant", "A")),
        turns(("system", None), ("user", "Q"), ("assistant", "A")),
        # A parquet column of both shapes: all keys are there, half of them null.
        {
            "conversations": [
                {"role": None, "content": None, "from": "human", "value": "Q"},
                {"role": "assistant", "content": "A", "from": None, "value": None},
            ]
        },
    ],
)
def test_both_chat_shapes_are_read_in_any_case(row):
    example = read_example(row, CHAT)

    assert example.messages == (Message("user", "Q"), Message("assistant", "A", learned=True))
    assert (example.prompt, example.context, example.response) == ("Q", "", "A")


def test_earlier_turns_are_the_context_of_the_last_question():
    said = ("system", "Be kind."), ("user", "Q1"), ("assistant", "A1"), ("user", "Q2")
    example = read_example(turns(*said, ("assistant", "A2")) | {"id": 3, "source": "s"}, CHAT)

    assert example.messages == tuple(
        Message(role, text, learned=role == "assistant")
        for role, text in (*said, ("assistant", "A2"))
    )
    assert example.prompt == "Q2"
    assert example.context == "System: Be kind.\nUser: Q1\nAssistant: A1"
    assert (example.response, example.id, example.stratum) == ("A2", "3", "s")


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({}, "missing field", "no 'conversations'"),
        ({"conversations": None}, "empty field", "'conversations' is null"),
        ({"conversations": [{"role": "user", "content": None}]}, "empty field", "content is null"),
        ({"conversations": []}, "empty field", "'conversations' holds no messages"),
        ({"conversations": "hello"}, "wrong type", "'conversations' is of type str, not a list"),
        ({"conversations": ["hello"]}, "wrong type", "conversations[0] is of type str"),
        ({"conversations": [{"content": "Q"}]}, "missing field", "neither 'role' nor 'from'"),
        ({"conversations": [{"role": "user"}]}, "missing field", "[0] has no 'content'"),
        ({"conversations": [{"from": "gpt"}]}, "missing field", "[0] has no 'value'"),
        (turns(("narrator", "x")), "wrong type", "[0]: role 'narrator' is not among"),
        (turns((3, "x")), "wrong type", "conversations[0].role is of type int"),
        (turns(("user", [3])), "wrong type", "[0].content[0] is of type int, not a part"),
        (turns(("user", {"a": 1})), "wrong type", "[0].content is of type dict, not text"),
        (turns(("user", "Q"), ("assistant", " ")), "empty field", "[1].content holds no text"),
        (turns(("user", HALF_PAIR)), "invalid UTF-8", "[0].content has an unpaired"),
        (turns(("user", "Q")), "missing field", "has no answer by an assistant"),
        (turns(("system", "")), "missing field", "has no answer by an assistant"),
        (turns(("assistant", "A")), "missing field", "has no message by a user"),
    ],
)
def test_a_conversation_that_does_not_fit_says_why(row, reason, detail):
    with pytest.raises(RowError) as error:
        read_example(row, CHAT)

    assert error.value.reason == reason
    assert detail in error.value.detail


def test_the_digest_depends_on_what_is_trained_on_and_on_nothing_else():
    digest = content_digest(read_example(ROW, FIELDS))

    assert len(digest) == 32
    assert int(digest, 16) >= 0
    assert digest == content_digest(read_example(ROW | {"id": "b", "answer": "9"}, FIELDS))
    changes = [{"instruction": "A"}, {"input": ""}, {"output": "4"}, {"source": "other"}]
    moved = {"instruction": "Add.\n\n1 and 2", "input": ""}
    others = {content_digest(read_example(ROW | c, FIELDS)) for c in [*changes, moved]}
    assert len(others - {digest}) == 5


def test_ids_that_earlier_versions_gave_stay():
    """The digests were computed by the code from before messages had more than a text."""
    chat = turns(("human", "Q1"), ("gpt", "A1"), role="from", text="value")["conversations"]
    system, last = {"from": "system", "value": "Be kind."}, turns(("user", "Q2"))["conversations"]
    answer = {"role": "assistant", "content": "A2", "weight": 1}
    talk = {"conversations": [system, *chat, *last, answer]}

    assert content_digest(read_example(ROW, FIELDS)) == "c03c657b4b332204f15a75346abce8f2"
    assert content_digest(read_example(talk, CHAT)) == "d9c837d2cae5a7985d326004262ea819"


def test_a_row_error_survives_the_way_back_from_a_worker():
    error = pickle.loads(pickle.dumps(RowError("empty field", "'output' holds no text")))  # noqa: S301

    assert (error.reason, error.detail) == ("empty field", "'output' holds no text")
    assert error.reason in REASONS
