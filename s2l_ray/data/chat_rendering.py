"""A conversation as a chat template renders it, with its learned stretches, checked.

The text is that of one rendering of the whole conversation. Placeholders tell where each message
stands in it (`placeholders`), `turn_borders` where its learned stretch begins and ends. Where the
template has {% generation %} blocks, these are the learned stretches.

A row is refused if the template leaves out or rewrites a text that belongs to it.
"""

import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from s2l_ray.data.chat_templates import ChatTemplateOfTokenizer
from s2l_ray.data.examples import Example
from s2l_ray.data.messages import Message
from s2l_ray.data.placeholders import Found, Marked, Slot, marked
from s2l_ray.data.rendering import (
    END_IN_TEXT,
    REASONING_DROPPED,
    Rendered,
    cut,
    without_end,
)
from s2l_ray.data.row_errors import RowError
from s2l_ray.data.turn_borders import end_of_answer, start_of_answer

CHANGED = "changed by the template"
NO_TURN = "no learned turn"
Range = tuple[int, int]


def render_chat(
    example: Example, template: ChatTemplateOfTokenizer, turns: Literal["all", "last"]
) -> Rendered:
    """Return the text of a conversation up to the end of its last learned turn.

    Raises:
        RowError: the template refuses the conversation, or leaves out or rewrites a part of it;
            or no turn of it is learned.
    """
    learned = [i for i, message in enumerate(example.messages) if message.learned]
    if not learned:
        raise RowError(NO_TURN, "no message by the assistant carries loss")
    messages = [template.dialect.adapted(m) for m in example.messages[: learned[-1] + 1]]
    notes = []
    closed = [_closed(message, template.end_marks) for message in messages]
    if any(old.content != new.content for old, new in zip(messages, closed, strict=True)):
        notes.append(END_IN_TEXT)
    chosen = learned if turns == "all" else learned[-1:]
    row = _Conversation(closed, chosen, example.tools, template)
    ranges = row.learned_ranges()
    if row.drops_reasoning:
        notes.append(REASONING_DROPPED)
    return Rendered(cut(row.text, ranges), tuple(notes), row.spans is not None)


def _closed(message: Message, end_marks: Sequence[str]) -> Message:
    content = message.content
    bare = without_end(content, end_marks) if isinstance(content, str) else content
    return message if bare == content else replace(message, content=bare)


@dataclass(frozen=True)
class _Stretch:
    """The texts of a turn, from the first to the last."""

    number: int
    before: str
    """The text between them and the message before."""
    start: int
    end: int
    after: str
    """The text between them and the message after."""
    own_tail: str | None
    """The text after them if the conversation ended there; None if it is that of the last turn."""


class _Conversation:
    """One conversation, its text, and where its messages stand in the text."""

    def __init__(
        self,
        messages: Sequence[Message],
        learned: Sequence[int],
        tools: list[Any] | None,
        template: ChatTemplateOfTokenizer,
    ) -> None:
        self.messages, self.learned = messages, learned
        self.tools, self.template = tools, template
        self.text, self.spans = template.text_and_spans([m.turn for m in messages], tools)
        self.drops_reasoning = False
        self._check_tools()
        self.marked, self.found = self._located()

    def learned_ranges(self) -> list[Range]:
        """Return the half-open ranges of characters that carry loss."""
        extents = [self._extent(number) for number in self.learned]
        if self.spans is None:
            ranges = self._ranges_beside(extents)
        else:
            blocks = [
                self._generated(number, extent)
                for number, extent in zip(self.learned, extents, strict=True)
            ]
            self._check_calls([(of_turn[0][0], of_turn[-1][1]) for of_turn in blocks])
            return [block for of_turn in blocks for block in of_turn]
        self._check_calls(ranges)
        return ranges

    def _located(self) -> tuple[Marked, Found]:
        """Return the conversation with placeholders, and where the texts stand in its text."""
        made = marked(self.messages, self.text, self.template.tags)
        rendered = self.template.text(made.turns, self.tools)
        counts = made.counts(rendered)
        # What is learned is named first.
        order = sorted(range(len(counts)), key=lambda i: made.slots[i].message not in self.learned)
        for i in order:
            self._check_count(made.slots[i], counts[i])
        found = made.find(rendered, self.text)
        if isinstance(found, Found):
            return made, found
        # Some templates look for words in what they are not asked to answer (/no_think).
        careful = marked(self.messages, self.text, self.template.tags, only=self.learned)
        rendered = self.template.text(careful.turns, self.tools)
        found = careful.find(rendered, self.text)
        if not isinstance(found, Found):
            raise self._changed("rewrites", found or careful.slots[0])
        return careful, self._with_others(made.slots, found)

    def _with_others(self, slots: Sequence[Slot], found: Found) -> Found:
        """Return `found` if the texts of all other messages stand outside of the learned ones."""
        bounds = [0, *(i for span in found.spans for i in span), len(self.text)]
        others = [self.text[a:b] for a, b in zip(bounds[::2], bounds[1::2], strict=True)]
        for slot in slots:
            inside = slot.message in self.learned or self._is_dropped(slot, others)
            if not inside and not _stands(slot, others):
                raise self._changed("rewrites", slot)
        return found

    def _is_dropped(self, slot: Slot, texts: Sequence[str]) -> bool:
        return slot.reasoning and not _stands(slot, texts)

    def _check_tools(self) -> None:
        turns = [message.turn for message in self.messages]
        if self.tools and self.template.text_without_tools(turns, self.tools) == self.text:
            raise RowError(CHANGED, "the tokenizer's chat template leaves out the tools")

    def _check_count(self, slot: Slot, count: int) -> None:
        """Raise RowError if a text is missing, or one that is learned stands there twice."""
        if count == 0:
            if not slot.reasoning or slot.message == self.learned[-1] or not self._keeps(slot):
                raise self._changed("leaves out or rewrites", slot)
            self.drops_reasoning = True
        once = slot.part in ("content", "reasoning") and slot.message in self.learned
        if once and count > 1:
            raise self._changed(f"writes {count} times", slot)

    def _keeps(self, slot: Slot) -> bool:
        in_content = slot.text in self.messages[slot.message].content
        template = self.template
        return template.keeps_reasoning_in_content if in_content else template.keeps_reasoning_field

    def _extent(self, number: int) -> Range:
        """Return the first and the last place (in `found`) of the texts of a message."""
        places: dict[int, int] = {}
        for place, slot in enumerate(self.found.slots):
            if self.marked.slots[slot].message == number:
                places.setdefault(slot, place)
        role = self.messages[number].role
        if not places:
            raise RowError("empty field", f"message {number} ({role}) holds no text to learn")
        start, end = min(places.values()), max(places.values())
        within = self.found.slots[start : end + 1]
        if any(self.marked.slots[slot].message != number for slot in within):
            detail = f"the tokenizer's chat template mixes message {number} ({role}) with others"
            raise RowError(CHANGED, detail)
        return start, end

    def _ranges_beside(self, extents: Sequence[Range]) -> list[Range]:
        """Return the learned ranges, with what the template writes beside the texts of a turn."""
        stretches = [
            self._stretch(number, *extent)
            for number, extent in zip(self.learned, extents, strict=True)
        ]
        befores, tail = [turn.before for turn in stretches], stretches[-1].after
        requests: dict[Any, str] = {}
        ranges = []
        for turn in stretches:
            request = self._request(turn.number, turn.before, requests)
            start = start_of_answer(turn.before, request, self.template.tokens)
            own = tail if turn.own_tail is None else turn.own_tail
            end = end_of_answer(turn.after, own, befores, self.template.eos, self.template.tokens)
            if turn is stretches[-1] and self.template.eos not in tail:
                end = len(tail)  # an end-of-sequence follows all that closes the conversation
            ranges.append((turn.start - len(turn.before) + start, turn.end + end))
        if any(a[1] > b[0] for a, b in itertools.pairwise(ranges)):
            raise RowError(CHANGED, "the tokenizer's chat template reorders the messages")
        return ranges

    def _stretch(self, number: int, first: int, last: int) -> "_Stretch":
        """Return the stretch between two places in `found`, with the text beside it."""
        spans = [(0, 0), *self.found.spans, (len(self.text), len(self.text))]
        last, own_tail = self._close(number, last)
        start, end = spans[first + 1][0], spans[last + 1][1]
        before = self.text[spans[first][1] : start]
        rest = self._rest_of_content(number, last)
        rest = next(r for r in (rest, rest.rstrip(), "") if self.text.startswith(r, end))
        end += len(rest)
        own_tail = own_tail and own_tail.removeprefix(rest)
        return _Stretch(number, before, start, end, self.text[end : spans[last + 2][0]], own_tail)

    def _close(self, number: int, last: int) -> tuple[int, str | None]:
        """Return the place of the last text of a turn, and what the template closes it with.

        A turn that calls tools may be closed otherwise than an answer, and name a function twice.
        How is seen where the conversation ends there; None stands for what closes the last turn.
        """
        final, places = self.learned[-1], self.found.slots
        calling = [i for i in (number, final) if self.messages[i].fields.get("tool_calls")]
        if not calling:
            return last, None
        if number == final:
            is_own = self.marked.slots[places[-1]].message == number
            return (len(places) - 1 if is_own else last), None
        try:
            rendered = self.template.text(self.marked.turns[: number + 1], self.tools)
        except RowError:  # such a conversation may not end here
            return last, None
        until = [slot for slot in self.marked.order(rendered) if slot in places]
        if until != places[: len(until)] or len(until) <= last:
            return last, None
        return len(until) - 1, self.marked.between(rendered)[-1]

    def _rest_of_content(self, number: int, last: int) -> str:
        """Return the white space and marks of a content after its last text, if that is `last`."""
        content = self.marked.turns[number].get("content")
        if not isinstance(content, str) or self.marked.last(content) != self.found.slots[last]:
            return ""
        return self.marked.between(content)[-1]

    def _request(self, number: int, before: str, known: dict[Any, str]) -> str:
        """Return what the template writes after the last text before an answer to ask for it.

        Messages of one kind are followed by one text, as a rule: it is looked up in `known`.
        """
        if number == 0:
            return before
        previous = self.messages[number - 1]
        kind = previous.role, bool(previous.content), tuple(sorted(previous.fields))
        if kind in known and before.startswith(known[kind]):
            return known[kind]
        turns = self.marked.turns[:number]
        rendered = self.template.text(turns, self.tools, for_answer=True)
        known[kind] = self.marked.between(rendered)[-1].removesuffix(self.template.excess)
        return known[kind]

    def _generated(self, number: int, extent: Range) -> list[Range]:
        """Return the stretches that the template's own generation blocks give to a turn."""
        texts = self.found.spans[extent[0] : extent[1] + 1]
        start, end = texts[0][0], texts[-1][1]
        blocks = [(a, b) for a, b in self.spans or [] if a < end and start < b]
        if all(any(a <= first and last <= b for a, b in blocks) for first, last in texts):
            return blocks
        role = self.messages[number].role
        detail = f"the template's generation blocks leave out a part of message {number} ({role})"
        raise RowError(CHANGED, detail)

    def _check_calls(self, ranges: Sequence[Range]) -> None:
        """Raise RowError if an argument of a tool call is not in the learned text of its turn."""
        for number, (start, end) in zip(self.learned, ranges, strict=True):
            text = self.text[start:end]
            for name, forms in _arguments(self.messages[number].fields.get("tool_calls")):
                if not any(form in text for form in forms):
                    slot = Slot(number, f"argument {name!r} of a tool call", name)
                    raise self._changed("leaves out or rewrites", slot)

    def _changed(self, verb: str, slot: Slot) -> RowError:
        role = self.messages[slot.message].role
        is_response = slot.part == "content" and slot.message in self.learned
        part = "response" if is_response else slot.part
        of_message = f"the {part} of message {slot.message} ({role})"
        return RowError(CHANGED, f"the tokenizer's chat template {verb} {of_message}")


def _stands(slot: Slot, texts: Collection[str]) -> bool:
    return any(form in text for text in texts for form in slot.forms)


def _arguments(calls: Any) -> Iterator[tuple[str, list[str]]]:
    """Yield the names of arguments and their values that are no text, as templates write them."""
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function", call) if isinstance(call, Mapping) else {}
        arguments = function.get("arguments") if isinstance(function, Mapping) else None
        if isinstance(arguments, Mapping):
            for name, value in arguments.items():
                yield name, [name]
                if isinstance(value, int | float | bool) or value is None:
                    yield name, [json.dumps(value), str(value)]
