"""Examples: the checked content of a row, read from its fields or from its messages."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from s2l_ray.config.sections import FieldNames
from s2l_ray.errors import first

REASONS = (
    "malformed JSON",
    "invalid UTF-8",
    "missing field",
    "empty field",
    "wrong type",
    "no response tokens left",
    "duplicate id",
)

_ROLES: dict[str, str] = {
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
    """A row that cannot be used: one of REASONS, and the detail that explains it."""

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

    role: str
    """The role by the name that chat templates know."""
    content: str
    learned: bool = False
    """An answer that carries loss: a turn of the assistant that the row does not exempt."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Every other key of the turn, for the chat template."""

    @property
    def turn(self) -> dict[str, Any]:
        """The turn as a chat template gets it."""
        return {"role": self.role, "content": self.content, **self.fields}


@dataclass(frozen=True)
class Example:
    """The content of a row, whatever the names of its fields; the response is the last message."""

    prompt: str
    context: str
    response: str
    messages: tuple[Message, ...]
    stratum: str
    id: str | None
    answer: str | None
    tools: list[Any] | None = None
    """Schemas of the tools that the conversation offers, for the chat template."""


def read_example(row: Mapping[str, Any], fields: FieldNames) -> Example:
    """Return the example that `row` holds.

    Text stays as it is, whitespace included. A required text of whitespace alone counts as empty.

    Raises:
        RowError: a field does not fit; the error names it.
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
        messages: tuple[Message, ...] = (
            Message("user", user),
            Message("assistant", response, learned=True),
        )
    else:
        messages = _messages(row, fields.messages)
        prompt, context, response = _conversation(messages, fields.messages)
    return Example(prompt, context, response, messages, stratum, example_id, answer)


def content_digest(example: Example) -> str:
    """Return 32 hexadecimal digits of everything that a model is trained on, and of the stratum."""
    turns = [[message.role, message.content] for message in example.messages]
    content = [example.prompt, example.context, turns, example.stratum]
    return blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def _kind(value: object) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"


def _required(row: Mapping[str, Any], name: str) -> str:
    if row.get(name) is None:
        names = first(list(row), limit=8) or "none"
        raise RowError("missing field", f"no {name!r}; the row's fields: {names}")
    text = _checked(row[name], repr(name))
    if not text.strip():
        raise RowError("empty field", f"{name!r} holds no text")
    return text


def _optional(row: Mapping[str, Any], name: str | None) -> str:
    value = None if name is None else row.get(name)
    return "" if value is None else _checked(value, repr(name))


def _label(row: Mapping[str, Any], name: str | None, kinds: tuple[type, ...]) -> str | None:
    """Return an optional short value as text; None if it is absent, null or empty."""
    value = None if name is None else row.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise RowError("wrong type", f"{name!r} is {_kind(value)}, not text or a number")
    return _checked(str(value), repr(name))


def _checked(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise RowError("wrong type", f"{path} is {_kind(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        detail = f"{path} has an unpaired surrogate at character {error.start}"
        raise RowError("invalid UTF-8", detail) from None
    return value


def _messages(row: Mapping[str, Any], name: str) -> tuple[Message, ...]:
    """Return the turns of a chat row; an empty system message counts as absent."""
    turns = row.get(name)
    if turns is None:
        raise RowError("missing field", f"no {name!r}; the row's fields: {first(list(row), 8)}")
    if not isinstance(turns, list | tuple):
        raise RowError("wrong type", f"{name!r} is {_kind(turns)}, not a list of messages")
    if not turns:
        raise RowError("empty field", f"{name!r} holds no messages")
    read = [_message(turn, f"{name}[{i}]") for i, turn in enumerate(turns)]
    return tuple(message for message in read if message is not None)


def _message(turn: object, path: str) -> Message | None:
    if not isinstance(turn, Mapping):
        raise RowError("wrong type", f"{path} is {_kind(turn)}, not an object")
    # In a table that mixes both formats a turn has all four keys, two of them null.
    role_key, text_key = ("role", "content") if turn.get("role") is not None else ("from", "value")
    if turn.get(role_key) is None:
        raise RowError("missing field", f"{path} has neither 'role' nor 'from'")
    role = _ROLES.get(_checked(turn[role_key], f"{path}.{role_key}").strip().lower())
    if role is None:
        known = "system, user (human) and assistant (gpt)"
        raise RowError("wrong type", f"{path}: role {turn[role_key]!r} is not among {known}")
    if role == "system" and turn.get(text_key) in (None, ""):
        return None
    if turn.get(text_key) is None:
        raise RowError("missing field", f"{path} has no {text_key!r}")
    text = _checked(turn[text_key], f"{path}.{text_key}")
    if not text.strip():
        raise RowError("empty field", f"{path}.{text_key} holds no text")
    return Message(role, text, learned=role == "assistant")


def _conversation(messages: Sequence[Message], name: str) -> tuple[str, str, str]:
    """Return the last question, the earlier turns as its context, and the answer to it."""
    if not messages or messages[-1].role != "assistant":
        ending = f"by {messages[-1].role}" if messages else "empty"
        raise RowError("missing field", f"{name!r} does not end with an answer (it is {ending})")
    asked = [i for i, message in enumerate(messages) if message.role == "user"]
    if not asked:
        raise RowError("missing field", f"{name!r} has no message by a user")
    earlier = [m for i, m in enumerate(messages[:-1]) if i != asked[-1]]
    context = "\n".join(f"{m.role.capitalize()}: {m.content}" for m in earlier)
    return messages[asked[-1]].content, context, messages[-1].content
