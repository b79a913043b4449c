"""Templates: how an example is written as the text of a prompt and of a response."""

import datetime
import re
from dataclasses import dataclass
from typing import Literal

from s2l_ray.config.data import AUTO, NAMED_TEMPLATES, DataConfig
from s2l_ray.data.chat_sources import read_chat_template, template_text
from s2l_ray.data.examples import Example, RowError
from s2l_ray.data.messages import REASONING_KEYS
from s2l_ray.data.rendering import END_IN_TEXT, Rendered, Segment, without_end
from s2l_ray.errors import ConfigError

_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Response:"
)
_ALPACA_CONTEXT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Input:\n{context}\n\n### Response:"
)
_RADIOLOGY = (
    "Below are the findings in a radiology report. Write an impression that diagnostically "
    "summarizes the findings.\n\n### Findings:\n{prompt}\n\n### Impression:"
)


@dataclass(frozen=True)
class TextTemplate:
    """A text with the placeholders {prompt} and {context}; the response follows it directly."""

    name: str
    plain: str
    """The text for an example without context."""
    with_context: str
    """The text for an example with context."""
    joint: bool = False
    """Prompt, response and end of sequence are tokenised as one text."""

    def render(self, example: Example, eos: str) -> Rendered:
        """Return the prompt and the response, without an end-of-sequence.

        Raises:
            RowError: the response has parts for which a text has no place, or is nothing but `eos`.
        """
        if example.is_chat and self.name in _NAMED:
            detail = f"the row holds messages, and the template {self.name} writes one question"
            raise RowError("wrong type", f"{detail} and its answer: set data.template: chat")
        answer = example.messages[-1]
        parts = [key for key in (*REASONING_KEYS, "tool_calls") if answer.fields.get(key)]
        if parts:
            detail = f"the template {self.name} has no place for {', '.join(parts)} of the answer"
            raise RowError("changed by the template", detail)
        response = without_end(example.response, [eos])
        if not response.strip():
            raise RowError("empty field", "the response is nothing but the end-of-sequence token")
        segments = Segment(self.render_prompt(example), False), Segment(response, True)
        return Rendered(segments, (END_IN_TEXT,) if response != example.response else ())

    def render_prompt(self, example: Example) -> str:
        """Return the text before the response.

        Where the template has no {context}, the context follows the prompt after a blank line.
        """
        text = self.with_context if example.context else self.plain
        prompt = example.prompt if "{context}" in text else _prompt_and_context(example)
        values = {"{prompt}": prompt, "{context}": example.context}
        return re.sub(r"\{prompt\}|\{context\}", lambda placeholder: values[placeholder[0]], text)


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of the tokenizer, which renders the messages of an example."""

    turns: Literal["all", "last"]
    """Turns of the assistant that are learned."""
    date: datetime.date
    """The day that the template takes for today."""
    source: str | None = None
    """Another chat template than the tokenizer's, as `read_chat_template` returns it."""
    name: str = "chat"
    joint: bool = False


@dataclass(frozen=True)
class AutoTemplate:
    """The template for each kind of row."""

    chat: ChatTemplate
    """For rows that hold messages."""
    instruction: TextTemplate
    """For all others."""
    name: str = AUTO

    def of(self, example: Example) -> TextTemplate | ChatTemplate:
        """Return the template of a row."""
        return self.chat if example.is_chat else self.instruction


Template = TextTemplate | ChatTemplate | AutoTemplate

_NAMED = {
    "alpaca": TextTemplate("alpaca", _ALPACA + "\n", _ALPACA_CONTEXT + "\n"),
    "alpaca-official": TextTemplate("alpaca-official", _ALPACA, _ALPACA_CONTEXT, joint=True),
    "radiology": TextTemplate("radiology", _RADIOLOGY, _RADIOLOGY),
}


def load_template(data: DataConfig) -> Template:
    """Return the template that `data.template` names, or the one in the text file of that path.

    A file is used as it is, to its last character.

    Raises:
        ConfigError: there is no such template or file, or the file does not contain {prompt}.
    """
    name = data.template_name
    chat = ChatTemplate(data.turns, data.date, read_chat_template(data))
    if name == "chat":
        return chat
    if data.template == AUTO:
        return AutoTemplate(chat, _NAMED[name])
    if name in _NAMED:
        return _NAMED[name]
    names = ", ".join(NAMED_TEMPLATES)
    advice = f"Use one of {names}, or a text file with {{prompt}} and, if wanted, {{context}}."
    text = template_text("data.template", name, "a template", advice)
    if "{prompt}" not in text:
        raise ConfigError(f"data.template: {name} does not contain {{prompt}}. {advice}")
    return TextTemplate(name, text, text)


def check_fields(data: DataConfig) -> None:
    """Refuse a template that cannot render what the fields name.

    Raises:
        ConfigError: it is a text for a question and its answer, and the rows are conversations; or
            there is a chat template that nothing uses.
    """
    messages = data.fields.messages
    if messages is not None and data.template_name in _NAMED:
        raise ConfigError(
            f"data.template: {data.template} writes one question and its answer, and "
            f"data.fields.messages ({messages}) says that rows are conversations. Write "
            "data.template: chat, or name the fields of prompt and response instead."
        )
    if data.chat_template is not None and data.template_name != "chat":
        raise ConfigError(
            f"data.chat_template has no effect with data.template: {data.template}. Write "
            "data.template: chat, or leave it out."
        )


def _prompt_and_context(example: Example) -> str:
    return f"{example.prompt}\n\n{example.context}" if example.context else example.prompt
