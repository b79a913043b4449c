"""Tokenisation: from examples to token ids, and the ranges of them that carry loss.

A rendered example is a sequence of stretches of text, with loss and without. Each is tokenised by
itself, so that no token belongs to two of them, and that a model which answers starts from exactly
the tokens that training masks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from s2l_ray.data.chat_rendering import render_chat
from s2l_ray.data.chat_sources import jinja_source
from s2l_ray.data.chat_templates import ChatTemplateOfTokenizer
from s2l_ray.data.examples import Example, RowError
from s2l_ray.data.rendering import Rendered
from s2l_ray.data.row_errors import NO_ROOM
from s2l_ray.data.templates import AutoTemplate, ChatTemplate, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenisedExample:
    """Token ids, and the half-open ranges of those with loss: ascending, disjoint, not empty."""

    input_ids: list[int]
    response_ranges: list[tuple[int, int]]
    notes: tuple[str, ...] = ()
    """What was handled in this row and is counted."""
    is_cut: bool = False
    """Tokens with loss were cut off at the end."""

    @property
    def num_prompt_tokens(self) -> int:
        """The number of tokens before the first one with loss."""
        return self.response_ranges[0][0] if self.response_ranges else len(self.input_ids)

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

    An example that the template refuses or changes, or that has no response token left, becomes a
    RowError.

    Raises:
        ConfigError: the template is `chat`, and the tokenizer has no chat template.
    """
    return [
        item if isinstance(item, RowError) else _cut(item, max_tokens)
        for item in _whole(examples, template, tokenizer)
    ]


def prompt_ids(
    examples: Sequence[Example], template: Template, tokenizer: "PreTrainedTokenizerBase"
) -> list[list[int]]:
    """Return the tokens after which a model answers each example: all before its last answer.

    Raises:
        ConfigError: the template is `chat`, and the tokenizer has no chat template.
        RowError: the template refuses or changes an example.
    """
    prompts = []
    for item in _whole(examples, template, tokenizer):
        if isinstance(item, RowError):
            raise item
        prompts.append(item.input_ids[: item.response_ranges[-1][0]])
    return prompts


def decoded(item: TokenisedExample, tokenizer: "PreTrainedTokenizerBase") -> list[tuple[str, bool]]:
    """Return what a model reads, as texts without and with loss; joined they are the whole."""
    bounds = [0, *(i for span in item.response_ranges for i in span), len(item.input_ids)]
    segments, done = [], ""
    for number, end in enumerate(bounds[1:]):
        text = str(
            tokenizer.decode(
                item.input_ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )
        if text[len(done) :]:
            segments.append((text[len(done) :], number % 2 == 1))
        done = text
    return segments


def _whole(
    examples: Sequence[Example], template: Template, tokenizer: "PreTrainedTokenizerBase"
) -> list[TokenisedExample | RowError]:
    """Return every example with all its tokens."""
    if isinstance(template, AutoTemplate):
        return _by_kind(examples, template, tokenizer)
    if isinstance(template, ChatTemplate):
        source = jinja_source(template.source, tokenizer)
        chat = ChatTemplateOfTokenizer(tokenizer, source, template.date)
        rendered = [_outcome(lambda e: render_chat(e, chat, template.turns), e) for e in examples]
        join = _chat_tokens
    else:
        eos = str(tokenizer.eos_token)
        rendered = [_outcome(lambda e: template.render(e, eos), e) for e in examples]
        join = _joint_tokens if template.joint else _separate_tokens
    tokens = iter(join([row for row in rendered if isinstance(row, Rendered)], tokenizer))
    return [row if isinstance(row, RowError) else next(tokens) for row in rendered]


def _by_kind(
    examples: Sequence[Example], template: AutoTemplate, tokenizer: "PreTrainedTokenizerBase"
) -> list[TokenisedExample | RowError]:
    """Return every example with all its tokens, each rendered by the template of its kind."""
    templates = [template.of(example) for example in examples]
    rendered = {
        one: iter(_whole([e for e in examples if template.of(e) == one], one, tokenizer))
        for one in dict.fromkeys(templates)
    }
    return [next(rendered[one]) for one in templates]


def _outcome(render: Callable[[Example], Rendered], example: Example) -> Rendered | RowError:
    try:
        return render(example)
    except RowError as error:
        return error


def _chat_tokens(
    rows: Sequence[Rendered], tokenizer: "PreTrainedTokenizerBase"
) -> list[TokenisedExample]:
    """Tokenise every stretch of the text; the template has written all special tokens."""
    begun = iter(_encode(tokenizer, [row.segments[0].text for row in rows], special=False))
    befores = [segment.text for row in rows for segment in row.segments[:-1]]
    later = [segment.text for row in rows for segment in row.segments[1:]]
    continued = iter(_encode_continuations(tokenizer, later, befores))
    eos_id, joined = _eos_id(tokenizer), []
    for row in rows:
        first, *rest = row.segments
        pieces = [(next(begun), first.learned), *((next(continued), s.learned) for s in rest)]
        joined.append(_joined(pieces, row, None if row.ends_as_marked else eos_id))
    return joined


def _separate_tokens(
    rows: Sequence[Rendered], tokenizer: "PreTrainedTokenizerBase"
) -> list[TokenisedExample]:
    """Tokenise prompt and response apart; the tokenizer adds its special tokens to the prompt."""
    prompts = _prompts(rows, tokenizer)
    responses = _encode(tokenizer, [row.segments[1].text for row in rows], special=False)
    eos_id = _eos_id(tokenizer)
    return [
        _joined([(prompt, False), (response, True)], row, eos_id)
        for prompt, response, row in zip(prompts, responses, rows, strict=True)
    ]


def _joint_tokens(
    rows: Sequence[Rendered], tokenizer: "PreTrainedTokenizerBase"
) -> list[TokenisedExample]:
    """Tokenise prompt, response and end-of-sequence as one text; mask as many tokens as the prompt.

    Where a token would span the border, prompt and response are tokenised apart.
    """
    eos_id = _eos_id(tokenizer)
    texts = ["".join(s.text for s in row.segments) + str(tokenizer.eos_token) for row in rows]
    whole = _encode(tokenizer, texts, special=True)
    if _appends_eos(tokenizer):
        whole = [ids[:-1] for ids in whole]
    apart = _separate_tokens(rows, tokenizer)
    joined = []
    for ids, item in zip(whole, apart, strict=True):
        n = item.num_prompt_tokens
        ids = _with_one_bos(ids, tokenizer)
        ids = ids if ids[-1] == eos_id else [*ids, eos_id]
        fits = ids[:n] == item.input_ids[:n] and len(ids) > n
        joined.append(
            replace(item, input_ids=ids, response_ranges=[(n, len(ids))]) if fits else item
        )
    return joined


def _prompts(rows: Sequence[Rendered], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """Return the prompts with the special tokens that the tokenizer puts before a text."""
    prompts = _encode(tokenizer, [row.segments[0].text for row in rows], special=True)
    if _appends_eos(tokenizer):  # the end of the sequence comes after the response
        prompts = [ids[:-1] for ids in prompts]
    return [_with_one_bos(ids, tokenizer) for ids in prompts]


def _with_one_bos(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the tokens without the second of two beginnings: the template wrote one as well."""
    bos = tokenizer.bos_token_id
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def _joined(
    pieces: Sequence[tuple[list[int], bool]], row: Rendered, eos_id: int | None
) -> TokenisedExample:
    """Return the pieces as one row; it ends with one `eos_id`, unless that is None."""
    ids: list[int] = []
    ranges: list[tuple[int, int]] = []
    for piece, learned in pieces:
        start = len(ids)
        ids += piece
        if learned and piece:
            ranges.append((start, len(ids)))
    if eos_id is not None and (not ids or ids[-1] != eos_id):
        start = ranges.pop()[0] if ranges and ranges[-1][1] == len(ids) else len(ids)
        ids.append(eos_id)
        ranges.append((start, len(ids)))
    return TokenisedExample(ids, ranges, row.notes)


def _encode(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, special: bool
) -> list[list[int]]:
    from s2l_ray.models.tokenizers import token_ids  # its import takes seconds

    return token_ids(tokenizer, texts, special=special)


def _encode_continuations(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], befores: Sequence[str]
) -> list[list[int]]:
    """Return the tokens of texts that follow the texts `befores`.

    Some tokenizers put a space before every text that they are given, which belongs to the
    beginning of a row alone. Such a text is tokenised behind a special token or a line break, as in
    the row, which is taken off again.
    """
    plain = _encode(tokenizer, texts, special=False)
    special = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    anchors = [next((s for s in special if b.endswith(s)), "\n") for b in befores]
    names = sorted(set(anchors))
    heads = dict(zip(names, _encode(tokenizer, names, special=False), strict=True))
    alone, *behind = _encode(tokenizer, ["a", *(f"{name}a" for name in names)], special=False)
    if all(ids == heads[name] + alone for name, ids in zip(names, behind, strict=True)):
        return plain
    anchored = [anchor + text for anchor, text in zip(anchors, texts, strict=True)]
    tokens = []
    for i, ids in enumerate(_encode(tokenizer, anchored, special=False)):
        head = heads[anchors[i]]
        tokens.append(ids[len(head) :] if ids[: len(head)] == head else plain[i])
    return tokens


def _eos_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    assert isinstance(tokenizer.eos_token_id, int), "load_tokenizer refuses one without eos"
    return tokenizer.eos_token_id


def _appends_eos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    return _encode(tokenizer, ["a"], special=True)[0][-1] == _eos_id(tokenizer)


def _cut(item: TokenisedExample, max_tokens: int) -> TokenisedExample | RowError:
    kept, ranges = item, item.response_ranges
    if len(item.input_ids) > max_tokens:
        ranges = [(start, min(end, max_tokens)) for start, end in ranges if start < max_tokens]
        is_cut = ranges != item.response_ranges
        kept = replace(
            item, input_ids=item.input_ids[:max_tokens], response_ranges=ranges, is_cut=is_cut
        )
    if kept.num_response_tokens:
        return kept
    if ranges:
        return RowError("no response tokens left", "nothing stands before the first one")
    detail = f"the prompt alone has {item.num_prompt_tokens:,} tokens of {max_tokens:,} allowed"
    return RowError(NO_ROOM, detail)
