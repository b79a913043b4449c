"""Formulas: what is the same, and that hostile ones cost little."""

import random
import time

import pytest
import sympy

from s2l_ray.evaluation.formulas import is_readable, same_formula
from s2l_ray.evaluation.latex import cleaned

X, Y = sympy.symbols("x y")


def random_formula(source: random.Random, depth: int = 3) -> sympy.Expr:
    if depth == 0:
        return source.choice([X, Y, sympy.Integer(source.randint(1, 9))])
    left, right = random_formula(source, depth - 1), random_formula(source, depth - 1)
    return source.choice([left + right, left - right, left * right, left**2])


@pytest.mark.parametrize("seed", range(12))
def test_a_formula_is_the_same_as_its_expansion_and_not_as_a_neighbour(seed):
    formula = random_formula(random.Random(seed), depth=2)  # noqa: S311
    expanded = sympy.expand(formula)  # the oracle
    written, same, one_more, x_more = (
        cleaned(sympy.latex(each)) for each in (formula, expanded, expanded + 1, expanded + X)
    )

    assert same_formula(written, same)
    assert not same_formula(written, one_more)
    assert not same_formula(written, x_more)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (r"\sqrt{x^2}", "|x|", True),
        (r"\sqrt{x^2}", "x", False),
        ("2^{2024}-1", "-1+2^{2024}", True),
        ("2^{2024}-1", "2^{2024}+1", False),
        (r"\sqrt{2}\cdot 2^{1000}", r"2^{1000}\cdot\sqrt{2}+1", False),
        ("0.5x", r"\frac{x}{2}", True),
        (r"\sqrt{5+2\sqrt{6}}", r"\sqrt{2}+\sqrt{3}", True),
        ("2ab", "2", False),
        ("2ab", "2ba", True),
        (r"\frac{1}{x-x}", r"\frac{1}{x-x}+1", False),
    ],
)
def test_formulas_are_compared_by_their_values(one, other, same):
    assert same_formula(one, other) is same


@pytest.mark.parametrize(
    "formula",
    [
        *("9^{9^{9^9}}", "9^9^9^9", "(9^{99})^{99}", "((((9^9)^9)^9)^9)^9", "10^{9999}"),
        *("1000!", "500!^{4000}", "(5!)!", "5!!", r"\binom{10^9}{5}", r"\binom{n}{5}"),
        *("(x^{3000}+1)^{3000}", "x^{99*99*99*99}", r"e^{e^{e^{x}}}", r"\exp(\exp(\exp(9)))"),
        *(r"\sin(10^{3000})", "(" * 30 + "x" + ")" * 30, "|" * 50 + "x", "-" * 100 + "x"),
        *(r"\sum_{i=1}^{9} i", r"\int_0^1 x", "__import__('os')", "x" * 1_000, "1" * 60),
        *("x!", "3000^y!", "9^9!"),
        *("more than x", r"\input{x}", "52_8", ""),
    ],
)
def test_what_could_be_costly_or_is_no_formula_is_not_read(formula):
    assert not is_readable(formula)
    assert not same_formula(formula, formula)


@pytest.mark.parametrize(
    "formula",
    [
        *("10^{3000}x", "500!", r"\binom{500}{250}", "2^{1500}3^{2}", "(x+1)^{3000}"),
        *(r"\frac{1}{" * 5 + "x" + "}" * 5, r"\sqrt{" * 5 + "2" + "}" * 5, r"\tan(\tan(\tan(x)))"),
        *(r"\ln(\ln(\ln(x)))", "x^x y^y", "(a+b+c+d+e)^{2999}", "0^0", r"\infty-\infty"),
        *(r"\sqrt{(x_1)^{3000}}", r"\sqrt[9]{((1/2)(999))^{x}}", r"\sqrt{997^{999}+1}"),
    ],
)
def test_the_costliest_formulas_that_are_read_take_moments(formula):
    assert is_readable(formula)
    start = time.process_time()
    same_formula(formula, f"{formula}+x")

    assert time.process_time() - start < 5
