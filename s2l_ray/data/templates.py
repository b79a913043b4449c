"""Templates: how an example is written as the text of a prompt and of a response."""

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jinja2.exceptions import TemplateError

from s2l_ray.config.sections import NAMED_TEMPLATES, DataConfig
from s2l_ray.data.examples import Example, Message, RowError
from s2l_ray.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    name: str = "chat"
    joint: bool = False

    def render_prompt(self, example: Example, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Return the text after which a model answers.

        Raises:
            RowError: the template refuses the messages.
        """
        return _render(tokenizer, example.messages[:-1], for_answer=True)

    def render(self, example: Example, tokenizer: "PreTrainedTokenizerBase") -> tuple[str, str]:
        """Return the text before the response, and the response up to its end of sequence.

        Some templates open a requested answer differently from a given one (with a marker for
        thinking, for instance). For these, the prompt is all text before the given response.

        Raises:
            RowError: the template refuses the messages or rewrites the response.
        """
        whole = _render(tokenizer, example.messages, for_answer=False)
        prompt = self.render_prompt(example, tokenizer)
        response = example.response.strip()
        if not whole.startswith(prompt):
            start = whole.rfind(response)
            if start < 0:
                detail = "the tokenizer's chat template rewrites the response; use another template"
                raise RowError("wrong type", detail)
            prompt = whole[:start]
        return prompt, _until_eos(whole[len(prompt) :], response, str(tokenizer.eos_token))


Template = TextTemplate | ChatTemplate

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
    name = data.template
    if name == "chat":
        return ChatTemplate(data.turns, data.date)
    if name in _NAMED:
        return _NAMED[name]
    names = ", ".join(NAMED_TEMPLATES)
    advice = f"Use one of {names}, or a text file with {{prompt}} and, if wanted, {{context}}."
    if not Path(name).is_file():
        raise ConfigError(f"data.template: {name!r} is neither a template nor a file. {advice}")
    try:
        text = Path(name).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.template: cannot read {name}: {error}. {advice}") from None
    if "{prompt}" not in text:
        raise ConfigError(f"data.template: {name} does not contain {{prompt}}. {advice}")
    return TextTemplate(name, text, text)


def check_chat_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise ConfigError if the tokenizer has no chat template."""
    if not tokenizer.chat_template:
        raise ConfigError(
            f"data.template: the tokenizer {tokenizer.name_or_path!r} has no chat template. "
            f"Use a tokenizer that has one, or data.template: alpaca."
        )


def _prompt_and_context(example: Example) -> str:
    return f"{example.prompt}\n\n{example.context}" if example.context else example.prompt


def _render(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], *, for_answer: bool
) -> str:
    turns = [message.turn for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=for_answer
        )
    except TemplateError as error:
        detail = f"the tokenizer's chat template refuses the messages: {error}"
        raise RowError("wrong type", detail) from None
    return str(text)


def _until_eos(answer: str, response: str, eos: str) -> str:
    """Return `answer` up to the last `eos` that the template, not the response, wrote."""
    start = answer.rfind(response)
    end = start + len(response) if start >= 0 else 0
    last = answer.rfind(eos, end)
    return answer if last < 0 else answer[: last + len(eos)]
