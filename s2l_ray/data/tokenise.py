"""From an example to tokens: templates, and which of the tokens are the response."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

from s2l_ray.config.sections import NAMED_TEMPLATES
from s2l_ray.data.examples import REASONS, Example, Message, RowError, content_digest, read_example
from s2l_ray.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "REASONS",
    "ChatTemplate",
    "Example",
    "Message",
    "RowError",
    "Template",
    "TextTemplate",
    "TokenisedExample",
    "content_digest",
    "load_template",
    "prompt_ids",
    "read_example",
    "tokenise",
]

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
    """A prompt with the places {prompt} and {context}; the response follows it directly."""

    name: str
    plain: str
    with_context: str
    joint: bool = False
    """Prompt, response and end-of-sequence are tokenised as one text."""

    def render_prompt(self, example: Example) -> str:
        """The text before the response; without a {context} place, context follows the prompt."""
        text = self.with_context if example.context else self.plain
        prompt = example.prompt if "{context}" in text else _user_text(example)
        values = {"{prompt}": prompt, "{context}": example.context}
        return re.sub(r"\{prompt\}|\{context\}", lambda place: values[place[0]], text)


@dataclass(frozen=True)
class ChatTemplate:
    """The tokenizer's own chat template renders the messages."""

    name: str = "chat"
    joint: bool = False


Template = TextTemplate | ChatTemplate

_NAMED: dict[str, Template] = {
    "alpaca": TextTemplate("alpaca", _ALPACA + "\n", _ALPACA_CONTEXT + "\n"),
    "alpaca-official": TextTemplate("alpaca-official", _ALPACA, _ALPACA_CONTEXT, joint=True),
    "radiology": TextTemplate("radiology", _RADIOLOGY, _RADIOLOGY),
    "chat": ChatTemplate(),
}


@dataclass(frozen=True)
class TokenisedExample:
    """Token ids of prompt and response; the first `num_prompt_tokens` carry no loss."""

    input_ids: list[int]
    num_prompt_tokens: int


def load_template(name: str) -> Template:
    """The template called `name`, or the text file of that name, used to its last character.

    Raises:
        ConfigError: there is no such template or file, or the file has no place for the prompt.
    """
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


def tokenise(
    examples: Sequence[Example],
    template: Template,
    tokenizer: "PreTrainedTokenizerBase",
    max_tokens: int,
) -> list[TokenisedExample | RowError]:
    """Token ids of every example, cut on the right; a RowError where no response token is left.

    `alpaca-official` tokenises prompt, response and the end-of-sequence text as one and masks as
    many tokens as the prompt alone has. Every other template tokenises prompt and response apart,
    so that generation starts from exactly the masked tokens.

    Raises:
        ConfigError: the template is `chat`, and the tokenizer has no chat template.
    """
    tokens: Sequence[TokenisedExample | RowError]
    if isinstance(template, ChatTemplate):
        tokens = _chat_tokens(examples, tokenizer)
    elif template.joint:
        tokens = _joint_tokens(examples, template, tokenizer)
    else:
        tokens = _apart_tokens(examples, template, tokenizer)
    return [item if isinstance(item, RowError) else _cut(item, max_tokens) for item in tokens]


def prompt_ids(
    examples: Sequence[Example], template: Template, tokenizer: "PreTrainedTokenizerBase"
) -> list[list[int]]:
    """The tokens after which a model answers; RowError where a chat template refuses a row."""
    if isinstance(template, ChatTemplate):
        _check_chat_template(tokenizer)
        texts = [_render(tokenizer, e.messages[:-1], for_answer=True) for e in examples]
        return _encode(tokenizer, texts, special=False)
    ids = _encode(tokenizer, [template.render_prompt(e) for e in examples], special=True)
    if template.joint or not _appends_eos(tokenizer):
        return ids
    return [prompt[:-1] for prompt in ids]  # the end of the sequence comes after the response


def _user_text(example: Example) -> str:
    return f"{example.prompt}\n\n{example.context}" if example.context else example.prompt


def _encode(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, special: bool
) -> list[list[int]]:
    if not texts:
        return []
    encoded = tokenizer(
        list(texts),
        add_special_tokens=special,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _eos_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    assert isinstance(tokenizer.eos_token_id, int), "load_tokenizer refuses one without eos"
    return tokenizer.eos_token_id


def _appends_eos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    return _encode(tokenizer, ["a"], special=True)[0][-1] == _eos_id(tokenizer)


def _apart_tokens(
    examples: Sequence[Example], template: TextTemplate, tokenizer: "PreTrainedTokenizerBase"
) -> list[TokenisedExample]:
    eos_id = _eos_id(tokenizer)
    prompts = prompt_ids(examples, template, tokenizer)
    responses = _encode(tokenizer, [e.response for e in examples], special=False)
    return [
        TokenisedExample([*prompt, *response, eos_id], len(prompt))
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def _joint_tokens(
    examples: Sequence[Example], template: TextTemplate, tokenizer: "PreTrainedTokenizerBase"
) -> list[TokenisedExample]:
    eos = str(tokenizer.eos_token)
    texts = [template.render_prompt(e) + e.response + eos for e in examples]
    whole = _encode(tokenizer, texts, special=True)
    prompts = prompt_ids(examples, template, tokenizer)
    return [TokenisedExample(ids, len(p)) for ids, p in zip(whole, prompts, strict=True)]


def _chat_tokens(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase"
) -> list[TokenisedExample | RowError]:
    """Prompt and response as the chat template renders them, each tokenised by itself."""
    _check_chat_template(tokenizer)
    halves = [_chat_halves(example, tokenizer) for example in examples]
    usable = [half for half in halves if not isinstance(half, RowError)]
    prompts = iter(_encode(tokenizer, [prompt for prompt, _ in usable], special=False))
    answers = iter(_encode(tokenizer, [answer for _, answer in usable], special=False))
    return [
        half if isinstance(half, RowError) else _joined(next(prompts), next(answers), tokenizer)
        for half in halves
    ]


def _joined(
    prompt: list[int], answer: list[int], tokenizer: "PreTrainedTokenizerBase"
) -> TokenisedExample:
    eos_id = _eos_id(tokenizer)
    end = [] if answer and answer[-1] == eos_id else [eos_id]
    return TokenisedExample([*prompt, *answer, *end], len(prompt))


def _chat_halves(
    example: Example, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[str, str] | RowError:
    """The rendered text before the response, and the response up to its end-of-sequence.

    A template may open an answer that is asked for differently from one that is given (with a
    marker for thinking, say); then what stands before the given response is the prompt.
    """
    try:
        whole = _render(tokenizer, example.messages, for_answer=False)
        prompt = _render(tokenizer, example.messages[:-1], for_answer=True)
    except RowError as error:
        return error
    response = example.response.strip()
    if not whole.startswith(prompt):
        start = whole.rfind(response)
        if start < 0:
            detail = "the tokenizer's chat template rewrites the response; use another template"
            return RowError("wrong type", detail)
        prompt = whole[:start]
    return prompt, _until_eos(whole[len(prompt) :], response, str(tokenizer.eos_token))


def _until_eos(answer: str, response: str, eos: str) -> str:
    """`answer` up to the last `eos` that the template, not the response itself, put there."""
    start = answer.rfind(response)
    end = start + len(response) if start >= 0 else 0
    last = answer.rfind(eos, end)
    return answer if last < 0 else answer[: last + len(eos)]


def _check_chat_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    if not tokenizer.chat_template:
        raise ConfigError(
            f"data.template: the tokenizer {tokenizer.name_or_path!r} has no chat template. "
            f"Use a tokenizer that has one, or data.template: alpaca."
        )


def _render(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], *, for_answer: bool
) -> str:
    turns = [{"role": message.role, "content": message.text} for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=for_answer
        )
    except TemplateError as error:
        detail = f"the tokenizer's chat template refuses the messages: {error}"
        raise RowError("wrong type", detail) from None
    return str(text)


def _cut(item: TokenisedExample, max_tokens: int) -> TokenisedExample | RowError:
    ids = item.input_ids[:max_tokens]
    if item.num_prompt_tokens < len(ids):
        return TokenisedExample(ids, item.num_prompt_tokens)
    detail = f"the prompt alone has {item.num_prompt_tokens:,} tokens of {max_tokens:,} allowed"
    return RowError("no response tokens left", detail)
