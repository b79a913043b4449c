"""Rows of a pool that hold the prompt of an evaluation set.

The prompt of an evaluation row is what its users say. A row of the pool matches it in one of two
ways.

* The same prompt: one turn of a user, or all of them together, has the same words and signs.
* Overlap: more than half of the prompt's words lie in 8-grams of words that the row has in its
  messages, too, whoever says them. This is the rule of Tulu 3 (arXiv:2411.15124, section 3.2).
  Words in 8-grams that many prompts of the set share (an instruction before each question, a text
  with many questions) do not count; GPT-3 left out common n-grams, too (arXiv:2005.14165, appendix
  C). A prompt with fewer than eight words that count is compared as a whole only.

Shape letters: I different prompts, E their 8-grams, U different ones, H 8-grams that rows share.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from s2l_ray.data.examples import Example
from s2l_ray.data.words import gram_hashes, hashed, signs, words

GRAM = 8
"""Words in an n-gram."""
LEAST_SHARE = 0.5
"""An overlap is a share of a prompt's words above this one."""
MOST_SHARING = 10
"""An 8-gram that more prompts of a set share is common; in a small set, if more than half do."""
MATCHED_CHARACTERS = 300
SAME_PROMPT, OVERLAP = "same prompt", "overlap"

PROMPTS = pa.schema(
    [("set", pa.string()), ("file", pa.string()), ("row", pa.int64()), ("text", pa.string())]
)
"""Columns of a table of prompts: a row for each evaluation row that can be used."""
_SCREEN_BITS = 22


@dataclass(frozen=True)
class Prompt:
    """A prompt of an evaluation set, the first of equal ones.

    Attributes:
        number: its number in the table of prompts.
        set: the name of the evaluation set.
        words: its words.
        signs: the signs of calculation in it.
    """

    number: int
    set: str
    words: list[str]
    signs: str


@dataclass(frozen=True)
class Match:
    """A row of a pool and a prompt that it holds.

    Attributes:
        position: the number of the row among the compared ones.
        prompt: the number of the prompt in the table of prompts.
        kind: SAME_PROMPT or OVERLAP.
        share: the share of the prompt's words that the row holds, of those that count.
        matched: these words, or their beginning.
    """

    position: int
    prompt: int
    kind: str
    share: float
    matched: str


def user_turns(example: Example) -> list[str]:
    """Return what the users of a conversation say."""
    return [message.content for message in example.messages if message.role == "user"]


class PromptIndex:
    """The prompts of all evaluation sets, ready to be looked for in rows."""

    def __init__(self, prompts: pa.Table) -> None:
        self.prompts = different_prompts(prompts)
        """The different prompts of each set, I of them."""
        self._numbers_by_text: dict[str, list[int]] = {}
        for i, prompt in enumerate(self.prompts):
            self._numbers_by_text.setdefault(" ".join(prompt.words), []).append(i)
        hash_W, start_I = hashed([prompt.words for prompt in self.prompts])
        gram_E, first_E = gram_hashes(hash_W, start_I, GRAM)
        prompt_E = np.searchsorted(start_I, first_E, side="right") - 1
        place_E = first_E - start_I[prompt_E]
        is_common_E = _are_common(gram_E, prompt_E, [prompt.set for prompt in self.prompts])
        counts_W = np.ones(len(hash_W), bool)
        for first in first_E[is_common_E]:
            counts_W[first : first + GRAM] = False
        self._counts_I = np.split(counts_W, start_I[1:-1])
        self._num_counting_I = np.array([counts.sum() for counts in self._counts_I], np.int64)
        kept_E = ~is_common_E & (self._num_counting_I[prompt_E] >= GRAM)
        order_E = np.flatnonzero(kept_E)[np.argsort(gram_E[kept_E], kind="stable")]
        self._prompt_E, self._place_E = prompt_E[order_E], place_E[order_E]
        self._gram_U, start_U = np.unique(gram_E[order_E], return_index=True)
        self._start_U = np.append(start_U, len(order_E))
        # Most 8-grams of a pool are in no prompt; looking up a bit of their hash shows it.
        self._screen = np.zeros(2**_SCREEN_BITS, bool)
        self._screen[_screen_bits(self._gram_U)] = True

    def matches(self, examples: Sequence[Example]) -> list[Match]:
        """Return one match for every row and prompt that match, ordered by row and prompt."""
        said = [[words(message.content) for message in item.messages] for item in examples]
        found = {(item.position, item.prompt): item for item in self._overlaps(said)}
        for position, (example, texts) in enumerate(zip(examples, said, strict=True)):
            for i in self._same_prompts(example, texts):
                prompt = self.prompts[i]
                matched = " ".join(prompt.words)[:MATCHED_CHARACTERS]
                same = Match(position, prompt.number, SAME_PROMPT, 1.0, matched)
                found[position, prompt.number] = same
        return [found[pair] for pair in sorted(found)]

    def _same_prompts(self, example: Example, texts: Sequence[list[str]]) -> Iterator[int]:
        """Yield the prompts that one user's turn, or all of them together, repeats."""
        asked = [
            (message.content, text)
            for message, text in zip(example.messages, texts, strict=True)
            if message.role == "user"
        ]
        whole = "\n".join(content for content, _ in asked), [w for _, text in asked for w in text]
        for content, text in [*asked, whole] if len(asked) > 1 else asked:
            for i in self._numbers_by_text.get(" ".join(text), []):
                if self.prompts[i].signs == signs(content):
                    yield i

    def _overlaps(self, said: Sequence[Sequence[list[str]]]) -> Iterator[Match]:
        row_H, prompt_H, place_H = self._shared_grams(said)
        is_new_H = np.ones(len(row_H), bool)
        is_new_H[1:] = (row_H[1:] != row_H[:-1]) | (prompt_H[1:] != prompt_H[:-1])
        bounds = np.append(np.flatnonzero(is_new_H), len(row_H))
        for start, end in itertools.pairwise(bounds):
            i = int(prompt_H[start])
            if (end - start) * GRAM <= LEAST_SHARE * self._num_counting_I[i]:
                continue
            held_W = np.zeros(len(self._counts_I[i]), bool)
            for place in place_H[start:end]:
                held_W[place : place + GRAM] = True
            held_W &= self._counts_I[i]
            share = float(held_W.sum() / self._num_counting_I[i])
            if share > LEAST_SHARE:
                prompt = self.prompts[i]
                matched = _joined(prompt.words, held_W)[:MATCHED_CHARACTERS]
                yield Match(int(row_H[start]), prompt.number, OVERLAP, share, matched)

    def _shared_grams(
        self, said: Sequence[Sequence[list[str]]]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the row, the prompt and the place in the prompt of every 8-gram that both have.

        They are ordered by row, prompt and place, without repetitions: int64 (H,) each.
        """
        hash_W, start_T = hashed([text for texts in said for text in texts])
        gram_G, first_G = gram_hashes(hash_W, start_T, GRAM)
        passed_G = np.flatnonzero(self._screen[_screen_bits(gram_G)])
        gram_G, first_G = gram_G[passed_G], first_G[passed_G]
        found_G = np.searchsorted(self._gram_U, gram_G)
        is_there_G = np.flatnonzero(np.append(self._gram_U, 0)[found_G] == gram_G)
        gram_number_G, first_G = found_G[is_there_G], first_G[is_there_G]
        row_T = np.repeat(np.arange(len(said)), [len(texts) for texts in said])
        row_G = row_T[np.searchsorted(start_T, first_G, side="right") - 1]
        num_G = self._start_U[gram_number_G + 1] - self._start_U[gram_number_G]
        before_G = np.cumsum(num_G) - num_G
        entry_H = np.arange(num_G.sum()) + np.repeat(self._start_U[gram_number_G] - before_G, num_G)
        shared = np.stack(
            [np.repeat(row_G, num_G), self._prompt_E[entry_H], self._place_E[entry_H]]
        )
        row_H, prompt_H, place_H = np.unique(shared, axis=1)
        return row_H, prompt_H, place_H


def different_prompts(prompts: pa.Table) -> list[Prompt]:
    """Return the prompts that have words, without those that repeat an earlier one of their set."""
    different: dict[tuple[str, str, str], Prompt] = {}
    for number, row in enumerate(prompts.select(["set", "text"]).to_pylist()):
        prompt = Prompt(number, row["set"], words(row["text"]), signs(row["text"]))
        if prompt.words:
            different.setdefault((prompt.set, " ".join(prompt.words), prompt.signs), prompt)
    return list(different.values())


def _are_common(gram_E: np.ndarray, prompt_E: np.ndarray, sets: Sequence[str]) -> np.ndarray:
    """Tell of every 8-gram whether too many prompts of its set share it: bool (E,)."""
    number_by_set = {name: number for number, name in enumerate(dict.fromkeys(sets))}
    set_I = np.array([number_by_set[name] for name in sets], np.int64)
    size_by_set = Counter(sets)
    most_S = np.array([min(MOST_SHARING, max(2, size_by_set[name] // 2)) for name in number_by_set])
    set_E = set_I[prompt_E]
    order_E = np.lexsort((prompt_E, gram_E, set_E))
    gram, of_set, prompt = gram_E[order_E], set_E[order_E], prompt_E[order_E]
    is_other_gram = np.ones(len(gram), bool)
    is_other_gram[1:] = (gram[1:] != gram[:-1]) | (of_set[1:] != of_set[:-1])
    is_other_prompt = is_other_gram.copy()
    is_other_prompt[1:] |= prompt[1:] != prompt[:-1]
    group = np.cumsum(is_other_gram) - 1
    num_prompts = np.bincount(group, is_other_prompt)
    is_common_E = np.empty(len(gram), bool)
    is_common_E[order_E] = num_prompts[group] > most_S[of_set] if len(gram) else False
    return is_common_E


def _screen_bits(gram: np.ndarray) -> np.ndarray:
    return (gram >> np.uint64(64 - _SCREEN_BITS)).astype(np.int64)


def _joined(text: Sequence[str], held_W: np.ndarray) -> str:
    """Return the words that are held, with dots for each gap."""
    shown: list[str] = []
    for word, held in zip(text, held_W, strict=True):
        if held:
            shown.append(word)
        elif shown and shown[-1] != "...":
            shown.append("...")
    return " ".join(shown).removesuffix(" ...")
