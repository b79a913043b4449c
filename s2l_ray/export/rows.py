"""Rows of trainers: each function turns a conversation into the row that a trainer reads.

A function returns the row and the notes on what its trainer reads otherwise than the row says. It
raises CannotHold for a conversation that its trainer would skip or refuse.
"""

from collections.abc import Sequence
from typing import Any

from s2l_ray.data.messages import Message
from s2l_ray.export.conversation import (
    REASONING,
    CannotHold,
    Conversation,
    Survey,
    as_json,
    check_alternating,
    joined,
    with_reasoning,
)

Row = dict[str, Any]
Notes = list[str]

TEXT_KEYS = (REASONING, "name", "tool_call_id")
"""Keys of messages, beside role and content, that chat templates often read as text."""
EXEMPT = "earlier answers without loss, which this trainer learns, too"
ARGUMENTS_AS_TEXT = "calls of tools, whose arguments are written as JSON text"
TOOLS_IN_COLUMNS = (
    "tools: as a column of Parquet, each has the keys of all, null where it lacks them, and no "
    "empty objects"
)
NO_TOOLS = "tools, which this trainer does not show to the model"
OTHER_KEYS = "keys of messages that this trainer does not read"
REASONING_IN_TEXT = "reasoning, which is written into the answer as <think>...</think>"
CALLS_IN_TEXT = "calls of tools, which are written into the answer as JSON text"
TEXT_BESIDE_CALLS = "text beside calls of tools, which versions before 0.9.5 may refuse"
JOINED = "messages of one side in succession, which are joined"


def _as_scored(conversation: Conversation) -> Row:
    """Return prompt and completion, the texts as the run has scored them."""
    assert conversation.text is not None
    prompt, response = conversation.text
    return {"example_id": conversation.example_id, "prompt": prompt, "completion": response}


def _named(conversation: Conversation, survey: Survey) -> Row:
    """Return the id and, if any row has tools, the tools as JSON text."""
    own: Row = {"example_id": conversation.example_id}
    if survey.has_tools:
        own["tools"] = as_json(conversation.tools) if conversation.tools else None
    return own


def trl(conversation: Conversation, survey: Survey) -> tuple[Row, Notes]:
    """Prompt and completion, or messages if a row has several answers that are learned."""
    if survey.is_text:
        return _as_scored(conversation), []
    own = _named(conversation, survey)
    turns = [message.turn for message in conversation.messages]
    if not survey.has_several_answers:
        return {"prompt": turns[:-1], "completion": turns[-1:]} | own, []
    return {"messages": turns} | own, [EXEMPT] if conversation.num_exempt else []


def axolotl(conversation: Conversation, survey: Survey) -> tuple[Row, Notes]:
    """Texts as they were scored, or messages of which each says whether it is learned."""
    if survey.is_text:
        return _as_scored(conversation), []
    own = _named(conversation, survey)
    turns = [message.turn | {"train": message.learned} for message in conversation.messages]
    return {"messages": turns} | own, []


def llamafactory(conversation: Conversation, survey: Survey) -> tuple[Row, Notes]:
    """Columns of Alpaca for plain instruction rows, else turns in the form of ShareGPT."""
    own: Row = {"example_id": conversation.example_id}
    if survey.is_plain:
        assert conversation.fields is not None
        instruction, context = conversation.fields
        response = conversation.messages[-1].content
        return {"instruction": instruction, "input": context, "output": response} | own, []
    notes = _notes_on_turns(conversation, known=(REASONING, "tool_calls"))
    if not survey.has_several_answers:  # then `mask_history` is on
        notes = [note for note in notes if note != EXEMPT]
    messages, num_joined = joined(
        conversation.messages, "tool", "\n</tool_response>\n<tool_response>\n"
    )
    messages, num_more = joined(messages, "user", "\n\n")
    check_alternating(messages, ("user", "tool"))
    if num_joined or num_more:
        notes.append(JOINED)
    turns = [_sharegpt(message, notes) for message in messages]
    if survey.has_tools:
        own["tools"] = as_json(conversation.tools) if conversation.tools else ""
    return {"conversations": turns} | own, list(dict.fromkeys(notes))


def torchtune(conversation: Conversation, _: Survey) -> tuple[Row, Notes]:
    """Messages of role and content: users and assistants in turn, after a system message."""
    notes = _notes_on_turns(conversation, known=(REASONING, "tool_calls"))
    messages, num_joined = joined(conversation.messages, "user", "\n\n")
    if any(message.role == "tool" for message in messages):
        raise CannotHold("a tool answers, and torchtune wants a user before each answer")
    check_alternating(messages, ("user",))
    if num_joined:
        notes.append(JOINED)
    if conversation.tools:
        notes.append(NO_TOOLS)
    turns = []
    for message in messages:
        content = with_reasoning(message)
        if "tool_calls" in message.fields:
            notes.append(CALLS_IN_TEXT)
            content += as_json(_functions(message))
        turns.append({"role": message.role, "content": content})
    row = {"messages": turns, "example_id": conversation.example_id}
    return row, list(dict.fromkeys(notes))


def open_instruct(conversation: Conversation, _: Survey) -> tuple[Row, Notes]:
    """Messages with all their keys."""
    notes = [NO_TOOLS] if conversation.tools else []
    if conversation.num_exempt:
        notes.append(EXEMPT)
    turns = [message.turn for message in conversation.messages]
    return {"messages": turns, "example_id": conversation.example_id}, notes


def verl(conversation: Conversation, survey: Survey) -> tuple[Row, Notes]:
    """Messages whose keys are the same in every row, as a column of Parquet needs them."""
    notes = [EXEMPT] if conversation.num_exempt else []
    turns = []
    for message in conversation.messages:
        turn: Row = {"role": message.role, "content": message.content}
        for key in TEXT_KEYS:
            turn[key] = None if key not in message.fields else _text(message.fields[key])
        turn["tool_calls"] = None
        if "tool_calls" in message.fields:
            turn["tool_calls"] = [
                {"type": "function", "function": call | {"arguments": _text(call["arguments"])}}
                for call in _functions(message)
            ]
            notes.append(ARGUMENTS_AS_TEXT)
        turns.append(turn)
        if message.fields.keys() - {*TEXT_KEYS, "tool_calls"}:
            notes.append(OTHER_KEYS)
    row: Row = {"messages": turns, "example_id": conversation.example_id}
    if survey.has_tools:
        row["tools"] = _without_empty_objects(list(conversation.tools))
    if conversation.tools:
        notes.append(TOOLS_IN_COLUMNS)
    return row, list(dict.fromkeys(notes))


def _notes_on_turns(conversation: Conversation, known: Sequence[str]) -> Notes:
    """Return notes for a trainer that reads role, content and the keys in `known`."""
    notes = [EXEMPT] if conversation.num_exempt else []
    keys = {key for message in conversation.messages for key in message.fields}
    if REASONING in keys:
        notes.append(REASONING_IN_TEXT)
    if keys - {*known}:
        notes.append(OTHER_KEYS)
    return notes


def _sharegpt(message: Message, notes: Notes) -> dict[str, str]:
    """Return a turn of ShareGPT as LLaMA-Factory reads it."""
    content = with_reasoning(message)
    if "tool_calls" not in message.fields:
        return {"from": _SHAREGPT_ROLE[message.role], "value": content}
    calls = as_json(_functions(message))
    if message.content:
        notes.append(TEXT_BESIDE_CALLS)
        calls = f"<tool_call>{calls}</tool_call>"
    return {"from": "function_call", "value": content + calls}


_SHAREGPT_ROLE = {
    "system": "system",
    "user": "human",
    "assistant": "gpt",
    "tool": "observation",
}


def _functions(message: Message) -> list[dict[str, Any]]:
    """Return name and arguments of each call."""
    functions = [call["function"] for call in message.fields["tool_calls"]]
    return [{"name": each["name"], "arguments": each.get("arguments", {})} for each in functions]


def _text(value: Any) -> str:
    """Return text as it is, and any other value as JSON."""
    return value if isinstance(value, str) else as_json(value)


def _without_empty_objects(value: Any) -> Any:
    """Return `value` without keys whose value is an empty object, which Parquet cannot hold."""
    if isinstance(value, list):
        return [_without_empty_objects(item) for item in value]
    if isinstance(value, dict):
        kept = {key: _without_empty_objects(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item != {}}
    return value
