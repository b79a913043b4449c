"""Placeholders: find the texts of a conversation in what a chat template renders.

A template is rendered for the conversation, and once more with a placeholder in place of every
text. Where both agree, the placeholders show where each text stands, whatever it contains.

White space at the edges of a text stays beside the placeholder: a template that trims it, or puts
other white space there, does so in both renderings. So do marks such as <think>, which a template
looks for in a text.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s2l_ray.data.messages import REASONING_KEYS, Message

_TAG = re.compile(
    r"</?[^<>\s'\"{}()]{1,40}>"  # <think>, <|im_end|>
    r"|\[/?[A-Z_]{2,30}\]"  # [/INST]
    r"|◁/?\w{1,30}▷"
    r"|(?<!\w)/[a-z]+_?[a-z]+"  # /no_think
)
_END_OF_REASONING = re.compile(r"[<\[◁]/.*(think|thought|reason)", re.IGNORECASE)


@dataclass(frozen=True)
class Slot:
    """A text that a placeholder stands for, without white space at its edges."""

    message: int
    part: str
    """The name of the part of the message, for people."""
    text: str
    reasoning: bool = False
    verbatim: bool = True
    """The text must stand as it is; else it may be escaped as in JSON."""

    @property
    def forms(self) -> list[str]:
        """The text as a template may write it."""
        if self.verbatim:
            return [self.text]
        escaped = [json.dumps(self.text, ensure_ascii=ascii)[1:-1] for ascii in (False, True)]
        return [self.text, *escaped]


@dataclass(frozen=True)
class Found:
    """Where the texts stand in a rendered conversation."""

    slots: list[int]
    """Numbers of the slots, in the order of the text."""
    spans: list[tuple[int, int]]
    """Half-open ranges of characters, one for each of `slots`."""


@dataclass(frozen=True)
class Marked:
    """A conversation in which placeholders stand for texts."""

    turns: list[dict[str, Any]]
    slots: list[Slot]
    prefix: str

    def counts(self, rendered: str) -> list[int]:
        """Return how often each placeholder stands in the rendered conversation."""
        counts = [0] * len(self.slots)
        for number in self.order(rendered):
            counts[number] += 1
        return counts

    def between(self, rendered: str) -> list[str]:
        """Return the texts before, between and after the placeholders."""
        return self._pattern.split(rendered)[::2]

    def order(self, rendered: str) -> list[int]:
        """Return the numbers of the placeholders in the rendered conversation."""
        return [int(number) for number in self._pattern.findall(rendered)]

    def last(self, text: str) -> int | None:
        """Return the number of the last placeholder; None if there is none."""
        numbers = self.order(text)
        return numbers[-1] if numbers else None

    def find(self, rendered: str, real: str) -> Found | Slot | None:
        """Compare both renderings; return where each text stands in `real`.

        Returns:
            The places; or the first slot at which the renderings differ, None if they differ
            before the first one.
        """
        pieces = self._pattern.split(rendered)
        if not real.startswith(pieces[0]):
            return None
        position = len(pieces[0])
        found = Found([], [])
        for number, literal in zip(map(int, pieces[1::2]), pieces[2::2], strict=True):
            slot = self.slots[number]
            form = next((f for f in slot.forms if real.startswith(f + literal, position)), None)
            if form is None:
                return slot
            found.slots.append(number)
            found.spans.append((position, position + len(form)))
            position += len(form) + len(literal)
        return found if position == len(real) else self.slots[found.slots[-1]]

    @property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(self.prefix + r"(\d+)E")


def tags_of(source: str) -> re.Pattern[str] | None:
    """Return a pattern for the marks that a template's source names; None if it names none."""
    tags = sorted(set(_TAG.findall(source)), key=lambda tag: (-len(tag), tag))
    return re.compile("(" + "|".join(map(re.escape, tags)) + ")") if tags else None


def marked(
    messages: Sequence[Message],
    real: str,
    tags: re.Pattern[str] | None,
    only: Collection[int] | None = None,
) -> Marked:
    """Return the conversation with placeholders, which do not occur in `real`.

    Args:
        only: numbers of the messages whose texts are replaced; None for all messages.
    """
    prefix = "S2Lplaceholder"
    while prefix in real:
        prefix += "x"
    slots: list[Slot] = []

    def placeholder(slot: Slot) -> str:
        slots.append(slot)
        return f"{prefix}{len(slots) - 1}E"

    turns = []
    for number, message in enumerate(messages):
        if only is None or number in only:
            turns.append(_marked_turn(message, number, tags, placeholder))
        else:
            turns.append(message.turn)
    return Marked(turns, slots, prefix)


def _marked_turn(
    message: Message,
    number: int,
    tags: re.Pattern[str] | None,
    placeholder: Callable[[Slot], str],
) -> dict[str, Any]:
    turn = dict(message.turn)
    verbatim = message.role == "assistant"
    for name in REASONING_KEYS:
        if isinstance(turn.get(name), str):
            slot = Slot(number, "reasoning", turn[name].strip(), reasoning=True, verbatim=verbatim)
            turn[name] = _at_edges(turn[name], slot, placeholder)
    if isinstance(turn.get("content"), str):
        turn["content"] = _marked_content(turn["content"], number, tags, placeholder, verbatim)
    if isinstance(turn.get("tool_calls"), list):
        turn["tool_calls"] = [_marked_call(c, number, placeholder) for c in turn["tool_calls"]]
    return turn


def _marked_content(
    content: str,
    number: int,
    tags: re.Pattern[str] | None,
    placeholder: Callable[[Slot], str],
    verbatim: bool,
) -> str:
    pieces = tags.split(content) if tags else [content]
    if not any(piece.strip() for piece in pieces[::2]):
        pieces = [content]  # nothing but marks
    ends = [i for i in range(1, len(pieces), 2) if _END_OF_REASONING.match(pieces[i])]
    for i in range(0, len(pieces), 2):
        reasoning = verbatim and bool(ends) and i < ends[-1]
        part = "reasoning" if reasoning else "content"
        slot = Slot(number, part, pieces[i].strip(), reasoning, verbatim)
        pieces[i] = _at_edges(pieces[i], slot, placeholder)
    return "".join(pieces)


def _at_edges(text: str, slot: Slot, placeholder: Callable[[Slot], str]) -> str:
    """Return a placeholder between the white space at the edges of `text`."""
    if not slot.text:
        return text
    start = text.index(slot.text)
    return text[:start] + placeholder(slot) + text[start + len(slot.text) :]


def _marked_call(call: Any, number: int, placeholder: Callable[[Slot], str]) -> Any:
    """Return a tool call with placeholders for its name and for the texts of its arguments."""
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _marked_call(call["function"], number, placeholder)}
    made = dict(call)
    if isinstance(made.get("name"), str):
        made["name"] = placeholder(Slot(number, "name of a tool call", made["name"]))
    if "arguments" in made:
        made["arguments"] = _marked_arguments(made["arguments"], number, placeholder)
    return made


def _marked_arguments(value: Any, number: int, placeholder: Callable[[Slot], str]) -> Any:
    if isinstance(value, str):
        slot = Slot(number, "arguments of a tool call", value.strip(), verbatim=False)
        return _at_edges(value, slot, placeholder)
    if isinstance(value, Mapping):
        return {key: _marked_arguments(item, number, placeholder) for key, item in value.items()}
    if isinstance(value, list):
        return [_marked_arguments(item, number, placeholder) for item in value]
    return value
