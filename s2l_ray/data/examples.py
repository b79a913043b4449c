"""Examples: the checked content of a row, read from its fields or from its messages."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from s2l_ray.config.data import FieldNames
from s2l_ray.data.choices import read_choices
from s2l_ray.data.messages import CONTENT_KEYS, ROLE_KEYS, Message, context_of, read_messages
from s2l_ray.data.row_errors import REASONS, RowError, checked_text, kind_of
from s2l_ray.data.tools import tools_of
from s2l_ray.errors import first

__all__ = [
    "REASONS",
    "Example",
    "Message",
    "RowError",
    "content_digest",
    "example_id",
    "read_example",
]

BLANK_SYSTEM = "system messages without text left out"
AFTER_LAST_ANSWER = "messages after the last answer left out"
"""What was left out of rows, as notes count it."""
_MEDIA_FIELDS = ("image", "images", "audio", "audios", "video", "videos")


@dataclass(frozen=True)
class Example:
    """The content of a row, whatever the names of its fields; the last message is learned."""

    prompt: str
    """The last question."""
    context: str
    """What belongs to the question; in a conversation, all earlier messages."""
    response: str
    """The last answer."""
    messages: tuple[Message, ...]
    stratum: str
    id: str | None
    answer: str | None
    tools: list[Any] | None = None
    """Schemas of the tools that the conversation offers, for the chat template."""
    is_chat: bool = False
    """The row holds messages, not fields of text."""
    choices: tuple[str, ...] = ()
    """Answers to choose from, of a row of an evaluation."""
    right_choice: int | None = None
    """The number of the right one, from 0 on."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Messages that were left out: what they are -> their number."""


def read_example(row: Mapping[str, Any], fields: FieldNames) -> Example:
    """Return the example that `row` holds.

    Text stays as it is, whitespace included. A required text of whitespace alone counts as empty.
    The response of a row of choices without one is its right choice.

    Raises:
        RowError: a field does not fit; the error names it.
    """
    if not isinstance(row, Mapping):
        raise RowError("wrong type", f"the row is {kind_of(row)}, not an object with fields")
    stratum = _label(row, fields.stratum, (str, int)) or ""
    example_id = _label(row, fields.id, (str, int))
    # A response holds the final answer among other words.
    own_answer = fields.answer if fields.answer != fields.response else None
    answer = _label(row, own_answer, (str, int, float))
    choices, right = read_choices(row, fields)
    if right is not None and row.get(fields.response) is None:
        row = {**row, fields.response: choices[right]}
    if fields.messages is not None:
        given = read_messages(_present(row, fields.messages), fields.messages)
        content = _chat(row, given, fields, fields.messages)
    elif _holds_messages(row.get(fields.prompt)) or _holds_messages(row.get(fields.response)):
        given = _asked_and_answered(row, fields)
        content = _chat(row, given, fields, fields.response)
    else:
        content = _instruction(row, fields)
    return Example(
        **content,
        stratum=stratum,
        id=example_id,
        answer=answer,
        choices=choices,
        right_choice=right,
    )


def example_id(example: Example, occurrence: int) -> str:
    """Return the user's id of an example, or a hash of its content and of its place among equals.

    Args:
        occurrence: the number of equal rows before it.
    """
    if example.id is not None:
        return example.id
    return id_of_content(content_digest(example), occurrence)


def id_of_content(digest: str, occurrence: int) -> str:
    """Return the id of an example without one of the user's, by its `content_digest`."""
    return f"{digest}-{occurrence}" if occurrence else digest


def content_digest(example: Example) -> str:
    """Return 32 hexadecimal digits of everything that a model is trained on, and of the stratum."""
    turns = [_digested(message) for message in example.messages]
    content: list[Any] = [example.prompt, example.context, turns, example.stratum]
    if example.tools:
        content.append(example.tools)
    return blake2b(json.dumps(content, default=str).encode(), digest_size=16).hexdigest()


def _digested(message: Message) -> list[Any]:
    """Return role and content, and the rest only where there is one, so that old ids stay."""
    is_exempt = message.role == "assistant" and not message.learned
    if not message.fields and not is_exempt:
        return [message.role, message.content]
    return [message.role, message.content, message.fields, message.learned]


def _instruction(row: Mapping[str, Any], fields: FieldNames) -> dict[str, Any]:
    """Return the content of a row of texts; a system text and earlier turns join its context."""
    prompt = _required(row, fields.prompt)
    context = _optional(row, fields.context)
    response = _required(row, fields.response)
    user = f"{prompt}\n\n{context}" if context else prompt
    earlier = [*_system(row, fields), *_history(row, fields)]
    context = "\n".join(text for text in (context_of(earlier), context) if text)
    messages = (*earlier, Message("user", user), Message("assistant", response, learned=True))
    return {"prompt": prompt, "context": context, "response": response, "messages": messages}


def _chat(
    row: Mapping[str, Any], given: Sequence[Message], fields: FieldNames, name: str
) -> dict[str, Any]:
    """Return the content of a conversation, up to its last answer that is learned."""
    _check_no_media(row)
    kept = [m for m in given if m.role != "system" or m.content.strip()]
    answered = [i for i, message in enumerate(kept) if message.learned]
    if not answered:
        raise RowError("missing field", f"{name!r} {_why_no_answer(kept)}")
    messages = kept[: answered[-1] + 1]
    asked = [i for i, message in enumerate(messages) if message.role == "user"]
    if not asked:
        raise RowError("missing field", f"{name!r} has no message by a user before its last answer")
    if messages[0].role != "system":
        messages = [*_system(row, fields), *messages]
        asked = [i for i, message in enumerate(messages) if message.role == "user"]
    context = context_of([m for i, m in enumerate(messages[:-1]) if i != asked[-1]])
    left_out = {
        BLANK_SYSTEM: len(given) - len(kept),
        AFTER_LAST_ANSWER: len(kept) - answered[-1] - 1,
    }
    return {
        "prompt": messages[asked[-1]].content,
        "context": context,
        "response": messages[-1].text,
        "messages": tuple(messages),
        "tools": tools_of(row.get(fields.tools), fields.tools) if fields.tools else None,
        "is_chat": True,
        "left_out": {what: count for what, count in left_out.items() if count},
    }


def _why_no_answer(messages: Sequence[Message]) -> str:
    num_answers = sum(message.role == "assistant" for message in messages)
    if num_answers:
        return f"has {num_answers} answers, and the row exempts all of them from the loss"
    return "has no answer by an assistant"


def _asked_and_answered(row: Mapping[str, Any], fields: FieldNames) -> list[Message]:
    """Return the messages of a prompt and of its completion, of which only these are learned."""
    asked, answered = (
        _as_messages(row, *pair)
        for pair in ((fields.prompt, "user"), (fields.response, "assistant"))
    )
    return [*(replace(message, learned=False) for message in asked), *answered]


def _as_messages(row: Mapping[str, Any], name: str, role: str) -> list[Message]:
    """Return the messages of a field; a text is one message."""
    if isinstance(row.get(name), str) and not _holds_messages(row[name]):
        return [Message(role, _required(row, name), learned=role == "assistant")]
    return read_messages(_present(row, name), name)


def _holds_messages(value: Any) -> bool:
    """Tell whether a field of a prompt holds messages or their JSON text, not a text."""
    if isinstance(value, str):
        value = _parsed(value) if value.lstrip().startswith("[") else None
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(i, Mapping) and _names_role_and_content(i) for i in value)


def _names_role_and_content(turn: Mapping[str, Any]) -> bool:
    return not turn.keys().isdisjoint(ROLE_KEYS) and not turn.keys().isdisjoint(CONTENT_KEYS)


def _system(row: Mapping[str, Any], fields: FieldNames) -> list[Message]:
    """Return the system text of a row as a message, if it has one."""
    text = None if fields.system is None else row.get(fields.system)
    if not isinstance(text, str) or not text.strip():
        return []  # nothing, or a user's own field of that name
    return [Message("system", checked_text(text, repr(fields.system)))]


def _history(row: Mapping[str, Any], fields: FieldNames) -> list[Message]:
    """Return the earlier questions and answers of a row, if it has a list of them."""
    name = fields.history
    pairs = None if name is None else row.get(name)
    if isinstance(pairs, str):
        pairs = _parsed(pairs)
    if not isinstance(pairs, list | tuple):
        return []  # a user's own field of that name
    messages = []
    for number, pair in enumerate(pairs):
        path = f"{name}[{number}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError("wrong type", f"{path} is no pair of a question and its answer")
        question, answer = (checked_text(pair[i], f"{path}[{i}]") for i in range(2))
        messages += [Message("user", question), Message("assistant", answer, learned=True)]
    return messages


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _check_no_media(row: Mapping[str, Any]) -> None:
    name = next((name for name in _MEDIA_FIELDS if row.get(name)), None)
    if name is not None:
        detail = f"the row has {name!r}; models of text read no images, audio or video"
        raise RowError("wrong type", detail)


def _present(row: Mapping[str, Any], name: str) -> Any:
    if row.get(name) is None:
        names = first(list(row), limit=8) or "none"
        chat = next((key for key, value in row.items() if _holds_messages(value)), None)
        hint = f"; data.fields: {{messages: {chat}}} reads the conversation" if chat else ""
        if name in row:
            raise RowError("empty field", f"{name!r} is null{hint}")
        raise RowError("missing field", f"no {name!r}; the row's fields: {names}{hint}")
    return row[name]


def _required(row: Mapping[str, Any], name: str) -> str:
    text = checked_text(_present(row, name), repr(name))
    if not text.strip():
        raise RowError("empty field", f"{name!r} holds no text")
    return text


def _optional(row: Mapping[str, Any], name: str | None) -> str:
    value = None if name is None else row.get(name)
    return "" if value is None else checked_text(value, repr(name))


def _label(row: Mapping[str, Any], name: str | None, kinds: tuple[type, ...]) -> str | None:
    """Return an optional short value as text; None if it is absent, null or empty."""
    value = None if name is None else row.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise RowError("wrong type", f"{name!r} is {kind_of(value)}, not text or a number")
    return checked_text(str(value), repr(name))
