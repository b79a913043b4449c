"""Near-duplicates are those of an exact comparison of all pairs."""

import itertools

import numpy as np
import pytest

from s2l_ray.data import near_duplicates
from s2l_ray.data.near_duplicates import LEAST_SIMILARITY, repeats, signatures

RNG = np.random.default_rng(5)
VOCABULARY = np.array([f"w{n}" for n in range(3000)])


def text_of(num_words):
    return RNG.choice(VOCABULARY, num_words).tolist()


def edited(text, num_edits):
    changed = list(text)
    for place in RNG.choice(len(text), num_edits, replace=False):
        changed[place] = f"other{place}"
    return changed


def grams(text):
    return {tuple(text[k : k + 3]) for k in range(len(text) - 2)} or {tuple(text)}


def similarity(one, other):
    return len(grams(one) & grams(other)) / len(grams(one) | grams(other))


def found(texts):
    signature_R = signatures(range(len(texts)), texts)
    result = repeats(signature_R["bands"].T.copy(), signature_R["sketch"])
    return dict(zip(result.row_D.tolist(), result.first_D.tolist(), strict=True)), result


@pytest.fixture(scope="module")
def pool():
    """Families of edited copies, in one shuffled order."""
    originals = [text_of(length) for length in RNG.integers(20, 150, 20)]
    copies = [edited(text, min(n % 9, 9)) for n, text in enumerate(originals * 4)]
    texts = [*originals, *copies]
    return [texts[n] for n in RNG.permutation(len(texts))]


def test_every_row_that_is_left_out_is_similar_to_a_kept_row_before_it(pool):
    first_by_row, _ = found(pool)
    assert len(first_by_row) > 25
    for row, first in first_by_row.items():
        assert first < row and first not in first_by_row
        assert similarity(pool[row], pool[first]) > LEAST_SIMILARITY - 0.12


def test_clear_repetitions_of_a_kept_row_are_found(pool):
    first_by_row, _ = found(pool)
    kept = [n for n in range(len(pool)) if n not in first_by_row]
    for one, other in itertools.combinations(kept, 2):
        assert similarity(pool[one], pool[other]) < LEAST_SIMILARITY + 0.08


def test_similarity_is_the_jaccard_index_of_3_grams(pool):
    _, result = found(pool)
    exact = [
        similarity(pool[row], pool[first])
        for row, first in zip(result.row_D, result.first_D, strict=True)
    ]
    np.testing.assert_allclose(result.similarity_D, exact, atol=0.12)
    assert abs(np.mean(result.similarity_D - exact)) < 0.02


def test_equal_rows_repeat_the_first_of_them_however_short():
    texts = [["a"], text_of(50), ["a"], ["a", "b"], ["b"], ["a", "b"], ["a"]]
    first_by_row, result = found(texts)
    assert first_by_row == {2: 0, 5: 3, 6: 0}
    assert result.similarity_D.tolist() == [1.0, 1.0, 1.0]


def test_there_are_no_chains():
    middle = text_of(60)
    start, end = ["s"] * 2 + middle[2:], middle[:-3] + ["e"] * 3
    assert (
        similarity(start, middle) > 0.9 < similarity(middle, end) and similarity(start, end) < 0.9
    )
    far = edited(edited(middle, 2), 2)
    first_by_row, _ = found([start, middle, end, far])
    assert first_by_row[1] == 0 and all(first == 0 for first in first_by_row.values())


def test_a_row_without_words_has_no_signature():
    assert signatures([4, 7, 9], [["a"], [], ["b"]])["position"].tolist() == [4, 9]
    empty, _ = found([[], []])
    assert empty == {}


def test_a_signature_depends_on_its_text_alone():
    texts = [text_of(30) for _ in range(5)]
    together, alone = signatures(range(5), texts), signatures([3], texts[3:4])
    assert together[3] == alone[0]


def test_rows_alone_in_all_their_bands_are_compared_with_none():
    band_BN = np.array([[5, 6, 5, 7], [1, 2, 3, 2]], np.int64)
    assert near_duplicates._replace_by_buckets(band_BN) == (2, 4)
    assert band_BN.tolist() == [[0, -1, 0, -1], [-1, 1, -1, 1]]
