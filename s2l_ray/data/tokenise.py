"""Tokenisation: from examples to token ids, and the number of tokens that belong to the prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from s2l_ray.data.examples import Example, RowError
from s2l_ray.data.templates import ChatTemplate, Template, TextTemplate, check_chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenisedExample:
    """Token ids of prompt and response; the first `num_prompt_tokens` carry no loss."""

    input_ids: list[int]
    num_prompt_tokens: int

    @property
    def response_ranges(self) -> list[tuple[int, int]]:
        """Return the half-open ranges of tokens that carry loss; none without tokens."""
        return [(self.num_prompt_tokens, len(self.input_ids))] if self.input_ids else []

    @property
    def num_response_tokens(self) -> int:
        """Return the number of tokens with a loss: nothing predicts a row's very first token."""
        return sum(end - max(start, 1) for start, end in self.response_ranges)

    @property
    def learned(self) -> np.ndarray:
        """Return for every token, bool, whether it is in a range."""
        is_learned = np.zeros(len(self.input_ids), bool)
        for start, end in self.response_ranges:
            is_learned[start:end] = True
        return is_learned


def tokenise(
    examples: Sequence[Example],
    template: Template,
    tokenizer: "PreTrainedTokenizerBase",
    max_tokens: int,
) -> list[TokenisedExample | RowError]:
    """Return the token ids of every example, cut on the right to `max_tokens`.

    An example that has no response token left becomes a RowError.

    `alpaca-official` tokenises prompt, response and the end-of-sequence text as one and masks as
    many tokens as the prompt alone has. Every other template tokenises prompt and response apart,
    so that generation starts from exactly the masked tokens.

    Raises:
        ConfigError: the template is `chat`, and the tokenizer has no chat template.
    """
    tokens: Sequence[TokenisedExample | RowError]
    if isinstance(template, ChatTemplate):
        tokens = _chat_tokens(examples, template, tokenizer)
    elif template.joint:
        tokens = _joint_tokens(examples, template, tokenizer)
    else:
        tokens = _separate_tokens(examples, template, tokenizer)
    return [item if isinstance(item, RowError) else _cut(item, max_tokens) for item in tokens]


def prompt_ids(
    examples: Sequence[Example], template: Template, tokenizer: "PreTrainedTokenizerBase"
) -> list[list[int]]:
    """Return the tokens after which a model answers each example.

    Raises:
        ConfigError: the template is `chat`, and the tokenizer has no chat template.
        RowError: the chat template refuses an example.
    """
    if isinstance(template, ChatTemplate):
        check_chat_template(tokenizer)
        texts = [template.render_prompt(example, tokenizer) for example in examples]
        return _encode(tokenizer, texts, special=False)
    ids = _encode(tokenizer, [template.render_prompt(e) for e in examples], special=True)
    if template.joint or not _appends_eos(tokenizer):
        return ids
    return [prompt[:-1] for prompt in ids]  # the end of the sequence comes after the response


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


def _separate_tokens(
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
    examples: Sequence[Example], template: ChatTemplate, tokenizer: "PreTrainedTokenizerBase"
) -> list[TokenisedExample | RowError]:
    """Tokenise the prompt and the response that the chat template renders, each by itself."""
    check_chat_template(tokenizer)
    texts = [_rendered(example, template, tokenizer) for example in examples]
    usable = [text for text in texts if not isinstance(text, RowError)]
    prompts = iter(_encode(tokenizer, [prompt for prompt, _ in usable], special=False))
    answers = iter(_encode(tokenizer, [answer for _, answer in usable], special=False))
    return [
        text if isinstance(text, RowError) else _joined(next(prompts), next(answers), tokenizer)
        for text in texts
    ]


def _rendered(
    example: Example, template: ChatTemplate, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[str, str] | RowError:
    try:
        return template.render(example, tokenizer)
    except RowError as error:
        return error


def _joined(
    prompt: list[int], answer: list[int], tokenizer: "PreTrainedTokenizerBase"
) -> TokenisedExample:
    eos_id = _eos_id(tokenizer)
    end = [] if answer and answer[-1] == eos_id else [eos_id]
    return TokenisedExample([*prompt, *answer, *end], len(prompt))


def _cut(item: TokenisedExample, max_tokens: int) -> TokenisedExample | RowError:
    ids = item.input_ids[:max_tokens]
    if item.num_prompt_tokens < len(ids):
        return TokenisedExample(ids, item.num_prompt_tokens)
    detail = f"the prompt alone has {item.num_prompt_tokens:,} tokens of {max_tokens:,} allowed"
    return RowError("no response tokens left", detail)
