"""Budgets: examples, fractions and tokens, and the longest prefix that tokens allow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ray.config import budgets
from s2l_ray.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("budget", "num_rows", "expected"),
    [
        (5, 10, 5),
        (10, 10, 10),
        (1, 10, 1),
        (1.0, 10, 10),
        (0.11, 100, 11),
        (0.29, 100, 29),
        (0.5, 7, 3),
        (0.001, 10, 1),
        (0.11, 262_039, 28_824),
        (0.3, 100_000_000, 30_000_000),
    ],
)
def test_a_budget_is_a_count_or_a_fraction_rounded_down(budget, num_rows, expected):
    assert budgets.budget_rows(budget, num_rows) == expected


@pytest.mark.parametrize("budget", [0, -3, 0.0, -0.5, 1.5, 50_000.0, float("nan"), True])
def test_a_budget_that_no_pool_satisfies_is_refused(budget):
    with pytest.raises(ConfigError, match=r"pool: 1,000 examples.*a fraction above 0"):
        budgets.budget_rows(budget, 1000)


@pytest.mark.parametrize(("budget", "num_rows"), [(1001, 1000), (1, 0), (0.5, 0)])
def test_a_budget_above_the_pool_is_refused_with_both_numbers(budget, num_rows):
    with pytest.raises(DataError, match=rf"budget .* more than the pool of {num_rows:,} examples"):
        budgets.budget_rows(budget, num_rows)


@pytest.mark.parametrize(
    ("text", "tokens", "spelled"),
    [
        ("20M tokens", 20_000_000, "20M tokens"),
        ("20000 tokens", 20_000, "20K tokens"),
        ("20_000tokens", 20_000, "20K tokens"),
        (" 1.5b Tokens ", 1_500_000_000, "1.5B tokens"),
        ("1500M tokens", 1_500_000_000, "1.5B tokens"),
        ("0.25M tokens", 250_000, "250K tokens"),
        ("1234 tokens", 1_234, "1234 tokens"),
        ("1 token", 1, "1 tokens"),
        ("999 tokens", 999, "999 tokens"),
        ("12345678901 tokens", 12_345_678_901, "12345678901 tokens"),
    ],
)
def test_tokens_are_read_exactly_and_have_one_spelling(text, tokens, spelled):
    assert budgets.num_tokens(text) == tokens
    assert budgets.checked(text) == spelled
    assert budgets.slug(spelled) == spelled.replace(" ", "-")


@given(tokens=st.integers(1, 10**13))
def test_a_spelling_means_what_it_was_made_of(tokens):
    spelled = budgets.checked(f"{tokens} tokens")
    assert budgets.num_tokens(spelled) == tokens
    assert budgets.checked(spelled) == spelled


@pytest.mark.parametrize(
    "text", ["20M", "tokens", "-5 tokens", "5 K", "1e6 tokens", "5T tokens", ""]
)
def test_a_text_that_is_no_number_of_tokens_is_refused(text):
    with pytest.raises(ValueError, match=r"is no budget: give .*tokens \(20M tokens\)"):
        budgets.checked(text)


@pytest.mark.parametrize("text", ["0 tokens", "0.5 tokens", "1.0001K tokens"])
def test_tokens_are_whole_and_above_zero(text):
    with pytest.raises(ValueError, match="a whole number of them above zero"):
        budgets.checked(text)


def test_examples_and_fractions_count_no_tokens():
    assert budgets.num_tokens(5) is budgets.num_tokens(0.5) is None
    assert [budgets.slug(budget) for budget in (50_000, 0.11, 1.0)] == ["50000", "0.11", "1.0"]


TOKENS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@settings(max_examples=200)
@given(num_tokens=TOKENS, share=st.floats(0, 1))
def test_a_budget_of_tokens_takes_the_longest_prefix_within_it(num_tokens, share):
    budget = max(num_tokens[0], int(share * sum(num_tokens)))
    taken = budgets.rows_within(f"{budget} tokens", np.array(num_tokens, np.int32))

    prefixes = [n for n in range(len(num_tokens) + 1) if sum(num_tokens[:n]) <= budget]
    assert taken == prefixes[-1]


@settings(max_examples=100)
@given(num_tokens=TOKENS)
def test_subsets_of_growing_budgets_of_tokens_are_nested_and_end_with_the_pool(num_tokens):
    total = sum(num_tokens)
    counts = [
        budgets.rows_within(f"{budget} tokens", np.array(num_tokens, np.int32))
        for budget in range(num_tokens[0], total + 1)
    ]
    assert counts == sorted(counts)
    assert counts[-1] == len(num_tokens)


def test_more_tokens_than_a_32_bit_integer_holds_are_added_up():
    num_tokens_R = np.full(5, 2**30, np.int32)
    assert budgets.rows_within("4B tokens", num_tokens_R) == 3


def test_more_tokens_than_the_pool_has_are_refused_with_both_numbers():
    with pytest.raises(DataError, match=r"7 tokens is more than the pool of 2 .*\(6 tokens\)"):
        budgets.rows_within("7 tokens", np.array([3, 3]))
    with pytest.raises(DataError, match=r"more than the pool of 0 examples"):
        budgets.rows_within("7 tokens", np.array([], np.int32))


def test_a_budget_below_the_first_example_is_refused():
    with pytest.raises(DataError, match=r"first example of the ranking alone has 3"):
        budgets.rows_within("2 tokens", np.array([3, 1]))
