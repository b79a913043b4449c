"""Where the learned text of a turn begins and ends, beside the texts of its message.

The prompt ends where a template's request for an answer (its generation prompt) ends, or where
it begins to differ from what the template writes before a given answer (white space aside, which
some templates write otherwise into the request):

* the text goes on after the request (a block for thinking, a channel): the model writes that
  itself, so it is learned;
* the request goes further than the text before an answer (it opens <think>): such a prompt does
  not occur in training, and the excess is cut off, for training and for generation.

What the excess is follows from the template alone, not from the row: with one template, all
answers begin after the same prompt, whether they hold reasoning or not.

The turn ends with the marker that closes it, not with what separates it from the next turn.
"""

import re
from collections.abc import Sequence


def excess(before: str, request: str, tokens: re.Pattern[str] | None) -> str:
    """Return the end of `request` that does not precede a given answer."""
    if _respaced(before, request):
        return ""
    return request[start_of_answer(before, request, tokens) :]


def start_of_answer(before: str, request: str, tokens: re.Pattern[str] | None) -> int:
    """Return at which character of `before` the learned text begins.

    Args:
        before: the text between the message before and the first text of the turn.
        request: the text between the message before and the place where a model answers.
        tokens: the tokens that the tokenizer never splits; None if it has none.
    """
    if before.startswith(request):
        return len(request)
    if request.startswith(before):
        return len(before)
    if respaced := _respaced(before, request):
        return respaced
    return _whole(before, _num_common(before, request), tokens) or len(before)


def end_of_answer(
    after: str,
    tail: str,
    befores: Sequence[str],
    eos: str,
    tokens: re.Pattern[str] | None,
) -> int:
    """Return how many characters of `after` still belong to the turn: those of its end marker.

    Args:
        after: the text between the last text of the turn and the next message.
        tail: the same of this turn, or of the last one, where nothing follows.
        befores: texts between a message and the answer to it.
        eos: the text of the end-of-sequence token, the usual end marker.
        tokens: the tokens that the tokenizer never splits; None if it has none.
    """
    if eos in after:
        return after.index(eos) + len(eos)
    if tail.strip() and after.startswith(tail.rstrip()):
        return len(tail.rstrip())
    of_tail = tokens.findall(tail) if tokens else []
    closing = next((token for token in reversed(of_tail) if token in after), tail.strip())
    if closing and closing in after:
        return after.index(closing) + len(closing)
    common = after[: _whole(after, _num_common(after, tail), tokens)]
    if common:
        return len(common.rstrip()) or len(common)
    first = tokens.search(after) if tokens else None
    # Other messages are closed by the same token; a token that only opens the next turn is none.
    if first and befores and all(first[0] in before for before in befores):
        return first.end()
    return 0


def _respaced(before: str, request: str) -> int:
    """Return where `request` ends in `before`, with other white space in it; 0 if it does not."""
    characters = "".join(request.split())
    if not characters:
        return 0
    spaces_at_end = request[len(request.rstrip()) :]  # others would be those of an answer
    pattern = r"\s*" + r"\s*".join(map(re.escape, characters)) + re.escape(spaces_at_end)
    found = re.match(pattern, before)
    return found.end() if found else 0


def _num_common(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _whole(text: str, length: int, tokens: re.Pattern[str] | None) -> int:
    """Return `length`, or less: where a token of `tokens` or white space ends in `text`."""
    if length == len(text):
        return length
    ends = [found.end() for found in tokens.finditer(text, 0, length)] if tokens else []
    spaces = [i + 1 for i in range(length) if text[i].isspace()]
    return max([*ends, *spaces], default=0)
