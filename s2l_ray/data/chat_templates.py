"""A tokenizer's chat template: rendering it on one fixed day, and what holds for all its rows."""

import datetime
import re
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from jinja2.exceptions import TemplateSyntaxError

from s2l_ray.data.dialects import Dialect
from s2l_ray.data.messages import Message
from s2l_ray.data.placeholders import Marked, Slot, marked, tags_of
from s2l_ray.data.row_errors import RowError
from s2l_ray.data.turn_borders import excess
from s2l_ray.errors import ConfigError, first

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REFUSED = "refused by the template"
Turns = Sequence[dict[str, Any]]
T = TypeVar("T")

_RENDERING = threading.RLock()
"""Held while a template is rendered: transformers compiles one for all threads, and keeps what it
marks as generated in that."""
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_QUESTION, _ANSWER = Message("user", "What is that?"), Message("assistant", "It is this.")
_THOUGHT = "This is a thought."


class ChatTemplateOfTokenizer:
    """A chat template that can be rendered.

    Attributes:
        tags: pattern of the marks (<think>) that the template looks for or writes.
        tokens: pattern of the tokens that the tokenizer never splits.
        end_marks: what closes a text, longest first; a text needs none at its own end.
        excess: the end of a request for an answer that does not precede a given answer.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", source: str | None, date: datetime.date
    ) -> None:
        check_chat_template(tokenizer, source)
        self.tokenizer, self.source, self.date = tokenizer, source, date
        self._compiled: dict[str, Any] = {}
        texts = [source] if source else _sources(tokenizer)
        for text in texts:
            self._compile(text)
        self.tags = tags_of("\n".join(texts))
        self.tokens = _pattern_of_tokens(tokenizer)
        self.eos = str(tokenizer.eos_token)
        self._roles_with_parts: frozenset[str] = frozenset()
        self._roles_with_parts = self._probed_parts()
        self.dialect = Dialect("\n".join(texts), self._takes_text_arguments())
        self.end_marks = self._probed_end_marks()
        self.excess = self._probed_excess()
        self.keeps_reasoning_in_content = self._keeps_reasoning(
            Message("assistant", f"<think>\n{_THOUGHT}\n</think>\n\n{_ANSWER.content}")
        )
        self.keeps_reasoning_field = self._keeps_reasoning(
            self.dialect.adapted(
                Message("assistant", _ANSWER.content, fields={"reasoning_content": _THOUGHT})
            )
        )

    def text(self, turns: Turns, tools: list[Any] | None, *, for_answer: bool = False) -> str:
        """Return the conversation as text.

        Args:
            for_answer: with what asks the model for an answer at the end.

        Raises:
            RowError: the template refuses the conversation.
        """
        return self._refusing(lambda source: self._apply(source, turns, tools, for_answer), tools)

    def text_without_tools(self, turns: Turns, tools: list[Any]) -> str:
        """Return what the template for conversations with tools writes if there are none."""
        return self._refusing(lambda source: self._apply(source, turns, None, False), tools)

    def text_and_spans(
        self, turns: Turns, tools: list[Any] | None
    ) -> tuple[str, list[tuple[int, int]] | None]:
        """Return the conversation as text, and what the template itself marks as generated.

        The second is None if the template has no {% generation %} blocks.

        Raises:
            RowError: the template refuses the conversation.
        """

        def spans(source: str) -> tuple[str, list[tuple[int, int]] | None]:
            if not _GENERATION.search(source):
                return self._apply(source, turns, tools, False), None
            from transformers.utils.chat_template_utils import render_jinja_template

            texts, indices = render_jinja_template(
                conversations=[_without_nulls(self._with_parts(turns))],
                tools=tools or None,
                chat_template=source,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
            return str(texts[0]), [(int(start), int(end)) for start, end in indices[0]]

        return self._refusing(spans, tools)

    def _refusing(self, render: Callable[[str], T], tools: list[Any] | None) -> T:
        """Call `render` with the template's source; what it raises becomes a RowError."""
        try:
            with _RENDERING:
                source = self.source or self.tokenizer.get_chat_template(tools=tools or None)
                self._compile(source)
                return render(source)
        except Exception as error:  # a template is a program of somebody else's
            words = str(error) or type(error).__name__
            detail = f"the tokenizer's chat template refuses the messages: {words}"
            raise RowError(REFUSED, detail) from None

    def _apply(self, source: str, turns: Turns, tools: list[Any] | None, for_answer: bool) -> str:
        text = self.tokenizer.apply_chat_template(
            self._with_parts(turns),
            tools=tools or None,
            chat_template=source,
            tokenize=False,
            add_generation_prompt=for_answer,
        )
        return str(text)

    def _with_parts(self, turns: Turns) -> list[dict[str, Any]]:
        return [
            {**turn, "content": [{"type": "text", "text": turn["content"]}]}
            if turn["role"] in self._roles_with_parts and isinstance(turn.get("content"), str)
            else turn
            for turn in turns
        ]

    def _compile(self, source: str) -> None:
        """Compile a template, and let it take `date` for today.

        A variable of that name does not reach a template: transformers passes plain values only.

        Raises:
            ConfigError: it is not valid Jinja.
        """
        from transformers.utils.chat_template_utils import _compile_jinja_template

        if source not in self._compiled:
            try:
                self._compiled[source] = _compile_jinja_template(source)
            except TemplateSyntaxError as error:
                its_own = f"data.template: the chat template of {self.tokenizer.name_or_path!r}"
                which = "data.chat_template" if self.source else its_own
                raise ConfigError(f"{which} is no valid Jinja: {error}") from None
        self._compiled[source].globals["strftime_now"] = self._formatted_date

    def _formatted_date(self, pattern: str) -> str:
        return datetime.datetime.combine(self.date, datetime.time()).strftime(pattern)

    def _probe(
        self, messages: Sequence[Message], *, for_answer: bool = False
    ) -> tuple[Marked, str] | None:
        """Return an invented conversation with placeholders and its text; None if refused."""
        made = marked(messages, "", self.tags)
        try:
            return made, self.text(made.turns, None, for_answer=for_answer)
        except RowError:
            return None

    def _probed_parts(self) -> frozenset[str]:
        """Return the roles whose content the template expects as a list of parts."""
        system, tool = Message("system", "Be brief."), Message("tool", "It is that.")
        known: frozenset[str] = frozenset()
        for messages, roles in (
            ((_QUESTION, _ANSWER), {"user", "assistant", "system", "tool"}),
            ((system, _QUESTION, _ANSWER), {"system"}),
            ((_QUESTION, _ANSWER, tool, _ANSWER), {"tool"}),
        ):
            known = self._better_with_parts(messages, known, frozenset(roles))
        return known

    def _better_with_parts(
        self, messages: Sequence[Message], known: frozenset[str], more: frozenset[str]
    ) -> frozenset[str]:
        """Return `known`, or the roles of `more` that make the template write all `messages`."""
        self._roles_with_parts = known
        probed = self._probe(messages)
        missing = _missing(probed) if probed else []
        if probed and not missing:
            return known
        roles_missing = frozenset(messages[slot.message].role for slot in missing)
        for roles in (roles_missing & more, more):
            self._roles_with_parts = known | roles
            again = self._probe(messages)
            # Text that was taken for parts is written as a list of Python.
            if again and not _missing(again) and "{'type': 'text'" not in again[1]:
                return known | roles
        return known

    def _probed_end_marks(self) -> list[str]:
        marks = {self.eos}
        probed = self._probe((_QUESTION, _ANSWER))
        if probed is not None:
            tail = probed[0].between(probed[1])[-1]
            marks |= {tail.strip(), *(self.tokens.findall(tail) if self.tokens else [])}
        return sorted(marks - {""}, key=lambda mark: (-len(mark), mark))

    def _probed_excess(self) -> str:
        asked = self._probe((_QUESTION,), for_answer=True)
        answered = self._probe((_QUESTION, _ANSWER))
        if asked is None or answered is None or _missing(asked) or _missing(answered):
            return ""
        before = answered[0].between(answered[1])[1]
        return excess(before, asked[0].between(asked[1])[-1], self.tokens)

    def _takes_text_arguments(self) -> bool:
        """Return True if the template refuses arguments of tool calls that are objects."""

        def is_refused(arguments: Any) -> bool:
            function = {"name": "look_up", "arguments": arguments}
            calls = [{"type": "function", "id": "call00001", "function": function}]
            called = Message("assistant", "", fields={"tool_calls": calls})
            try:
                self.text([_QUESTION.turn, called.turn], None)
            except RowError:
                return True
            return False

        return is_refused({"word": "this"}) and not is_refused('{"word": "this"}')

    def _keeps_reasoning(self, answer: Message) -> bool:
        """Return True if the template writes the reasoning of the last answer."""
        probed = self._probe((_QUESTION, answer))
        return probed is not None and not any(slot.reasoning for slot in _missing(probed))


def check_chat_template(tokenizer: "PreTrainedTokenizerBase", source: str | None = None) -> None:
    """Raise ConfigError if there is no chat template, or none among several is the default."""
    if source:
        return
    names = tokenizer.chat_template
    if not names:
        raise ConfigError(
            f"data.template: the tokenizer {tokenizer.name_or_path!r} has no chat template. "
            "Use a tokenizer that has one; data.chat_template: chatml or a file; or, for rows of a "
            "question and an answer, data.template: alpaca."
        )
    if isinstance(names, dict) and "default" not in names:
        raise ConfigError(
            f"data.template: the tokenizer {tokenizer.name_or_path!r} has {len(names)} chat "
            f"templates ({first(sorted(names))}), none of which is called 'default'. Use a "
            f"tokenizer that has one, or a copy of it with one template."
        )


def _sources(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    template: Any = tokenizer.chat_template
    return list(template.values()) if isinstance(template, dict) else [str(template)]


def _pattern_of_tokens(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str] | None:
    tokens = sorted(tokenizer.get_added_vocab(), key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, tokens))) if tokens else None


def _missing(probed: tuple[Marked, str]) -> list[Slot]:
    made, text = probed
    counts = made.counts(text)
    return [slot for slot, count in zip(made.slots, counts, strict=True) if not count]


def _without_nulls(turns: Turns) -> list[dict[str, Any]]:
    """Return the turns without keys that are null, as `apply_chat_template` gives them."""
    return [{key: value for key, value in turn.items() if value is not None} for turn in turns]
