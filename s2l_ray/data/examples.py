"""What a row says: its fields or its messages, checked, as one example."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

from s2l_ray.config.sections import FieldNames
from s2l_ray.errors import first

Role = Literal["system", "user", "assistant"]

REASONS = (
    "malformed JSON",
    "invalid UTF-8",
    "missing field",
    "empty field",
    "wrong type",
    "no response tokens left",
    "duplicate id",
)

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}


class RowError(Exception):
    """A row that cannot be used: one of REASONS, and what exactly was found."""

    def __init__(self, reason: str, detail: str) -> None:
        assert reason in REASONS, reason
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    text: str


@dataclass(frozen=True)
class Example:
    """What a row says, whatever its fields are called; the response is the last message."""

    prompt: str
    context: str
    response: str
    messages: tuple[Message, ...]
    stratum: str
    id: str | None
    answer: str | None


def read_example(row: Mapping[str, Any], fields: FieldNames) -> Example:
    """The example that `row` holds; RowError names the field that does not fit.

    Text is taken as it is, whitespace included; a required text of whitespace alone is empty.
    """
    if not isinstance(row, Mapping):
        raise RowError("wrong type", f"the row is {_kind(row)}, not an object with fields")
    stratum = _label(row, fields.stratum, (str, int)) or ""
    example_id = _label(row, fields.id, (str, int))
    # A response holds the final answer among other words.
    own_answer = fields.answer if fields.answer != fields.response else None
    answer = _label(row, own_answer, (str, int, float))
    if fields.messages is None:
        prompt = _required(row, fields.prompt)
        context = _optional(row, fields.context)
        response = _required(row, fields.response)
        user = f"{prompt}\n\n{context}" if context else prompt
        messages: tuple[Message, ...] = (Message("user", user), Message("assistant", response))
    else:
        messages = _messages(row, fields.messages)
        prompt, context, response = _conversation(messages, fields.messages)
    return Example(prompt, context, response, messages, stratum, example_id, answer)


def content_digest(example: Example) -> str:
    """32 hexadecimal digits that depend on everything a model is trained on, and the stratum."""
    turns = [[message.role, message.text] for message in example.messages]
    content = [example.prompt, example.context, turns, example.stratum]
    return blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def _kind(value: object) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"


def _required(row: Mapping[str, Any], name: str) -> str:
    if row.get(name) is None:
        found = first(list(row), limit=8) or "none"
        raise RowError("missing field", f"no {name!r}; the row's fields: {found}")
    text = _checked(row[name], repr(name))
    if not text.strip():
        raise RowError("empty field", f"{name!r} holds no text")
    return text


def _optional(row: Mapping[str, Any], name: str | None) -> str:
    value = None if name is None else row.get(name)
    return "" if value is None else _checked(value, repr(name))


def _label(row: Mapping[str, Any], name: str | None, kinds: tuple[type, ...]) -> str | None:
    """An optional short value as text; None where it is absent, null or empty."""
    value = None if name is None else row.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise RowError("wrong type", f"{name!r} is {_kind(value)}, not text or a number")
    return _checked(str(value), repr(name))


def _checked(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise RowError("wrong type", f"{place} is {_kind(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        detail = f"{place} has an unpaired surrogate at character {error.start}"
        raise RowError("invalid UTF-8", detail) from None
    return value


def _messages(row: Mapping[str, Any], name: str) -> tuple[Message, ...]:
    """The turns of a chat row; an empty system message counts as absent."""
    turns = row.get(name)
    if turns is None:
        raise RowError("missing field", f"no {name!r}; the row's fields: {first(list(row), 8)}")
    if not isinstance(turns, list | tuple):
        raise RowError("wrong type", f"{name!r} is {_kind(turns)}, not a list of messages")
    if not turns:
        raise RowError("empty field", f"{name!r} holds no messages")
    read = [_message(turn, f"{name}[{i}]") for i, turn in enumerate(turns)]
    return tuple(message for message in read if message is not None)


def _message(turn: object, place: str) -> Message | None:
    if not isinstance(turn, Mapping):
        raise RowError("wrong type", f"{place} is {_kind(turn)}, not an object")
    # A table of both shapes has all four keys, two of them null.
    role_key, text_key = ("role", "content") if turn.get("role") is not None else ("from", "value")
    if turn.get(role_key) is None:
        raise RowError("missing field", f"{place} has neither 'role' nor 'from'")
    role = _ROLES.get(_checked(turn[role_key], f"{place}.{role_key}").strip().lower())
    if role is None:
        known = "system, user (human) and assistant (gpt)"
        raise RowError("wrong type", f"{place}: role {turn[role_key]!r} is not among {known}")
    if role == "system" and turn.get(text_key) in (None, ""):
        return None
    if turn.get(text_key) is None:
        raise RowError("missing field", f"{place} has no {text_key!r}")
    text = _checked(turn[text_key], f"{place}.{text_key}")
    if not text.strip():
        raise RowError("empty field", f"{place}.{text_key} holds no text")
    return Message(role, text)


def _conversation(messages: Sequence[Message], name: str) -> tuple[str, str, str]:
    """The last question, the earlier turns as its context, and the answer that closes it."""
    if not messages or messages[-1].role != "assistant":
        found = f"by {messages[-1].role}" if messages else "empty"
        raise RowError("missing field", f"{name!r} does not end with an answer (it is {found})")
    asked = [i for i, message in enumerate(messages) if message.role == "user"]
    if not asked:
        raise RowError("missing field", f"{name!r} has no message by a user")
    earlier = [m for i, m in enumerate(messages[:-1]) if i != asked[-1]]
    context = "\n".join(f"{m.role.capitalize()}: {m.text}" for m in earlier)
    return messages[asked[-1]].text, context, messages[-1].text
