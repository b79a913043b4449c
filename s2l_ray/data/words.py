"""Normalised words of texts, and 64-bit hashes of their n-grams.

Texts that differ in case, white space, punctuation or forms of the same character have the same
words. A sign of a calculation between two of its terms is no word; `signs` returns these.

Shape letters: T texts, W words of all of them, G n-grams.
"""

import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from s2l_ray import hashing

# Scripts without spaces between words (Japanese, Chinese): each character is a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
# For ASCII the same, three times faster than the expression.
_SEPARATORS = str.maketrans({chr(code): " " for code in range(128) if not chr(code).isalnum()})
# A dash right between two letters joins them, and is no minus.
_SIGN = re.compile(
    r"(?<=[^\W\d_])-(?=[^\W\d_])"
    r"|(?<=[\w)\]}])[^\S\n]*([-+*/^=<>\u2212\u00b7\u00d7\u00f7])(?=[^\S\n]*[\w(\[{\\$])"
)
_FACTOR = 0x9E3779B97F4A7C15
"""An odd factor of the hash of an n-gram, which is a polynomial in it modulo 2^64."""


def words(text: str) -> list[str]:
    """Return the words of `text`: runs of letters and digits, in Unicode's folded case."""
    if text.isascii():
        return text.lower().translate(_SEPARATORS).split()
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def signs(text: str) -> str:
    """Return the signs of calculation in `text` that stand between two terms, in order.

    "3 + 5" and "3 - 5" have the same words and other signs. A list's dash or a star of emphasis is
    no such sign.
    """
    return "".join(_SIGN.findall(unicodedata.normalize("NFKC", text)))


def hashed(texts: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Return a hash of every word of `texts`, each of which is a list of words.

    Returns:
        hash_W, uint64 (W,), the words of one text after those of another; and start_T, int64
        (T + 1,), the number of the first word of each text, and W.
    """
    # A word that is looked up for the first time gets the next number.
    number_by_word: defaultdict[str, int] = defaultdict()
    number_by_word.default_factory = number_by_word.__len__
    every_word = itertools.chain.from_iterable(texts)
    number_W = np.fromiter(map(number_by_word.__getitem__, every_word), np.int64)
    start_T = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in texts], out=start_T[1:])
    return hashing.example_keys(list(number_by_word))[number_W], start_T


def gram_hashes(hash_W: np.ndarray, start_T: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a hash of each `n` consecutive words of a text, and the number of their first word.

    Two different n-grams have the same hash with probability 2^-64. A text with fewer words has
    none.

    Returns:
        gram_G, uint64 (G,), and first_G, int64 (G,), ascending.
    """
    num_grams = max(len(hash_W) - n + 1, 0)
    gram_G = np.zeros(num_grams, np.uint64)
    for k in range(n):
        gram_G *= np.uint64(_FACTOR)
        gram_G += hash_W[k : k + num_grams]
    text_W = np.repeat(np.arange(len(start_T) - 1), np.diff(start_T))
    first_G = np.flatnonzero(text_W[:num_grams] == text_W[n - 1 : n - 1 + num_grams])
    return gram_G[first_G], first_G
