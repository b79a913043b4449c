"""Messages: the turns of a conversation, read from the shapes in which chats are stored."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from s2l_ray.data.row_errors import RowError, checked_text, kind_of
from s2l_ray.data.tools import tool_calls_of, without_nulls

_ROLE_OF = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "environment": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
"""The role that a chat template gets for each name of a role, in small letters."""
_CALLS = ("function_call", "tool_call")
"""Roles of turns that are calls of tools, as JSON text."""
ROLE_KEYS = ("role", "from")
CONTENT_KEYS = ("content", "value", "text")
_LOSS_KEYS = ("weight", "train", "training", "loss")
"""Keys that say whether an answer is learned: 0 and false exempt it."""
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Names of the reasoning before an answer."""
_TEXT_PARTS = ("text", "input_text", "output_text")
_MEDIA = ("image", "audio", "video")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """system, user, assistant or tool."""
    content: str
    learned: bool = False
    """An answer that carries loss: a turn of the assistant that the row does not exempt."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Every other key of the turn, for the chat template."""
    named: str = ""
    """The name of the role in the row, where a template may know another one than `role`."""

    @property
    def turn(self) -> dict[str, Any]:
        """The turn as a chat template gets it."""
        return {"role": self.role, "content": self.content, **self.fields}

    @property
    def text(self) -> str:
        """The content, or the tool calls as JSON text where there is no content."""
        if self.content or self.role != "assistant" or "tool_calls" not in self.fields:
            return self.content
        return json.dumps(self.fields["tool_calls"], ensure_ascii=False)


def read_messages(value: Any, name: str) -> list[Message]:
    """Return the messages that the field `name` of a row holds.

    Args:
        value: a list of messages, the JSON text of one, or a table of them (a list for each key).

    Raises:
        RowError: they cannot be used; the error names the message.
    """
    if isinstance(value, str):
        value = _parsed_list(value, name)
    elif isinstance(value, Mapping):
        value = _transposed(value, name)
    if not isinstance(value, list | tuple):
        raise RowError("wrong type", f"{name!r} is {kind_of(value)}, not a list of messages")
    if not value:
        raise RowError("empty field", f"{name!r} holds no messages")
    return [_message(turn, f"{name}[{i}]") for i, turn in enumerate(value)]


def _parsed_list(text: str, name: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, list):
        raise RowError(
            "wrong type", f"{name!r} is of type str, not a list of messages or its JSON text"
        )
    return value


def _transposed(columns: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the messages that tables of some libraries store as one list for each key."""
    lists = {key: value for key, value in columns.items() if isinstance(value, list | tuple)}
    lengths = {len(value) for value in lists.values()}
    if len(lengths) != 1:
        raise RowError("wrong type", f"{name!r} is an object, not a list of messages")
    return [{key: value[i] for key, value in lists.items()} for i in range(lengths.pop())]


def _message(turn: object, path: str) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError("wrong type", f"{path} is {kind_of(turn)}, not an object")
    # In a table that mixes formats a turn has the keys of all of them, those of the others null.
    role_key = next((key for key in ROLE_KEYS if turn.get(key) is not None), None)
    if role_key is None:
        raise RowError("missing field", f"{path} has neither 'role' nor 'from'")
    content_key = next((key for key in CONTENT_KEYS if turn.get(key) is not None), None)
    given = checked_text(turn[role_key], f"{path}.{role_key}").strip().lower()
    given = given.replace("-", "_").replace(" ", "_")
    role = _ROLE_OF.get(given)
    if role is None:
        known = "system, user (human), assistant (gpt) and tool (function, observation)"
        raise RowError("wrong type", f"{path}: role {turn[role_key]!r} is not among {known}")
    used = {*ROLE_KEYS, *CONTENT_KEYS[:2], content_key, *_LOSS_KEYS}
    fields = {key: without_nulls(value) for key, value in turn.items() if key not in used}
    fields = {key: value for key, value in fields.items() if value is not None}
    content, thoughts = "", ""
    if content_key is not None:
        content, thoughts = _content(turn[content_key], f"{path}.{content_key}", role)
    if thoughts:
        fields.setdefault(REASONING_KEYS[0], thoughts)
    if role == "assistant":
        content, fields = _with_tool_calls(content, fields, path, is_call=given in _CALLS)
    _check_content(role, content, fields, turn, f"{path}.{content_key or _missing_key(role_key)}")
    learned = role == "assistant" and _carries_loss(turn, path)
    named = given if role in ("system", "tool") and given != role else ""
    return Message(role, content, learned, fields, named)


def _missing_key(role_key: str) -> str:
    return "value" if role_key == "from" else "content"


def _check_content(
    role: str, content: str, fields: Mapping[str, Any], turn: Mapping[str, Any], path: str
) -> None:
    """Refuse a turn without text where something is to be said or learned."""
    if content.strip() or role in ("system", "tool"):  # a tool may well return nothing
        return
    if role == "assistant" and any(fields.get(key) for key in ("tool_calls", *REASONING_KEYS)):
        return
    parent, _, key = path.rpartition(".")
    if not any(other in turn for other in CONTENT_KEYS):
        raise RowError("missing field", f"{parent} has no {key!r}")
    if all(turn.get(other) is None for other in CONTENT_KEYS):
        raise RowError("empty field", f"{path} is null")
    raise RowError("empty field", f"{path} holds no text")


def _content(value: Any, path: str, role: str) -> tuple[str, str]:
    """Return the text of a content, and the reasoning that some formats give as parts of it."""
    is_parts = isinstance(value, list | tuple) and all(_is_part(part) for part in value)
    if role == "tool" and not is_parts and isinstance(value, list | tuple | Mapping):
        return json.dumps(value, ensure_ascii=False), ""
    if not isinstance(value, list | tuple):
        return checked_text(value, path), ""
    texts: list[str] = []
    thoughts: list[str] = []
    for number, part in enumerate(value):
        text, is_thought = _part(part, f"{path}[{number}]")
        (thoughts if is_thought else texts).append(text)
    return "".join(texts), "".join(thoughts)


def _is_part(part: object) -> bool:
    if isinstance(part, Mapping):
        return isinstance(part.get("type"), str)
    return isinstance(part, str)


def _part(part: object, path: str) -> tuple[str, bool]:
    """Return the text of a part of a content, and whether it is reasoning."""
    if isinstance(part, str):
        return checked_text(part, path), False
    if not isinstance(part, Mapping):
        raise RowError("wrong type", f"{path} is {kind_of(part)}, not a part of a message")
    kind = part.get("type")
    if kind in ("thinking", "reasoning"):
        text = part.get("thinking") or part.get("reasoning") or part.get("text")
        return checked_text(text, path), True
    if kind in _TEXT_PARTS or (kind is None and part.get("text") is not None):
        return checked_text(part.get("text"), f"{path}.text"), False
    if any(medium in str(kind) for medium in _MEDIA):
        detail = f"{path} is of type {kind!r}; models of text read no images, audio or video"
        raise RowError("wrong type", detail)
    raise RowError("wrong type", f"{path} is of type {kind!r}, not text")


def _carries_loss(turn: Mapping[str, Any], path: str) -> bool:
    """Tell whether an answer is learned."""
    for key in _LOSS_KEYS:
        value = turn.get(key)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            detail = f"{path}.{key} is {value!r}; an answer is learned (1, true) or not (0, false)"
            raise RowError("wrong type", detail)
        if not value:
            return False
    return True


def _with_tool_calls(
    content: str, fields: dict[str, Any], path: str, *, is_call: bool
) -> tuple[str, dict[str, Any]]:
    """Return content and fields with tool calls, wherever a format keeps them."""
    rest = {key: value for key, value in fields.items() if key not in ("tool_calls", *_CALLS)}
    given = next((fields[key] for key in ("tool_calls", *_CALLS) if fields.get(key)), None)
    if given is not None:
        calls = tool_calls_of(given)
        if calls is None:
            raise RowError("wrong type", f"{path}: its tool calls have no name of a function")
        try:
            json.dumps(calls)
        except (TypeError, ValueError) as error:  # a table holds dates and bytes
            raise RowError("wrong type", f"{path}: its tool calls are no JSON: {error}") from None
        return content, rest | {"tool_calls": calls}
    calls = tool_calls_of(content) if is_call else None
    return ("", rest | {"tool_calls": calls}) if calls else (content, rest)


def context_of(messages: Sequence[Message]) -> str:
    """Return messages as one text, a line with the role of each."""
    return "\n".join(f"{message.role.capitalize()}: {message.text}" for message in messages)
