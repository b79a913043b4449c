"""Words are the same however a text is written, and n-grams have hashes of their own."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ray.data import words as module
from s2l_ray.data.words import gram_hashes, hashed, signs, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("How many  eggs\n(a day)?", "how many eggs a day"),
        ("HOW many eggs; a-day", "how many eggs a day"),
        ("snake_case x_1", "snake case x 1"),
        ("$\\frac{1}{2}$ of 3.5", "frac 1 2 of 3 5"),
        ("Straße, ÇA va: naïve", "strasse ça va naïve"),
        ("\uff21\uff22 \ufb01ne", "ab fine"),
        ("日本語 ok", "日 本 語 ok"),
        ("?! …", ""),
    ],
)
def test_words_leave_out_case_punctuation_and_forms_of_characters(text, expected):
    assert words(text) == expected.split()


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_the_fast_way_for_ascii_gives_the_words_of_the_expression(text):
    assert words(text) == module._WORD.findall(text.casefold())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 + 5 - x", "+-"),
        ("3+5*(2-1)", "+*-"),
        ("$2^{3} \u00d7 4 = 32$", "^\u00d7="),
        ("- a\n- b, **bold**, well-known", ""),
    ],
)
def test_signs_stand_between_terms(text, expected):
    assert signs(text) == expected


texts_of_words = st.lists(st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=6), max_size=6)


@given(texts=texts_of_words, n=st.integers(1, 4))
def test_equal_hashes_are_equal_grams_within_one_text(texts, n):
    hash_W, start_T = hashed(texts)
    gram_G, first_G = gram_hashes(hash_W, start_T, n)

    bounds = list(itertools.accumulate(map(len, texts), initial=0))
    expected = [
        (start + place, tuple(text[place : place + n]))
        for start, text in zip(bounds, texts, strict=False)
        for place in range(len(text) - n + 1)
    ]
    assert start_T.tolist() == bounds
    assert first_G.tolist() == [first for first, _ in expected]
    by_hash = dict(zip(gram_G.tolist(), (gram for _, gram in expected), strict=True))
    assert [by_hash[gram] for gram in gram_G.tolist()] == [gram for _, gram in expected]
    assert len(by_hash) == len({gram for _, gram in expected})


def test_a_hash_depends_on_the_words_alone():
    alone, _ = hashed([["x", "y"]])
    among, start_T = hashed([["p", "q", "y"], [], ["x", "y"]])
    np.testing.assert_array_equal(among[start_T[2] :], alone)
