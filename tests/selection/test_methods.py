"""Rankings: the oracle is Algorithm 1 of S2L, written out as it stands in the paper."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ray import hashing
from s2l_ray.selection import methods, rankings
from s2l_ray.selection.examples import Examples
from s2l_ray.selection.water_filling import Quotas

SEED = 3
QUANTILE = 0.3


def examples_of(cells: Sequence[tuple[int, int, int]]) -> Examples:
    """Examples from (stratum, cluster, size) cells."""
    sizes = [size for *_, size in cells]
    return with_values(
        key_N=hashing.example_keys([f"x{row}" for row in range(sum(sizes))]),
        cluster_N=np.repeat([cluster for _, cluster, _ in cells], sizes).astype(np.int32),
        stratum_N=np.repeat([stratum for stratum, *_ in cells], sizes).astype(np.int32),
    )


def with_values(key_N: np.ndarray, cluster_N: np.ndarray, stratum_N: np.ndarray) -> Examples:
    """Examples whose values are few numbers, so that many are equal."""
    names = sorted({name for method in methods.METHODS.values() for name in method.numbers})
    drawn = {name: hashing.mixed(key_N, place) % np.uint64(4) for place, name in enumerate(names)}
    values = {name: number_N.astype(np.float32) / 2 for name, number_N in drawn.items()}
    drawn_N4 = np.stack([hashing.mixed(key_N, 99, h) % np.uint64(3) for h in range(4)], axis=1)
    query_34 = np.array([[1, 0, 2, 1], [0, 3, 1, 0], [1, 1, 1, 1]], np.float16)
    vectors = {"embeddings": drawn_N4.astype(np.float16), "queries": query_34}
    return Examples(
        key_N, cluster_N, stratum_N, values, vectors=vectors, settings={"quantile": QUANTILE}
    )


def rearranged(examples: Examples, row_N: Sequence[int]) -> Examples:
    return Examples(
        examples.key_N[row_N],
        examples.cluster_N[row_N],
        examples.stratum_N[row_N],
        {name: value_N[row_N] for name, value_N in examples.numbers.items()},
        None if examples.inside_N is None else examples.inside_N[row_N],
        examples.vectors | {"embeddings": examples.vectors["embeddings"][row_N]},
        examples.settings,
    )


def groups_in_order(label_N: np.ndarray, row_N: Sequence[int]) -> list[list[int]]:
    """Rows of each label in the order of `row_N`, smallest group first, then lowest label."""
    groups: dict[int, list[int]] = {}
    for row in row_N:
        groups.setdefault(int(label_N[row]), []).append(row)
    return [
        groups[label] for label in sorted(groups, key=lambda label: (len(groups[label]), label))
    ]


def quotas(sizes: Sequence[int], budget: int) -> list[int]:
    """R_k = floor((B - |S|) / (K - k + 1)) for k = 1..K, or the whole cluster if it is smaller."""
    taken: list[int] = []
    for k, size in enumerate(sizes):
        taken.append(min(size, (budget - sum(taken)) // (len(sizes) - k)))
    return taken


def algorithm_1(groups: Sequence[Sequence[int]], budget: int) -> list[int]:
    taken = quotas([len(group) for group in groups], budget)
    return [row for group, quota in zip(groups, taken, strict=True) for row in group[:quota]]


def with_tail(cluster_N: np.ndarray, row_N: Sequence[int], budget: int) -> list[int]:
    """The authors' code: Algorithm 1 on clusters above two, the rest from those up to two."""
    groups = groups_in_order(cluster_N, row_N)
    small = {row for group in groups if len(group) <= 2 for row in group}
    large = [group for group in groups if len(group) > 2]
    first = algorithm_1(large, min(budget, sum(map(len, large))))
    return first + [row for row in row_N if row in small][: budget - len(first)]


def expected_subset(examples: Examples, method: str, stratify: bool, budget: int) -> list[int]:
    def inside(row_N: Sequence[int], budget: int) -> list[int]:
        if method == "s2l-authors":
            return with_tail(examples.cluster_N, row_N, budget)
        return algorithm_1(groups_in_order(examples.cluster_N, row_N), budget)

    shuffled = rankings.random(examples, SEED).tolist()
    if not stratify:
        return inside(shuffled, budget)
    strata = groups_in_order(examples.stratum_N, shuffled)
    shares = quotas([len(stratum) for stratum in strata], budget)
    return [row for s, share in zip(strata, shares, strict=True) for row in inside(s, share)]


def assert_every_prefix_is_algorithm_1(examples: Examples, method: str, stratify: bool) -> None:
    order_N = methods.METHODS[method].ranking(examples, SEED, stratify=stratify)
    for budget in range(len(order_N) + 1):
        expected = expected_subset(examples, method, stratify, budget)
        assert sorted(order_N[:budget].tolist()) == sorted(expected), budget


@pytest.mark.parametrize("method", ["s2l", "s2l-authors"])
@pytest.mark.parametrize("num_clusters", [1, 2, 3, 4])
def test_every_prefix_is_algorithm_1_on_one_level(method, num_clusters):
    for sizes in itertools.product([1, 2, 3, 5], repeat=num_clusters):
        cells = [(0, cluster, size) for cluster, size in enumerate(sizes)]
        assert_every_prefix_is_algorithm_1(examples_of(cells), method, stratify=False)


@pytest.mark.parametrize("method", ["s2l", "s2l-authors"])
@pytest.mark.parametrize("shared", [True, False], ids=["clusters over strata", "inside strata"])
def test_every_prefix_is_algorithm_1_on_two_levels(method, shared):
    for sizes in itertools.product([0, 1, 3, 4], repeat=4):
        places = [(0, 0), (0, 1), (1, 0), (1, 1)]
        cells = [
            (stratum, cluster if shared else 2 * stratum + cluster, size)
            for (stratum, cluster), size in zip(places, sizes, strict=True)
        ]
        assert_every_prefix_is_algorithm_1(examples_of(cells), method, stratify=True)


def test_clusters_share_a_budget_as_computed_by_hand():
    examples = examples_of([(0, 0, 6), (0, 1, 1), (0, 2, 3)])
    order_N = rankings.s2l(examples, SEED, stratify=False)
    # Quotas floor(8/3) = 2 of 1, floor(7/2) = 3 of 3, and 4 of 6.
    assert np.bincount(examples.cluster_N[order_N[:8]]).tolist() == [4, 1, 3]


def test_strata_share_a_budget_before_clusters_do():
    examples = examples_of([(0, 0, 20), (1, 1, 20), (1, 2, 20), (1, 3, 20)])
    order_N = rankings.s2l(examples, SEED, stratify=True)
    assert np.bincount(examples.cluster_N[order_N[:12]]).tolist() == [6, 2, 2, 2]
    order_N = rankings.s2l(examples, SEED, stratify=False)
    assert np.bincount(examples.cluster_N[order_N[:12]]).tolist() == [3, 3, 3, 3]


def test_of_equal_clusters_the_one_visited_last_gets_the_remainder():
    examples = examples_of([(0, 0, 3), (0, 1, 3), (0, 2, 3)])
    order_N = rankings.s2l(examples, SEED, stratify=False)
    assert examples.cluster_N[order_N[:4]].tolist() == [2, 1, 0, 2]


def test_authors_take_small_clusters_last():
    examples = examples_of([(0, 0, 1), (0, 1, 2), (0, 2, 3), (0, 3, 4)])
    order_N = rankings.s2l_authors(examples, SEED, stratify=False)
    assert set(examples.cluster_N[order_N[:7]].tolist()) == {2, 3}
    assert set(examples.cluster_N[order_N[7:]].tolist()) == {0, 1}


def test_balanced_random_is_algorithm_1_over_strata():
    examples = examples_of([(0, 0, 2), (1, 1, 5), (1, 2, 4), (2, 3, 3)])
    order_N = rankings.balanced_random(examples, SEED)
    groups = groups_in_order(examples.stratum_N, rankings.random(examples, SEED).tolist())
    for budget in range(15):
        assert sorted(order_N[:budget].tolist()) == sorted(algorithm_1(groups, budget))


POOLS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(0, 9)), min_size=1, max_size=12
).map(examples_of)
RANKINGS = pytest.mark.parametrize(
    ("method", "stratify"), list(itertools.product(methods.METHODS, [True, False]))
)


@RANKINGS
@settings(max_examples=40, deadline=None)
@given(examples=POOLS, seed=st.integers(0, 2**70))
def test_a_ranking_holds_every_row_once(method, stratify, examples, seed):
    order_N = methods.METHODS[method].ranking(examples, seed, stratify=stratify)
    assert order_N.dtype == np.int64
    assert sorted(order_N.tolist()) == list(range(len(examples.key_N)))


@RANKINGS
@settings(max_examples=40, deadline=None)
@given(examples=POOLS, seed=st.integers(0, 5), shuffle=st.randoms(use_true_random=False))
def test_a_ranking_does_not_depend_on_row_order(method, stratify, examples, seed, shuffle):
    rank = methods.METHODS[method].ranking
    row_N = np.arange(len(examples.key_N))
    shuffle.shuffle(row_N)
    moved = rearranged(examples, row_N)
    np.testing.assert_array_equal(
        moved.key_N[rank(moved, seed, stratify=stratify)],
        examples.key_N[rank(examples, seed, stratify=stratify)],
    )


@pytest.mark.parametrize("method", ["s2l", "s2l-authors"])
@settings(max_examples=40, deadline=None)
@given(examples=POOLS, stratify=st.booleans())
def test_every_prefix_of_any_pool_is_algorithm_1(method, examples, stratify):
    assert_every_prefix_is_algorithm_1(examples, method, stratify)


def assert_open_groups_differ_by_one(size_G: np.ndarray, taken_G: np.ndarray) -> None:
    open_G = taken_G < size_G
    if open_G.any():
        assert taken_G.max() <= taken_G[open_G].min() + 1


@settings(max_examples=60, deadline=None)
@given(examples=POOLS, share=st.floats(0, 1))
def test_strata_and_inside_them_clusters_differ_by_at_most_one(examples, share):
    order_N = rankings.s2l(examples, SEED, stratify=True)
    taken_N = order_N[: int(share * len(order_N))]
    stratum_N, cluster_N = examples.stratum_N, examples.cluster_N
    assert_open_groups_differ_by_one(
        np.bincount(stratum_N),
        np.bincount(stratum_N[taken_N], minlength=int(stratum_N.max(initial=0)) + 1),
    )
    for stratum in set(stratum_N.tolist()):
        own = cluster_N[stratum_N == stratum]
        taken = cluster_N[taken_N[stratum_N[taken_N] == stratum]]
        assert_open_groups_differ_by_one(
            np.bincount(own, minlength=7), np.bincount(taken, minlength=7)
        )


@settings(max_examples=60, deadline=None)
@given(
    examples=POOLS,
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=4, max_size=4),
    minimum=st.integers(0, 4),
    budget=st.integers(0, 60),
)
def test_inside_a_weighted_stratum_the_clusters_share_as_in_algorithm_1(
    examples, weights, minimum, budget
):
    quotas = Quotas(np.array(weights), np.full(4, minimum), np.full(4, len(examples.key_N) + 4))
    taken_N = rankings.s2l(examples, SEED, stratify=True, quotas=quotas)[:budget]
    shuffled = rankings.random(examples, SEED).tolist()
    for stratum in set(examples.stratum_N.tolist()):
        own = [row for row in shuffled if examples.stratum_N[row] == stratum]
        taken = [row for row in taken_N.tolist() if examples.stratum_N[row] == stratum]
        expected = algorithm_1(groups_in_order(examples.cluster_N, own), len(taken))
        assert sorted(taken) == sorted(expected)


@settings(max_examples=60, deadline=None)
@given(examples=POOLS, share=st.floats(0, 1))
def test_unexhausted_clusters_differ_by_at_most_one(examples, share):
    order_N = rankings.s2l(examples, SEED, stratify=False)
    budget = int(share * len(order_N))
    size_K = np.bincount(examples.cluster_N, minlength=7)
    taken_K = np.bincount(examples.cluster_N[order_N[:budget]], minlength=7)
    left_K = taken_K < size_K
    if left_K.any():
        # An exhausted cluster may hold the odd example too: with sizes 1 and 1, one of the two
        # is taken from whole and the other not at all.
        assert taken_K.max() <= taken_K[left_K].min() + 1


@pytest.mark.parametrize("method", methods.METHODS)
def test_another_seed_gives_another_order(method):
    examples = examples_of([(0, 0, 40), (1, 1, 60)])
    rank = methods.METHODS[method].ranking
    assert rank(examples, 1, stratify=True).tolist() != rank(examples, 2, stratify=True).tolist()


def test_every_example_is_equally_likely_to_be_drawn_from_its_cluster():
    examples = examples_of([(0, 0, 10), (0, 1, 5)])
    orders = [rankings.s2l(examples, seed, stratify=False)[:6] for seed in range(2000)]
    count_N = np.bincount(np.concatenate(orders), minlength=15)
    # Three of ten and three of five: 600 and 1200 expected, standard deviations 20 and 22.
    assert np.all(np.abs(count_N[:10] - 600) < 90)
    assert np.all(np.abs(count_N[10:] - 1200) < 100)


def test_equal_keys_stay_in_row_order():
    key_N = np.zeros(4, dtype=np.uint64)
    examples = Examples(key_N, np.zeros(4, np.int32), np.zeros(4, np.int32))
    assert rankings.s2l(examples, SEED, stratify=True).tolist() == [0, 1, 2, 3]


def test_numbers_with_gaps_rank_like_numbers_without():
    dense = examples_of([(0, 0, 3), (1, 1, 5), (1, 2, 5)])
    sparse = replace(
        dense,
        cluster_N=np.array([5, 10**9, 2**31 - 1], np.int32)[dense.cluster_N],
        stratum_N=np.array([3, 2**31 - 1], np.int32)[dense.stratum_N],
    )
    for method in methods.METHODS.values():
        expected_N = method.ranking(dense, SEED, stratify=True)
        np.testing.assert_array_equal(method.ranking(sparse, SEED, stratify=True), expected_N)


def test_examples_of_unlike_lengths_are_refused():
    key_N, label_N = np.zeros(3, np.uint64), np.zeros(3, np.int32)
    with pytest.raises(ValueError, match="one length"):
        Examples(key_N, label_N[:2], label_N)
    with pytest.raises(ValueError, match="uint64"):
        Examples(key_N.astype(np.int64), label_N, label_N)
    with pytest.raises(ValueError, match="negative"):
        Examples(key_N, label_N - 1, label_N)
    with pytest.raises(ValueError, match="one length"):
        Examples(key_N, label_N, label_N, {"last_loss": label_N[:2]})
    with pytest.raises(ValueError, match="one length"):
        Examples(key_N, label_N, label_N, inside_N=label_N[:1])
    with pytest.raises(ValueError, match="one embedding"):
        Examples(key_N, label_N, label_N, vectors={"embeddings": np.zeros((2, 4), np.float16)})


# --- methods that order by a value ---------------------------------------------------------------

VALUED = {
    "least-confidence": lambda values: -values["last_loss"],
    "middle-perplexity": lambda values: np.abs(
        values["last_loss"] - np.median(values["last_loss"])
    ),
    "quantile-perplexity": lambda values: np.array(
        [
            abs(
                sum((other < loss) + 0.5 * (other == loss) for other in values["last_loss"])
                / len(values["last_loss"])
                - QUANTILE
            )
            for loss in values["last_loss"]
        ]
    ),
    "high-learnability": lambda values: -values["loss_drop"],
    "ambiguous": lambda values: -values["variability"],
    "ifd": lambda values: np.array(
        [-value if value < 1 else value for value in values["ifd"].tolist()]
    ),
    "score": lambda values: values["score"],
    "confidence-curriculum": lambda values: -values["confidence"],
    "longest-responses": lambda values: -values["response_tokens"],
    "el2n": lambda values: -values["error_norm"],
}


def test_every_method_that_looks_at_values_is_checked_here():
    assert set(VALUED) == {name for name, method in methods.METHODS.items() if method.numbers}


@pytest.mark.parametrize("method", VALUED)
@settings(max_examples=40, deadline=None)
@given(examples=POOLS)
def test_a_method_takes_examples_by_its_value_and_equal_ones_by_hash(method, examples):
    order_N = methods.METHODS[method].ranking(examples, SEED, stratify=False)
    place_N = np.argsort(rankings.random(examples, SEED))
    value_N = VALUED[method](examples.numbers) if len(place_N) else place_N
    expected = sorted(range(len(place_N)), key=lambda row: (value_N[row], place_N[row]))
    assert order_N.tolist() == expected


@pytest.mark.parametrize("method", VALUED)
@settings(max_examples=40, deadline=None)
@given(examples=POOLS)
def test_a_stratified_method_takes_its_own_order_evenly_from_strata(method, examples):
    rank = methods.METHODS[method].ranking
    order_N = rank(examples, SEED, stratify=True)
    strata = groups_in_order(examples.stratum_N, rank(examples, SEED, stratify=False).tolist())
    for budget in range(len(order_N) + 1):
        assert sorted(order_N[:budget].tolist()) == sorted(algorithm_1(strata, budget))


def test_middle_perplexity_is_symmetric_about_the_median():
    examples = replace(
        examples_of([(0, 0, 5)]),
        numbers={"last_loss": np.array([9.0, 1.0, 2.0, 2.5, 0.0], np.float32)},
    )
    order_N = rankings.middle_perplexity(examples, SEED, stratify=False)
    # Distances from 2: 7, 1, 0, 0.5, 2.
    assert order_N.tolist() == [2, 3, 1, 4, 0]


@settings(max_examples=60, deadline=None)
@given(examples=POOLS, stratify=st.booleans())
def test_the_order_inside_a_cluster_changes_which_and_not_how_many(examples, stratify):
    inside_N = (hashing.mixed(examples.key_N, 9) % np.uint64(3)).astype(np.float32)
    ordered = replace(examples, inside_N=inside_N)
    at_random_N = rankings.s2l(examples, SEED, stratify=stratify)
    order_N = rankings.s2l(ordered, SEED, stratify=stratify)

    for labels in [examples.cluster_N, *([examples.stratum_N] if stratify else [])]:
        np.testing.assert_array_equal(labels[order_N], labels[at_random_N])
    place_N = np.argsort(rankings.random(examples, SEED))
    for stratum, cluster in set(
        zip(examples.stratum_N.tolist(), examples.cluster_N.tolist(), strict=True)
    ):
        own = [
            row
            for row in order_N.tolist()
            if examples.cluster_N[row] == cluster
            and (not stratify or examples.stratum_N[row] == stratum)
        ]
        assert own == sorted(own, key=lambda row: (inside_N[row], place_N[row]))


def test_a_constant_inside_clusters_is_the_order_at_random():
    examples = examples_of([(0, 0, 7), (1, 1, 3), (1, 2, 5)])
    same = replace(examples, inside_N=np.ones(15, np.float32))
    for stratify in (True, False):
        np.testing.assert_array_equal(
            rankings.s2l(same, SEED, stratify=stratify),
            rankings.s2l(examples, SEED, stratify=stratify),
        )
