"""Conversations: the content of a row, as the rows of trainers are made from it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from s2l_ray.artifacts.tables import row_of_subset
from s2l_ray.config.data import DataConfig
from s2l_ray.data.examples import Example, read_example
from s2l_ray.data.messages import Message
from s2l_ray.data.templates import AutoTemplate, Template, TextTemplate, load_template

REASONING = "reasoning_content"


@dataclass(frozen=True)
class Conversation:
    """What a trainer is to read of a row; the last message is learned.

    Attributes:
        example_id: the id of the row.
        messages: the turns.
        tools: schemas of the tools that are offered; empty if there are none.
        fields: instruction and input of a row of texts that has no earlier turns.
        text: the prompt and the response that the run scored, if it writes rows with a template of
            text.
    """

    example_id: str
    messages: tuple[Message, ...]
    tools: tuple[Any, ...] = ()
    fields: tuple[str, str] | None = None
    text: tuple[str, str] | None = None

    @property
    def num_learned(self) -> int:
        """The number of answers that carry loss."""
        return sum(message.learned for message in self.messages)

    @property
    def num_exempt(self) -> int:
        """The number of answers that carry none."""
        return sum(m.role == "assistant" and not m.learned for m in self.messages)


def conversations(rows: Iterator[Mapping[str, Any]], data: DataConfig) -> Iterator[Conversation]:
    """Yield the conversation of every row, with the turns that `data` says are learned."""
    template = load_template(data)
    for row in rows:
        example = read_example(row_of_subset(row), data.fields.of_pool)
        yield _conversation(str(row["example_id"]), example, template, data.turns)


def _conversation(
    example_id: str, example: Example, template: Template, turns: str
) -> Conversation:
    if isinstance(template, AutoTemplate):
        template = template.of(example)
    messages = list(example.messages)
    if turns == "last":
        messages[:-1] = [replace(message, learned=False) for message in messages[:-1]]
    is_plain = not example.is_chat and len(messages) == 2
    return Conversation(
        example_id,
        tuple(messages),
        tuple(example.tools or ()),
        (example.prompt, example.context) if is_plain else None,
        (template.render_prompt(example), example.response)
        if isinstance(template, TextTemplate)
        else None,
    )


@dataclass(frozen=True)
class Survey:
    """What the rows of a subset have in common; it decides which form of a trainer they get.

    Attributes:
        num_rows: rows.
        is_text: every row is a prompt and a response in a template of text.
        is_plain: every row has an instruction, perhaps an input, and one answer.
        has_several_answers: a row has more than one answer that carries loss.
        has_tools: a row offers tools.
    """

    num_rows: int
    is_text: bool
    is_plain: bool
    has_several_answers: bool
    has_tools: bool


def survey(found: Iterator[Conversation]) -> Survey:
    """Look at every conversation once, and keep none."""
    num_rows, is_text, is_plain = 0, True, True
    has_several_answers = has_tools = False
    for each in found:
        num_rows += 1
        is_text &= each.text is not None
        is_plain &= each.fields is not None
        has_several_answers |= each.num_learned > 1
        has_tools |= bool(each.tools)
    return Survey(num_rows, is_text, is_plain, has_several_answers, has_tools)


class CannotHold(Exception):
    """A conversation that a trainer's format cannot hold, and why."""


def with_reasoning(message: Message) -> str:
    """Return the content after the reasoning, in the form of text that most models use."""
    thoughts = message.fields.get(REASONING)
    return f"<think>\n{thoughts}\n</think>\n\n{message.content}" if thoughts else message.content


def joined(messages: Sequence[Message], role: str, separator: str) -> tuple[list[Message], int]:
    """Join consecutive messages of one role; return the messages, and how many joined another."""
    kept: list[Message] = []
    for message in messages:
        if kept and message.role == role == kept[-1].role:
            content = separator.join([kept[-1].content, message.content])
            kept[-1] = replace(kept[-1], content=content)
        else:
            kept.append(message)
    return kept, len(messages) - len(kept)


def check_alternating(messages: Sequence[Message], asking: Sequence[str]) -> None:
    """Raise CannotHold unless questions and answers alternate after a system message."""
    turns = messages[1:] if messages[0].role == "system" else messages
    for number, message in enumerate(turns):
        if number % 2 == 0 and message.role not in asking:
            where = "at the beginning" if number == 0 else "after another answer"
            raise CannotHold(f"an answer or a system message stands {where}")
        if number % 2 == 1 and message.role != "assistant":
            raise CannotHold("two messages in a row wait for an answer")


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
