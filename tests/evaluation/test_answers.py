"""Answers as people and models write them."""

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ray.evaluation.answers import equal, extract

MATH_MIX = Path(
    os.environ.get("S2L_MATH_MIX", Path(__file__).parents[3] / "shared" / "data" / "math-mix")
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So $x = \boxed{\frac{1}{2}}$. The answer is 9.", r"\frac{1}{2}"),
        (r"\boxed{1} or rather $\boxed{ \left\{ 2 \right\} }$", r"\left\{ 2 \right\}"),
        (r"\boxed{1} and then cut off \boxed{\frac{2", "1"),
        (r"\boxed{} The answer is 3.", "3"),
        (r"Hence \fbox{4}, no: \boxed 5.", "5"),
        ("She makes 9 * 2 = $18.\nThe answer is 18.", "18"),
        ("The answer is 3.\nNo, the final answer is 4.", "4"),
        ("The answer is **5**.", "5"),
        ("The final answer is: $\\frac{3}{4}$.", r"\frac{3}{4}"),
        ("The answer is\n\n42", "42"),
        ("The answer is 5.5.", "5.5"),
        ("The answer is $18 per day.", "$18 per day"),
        ("The answer is 3 + 4 = 7.", "7"),
        ("The answer to the question is 7", "7"),
        ("The answer is 5. Note that 6 is wrong.", "5"),
        ("The answer is 18 dollars because she sells nine eggs for two each.", "18 dollars"),
        ("16 - 3 = 13\n#### 1,200", "1,200"),
        ("ANSWER: -3", "-3"),
        ("Answer: a line", "a line"),
        ("The answer is (B) 12 cm.", "(B) 12 cm"),
        ("The answer is B", "B"),
        ("the correct answer is a .", "a"),
        ("x = 17 hr answer : option d", "d"),
        ("= 270 . answer d", "d"),
        ("= 36 km / hr option b", "b"),
        ("the answer is 1050 ( e )", "e"),
        ("Therefore (C).", "C"),
        ("It is long.\nB) 12 cm", "B) 12 cm"),
        ("B", "B"),
        ("x^2 + 3x", "x^2 + 3x"),
        (r"\frac{1}{2}\pi", r"\frac{1}{2}\pi"),
        ("5 + 3 = 8", "8"),
        ("She has 5 apples.\nI hope that helps!", "5"),
        ("It is 3-4 so -7", "-7"),
        ("Now 1,234.5 are left, which is all", "1,234.5"),
        (r"He ate \frac{3}{4} of the cake", r"\frac{3}{4}"),
        ("Evelyn", "Evelyn"),
        ("No acute findings.\nNormal heart.", "Normal heart."),
    ],
)
def test_the_final_answer_is_found(text, answer):
    assert extract(text) == answer


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_a_text_without_content_has_no_answer(text):
    assert extract(text) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("18", "18.0"),
        ("18.", "18"),
        ("70,000", "70000"),
        ("1,234,567.5", "1234567.5"),
        (r"10,\!000", "10000"),
        ("$5", "5 dollars"),
        (r"\$32,348", "32348"),
        ("12 cm", "12"),
        ("12cm", "12 cm"),
        (r"12 \text{ cm}^2", "12"),
        ("1 hours", "1 hour"),
        ("45 miles per hour", "45"),
        (r"90^\circ", "90 degrees"),
        (r"90^{\circ}", "90"),
        ("5%", "5"),
        (r"50\%", "0.5"),
        ("50 percent", "50%"),
        ("1/2", "0.5"),
        (r"\frac{1}{2}", "1/2"),
        (r"\dfrac12", r"\tfrac{1}{2}"),
        (r"\frac 34", "0.75"),
        (r"-\frac{1}{2}", "-0.5"),
        (r"\frac{-1}{2}", "-1/2"),
        ("1 1/2", "1.5"),
        (r"1\frac{1}{2}", r"\frac{3}{2}"),
        ("0.333333", "1/3"),
        (".5", "0.5"),
        ("\u22125", "-5"),
        ("3 million", "3000000"),
        (r"3 \times 10^8", "300000000"),
        ("1e3", "1000"),
        ("x=5", "5"),
        ("y = 2x + 3", "2x+3"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)"),
        (r"\left(\frac12, 0.5\right)", "(1/2,1/2)"),
        ("1,-2", "-2, 1"),
        ("3 and 5", "5, 3"),
        (r"\{1, 2\}", r"\left\{2,1\right\}"),
        (r"3\sqrt{13}", r"3 \sqrt {13}"),
        (r"11\sqrt2", r"11\sqrt{2}"),
        (r"\frac{\sqrt3}{2}", r"\sqrt{3}/2"),
        (r"\frac{x+1}{2}", "(x+1)/2"),
        ("x^{2} + 1", "$x^2+1$"),
        (r"6 - 5i", "6-5i"),
        ("52_8", "52_{8}"),
        (r"\text{Evelyn}", "evelyn"),
        (r"2\pi", r"2 \pi"),
        (r"(-\infty, 0]", r"\left(-\infty,0\right]"),
        ("(B)", "b"),
        ("B) 12 cm", "B"),
        ("option d", "(D)"),
        (r"\textbf{(A)}", "A"),
        ("1/0", "1/0"),
        ("x + y = 3", "y = 3 - x"),
        ("2 < x", "x > 2"),
        ("1 < x < 3", "3 > x > 1"),
        (r"(x+1)^2 \ge 0", r"0 \le x^2+2x+1"),
        ("one hundred and five", "105"),
        ("minus two thousand", "-2,000"),
        ("a third", "1/3"),
    ],
)
def test_two_ways_to_write_an_answer_are_equal(one, other):
    assert equal(one, other)
    assert equal(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5", "-5"),
        ("1 1/2", "11/2"),
        ("0.33", "1/3"),
        ("1.00001", "1"),
        ("5%", "0.5"),
        ("12 cm", "12 km"),
        ("5x", "5"),
        ("2 x", "2"),
        ("5 pi", "5"),
        (r"5\pi", "5"),
        ("52_8", "52"),
        ("5i", "5"),
        ("3 apples and 4 pears", "3"),
        ("(1,2)", "(2,1)"),
        ("[0,1)", "(0,1)"),
        ("1,2", "1,2,2"),
        ("1,1,2", "1,2,2"),
        ("x=1", "y=1"),
        ("x^2", "x2"),
        ("A", "B"),
        ("five", "15"),
        ("1/0", "2/0"),
        ("x + y = 3", "y = 3 + x"),
        ("1 < x < 3", "1 < x < 4"),
        ("one and two", "3"),
        ("twenty one hundred", "21"),
        (r"\sqrt{3}", "3"),
        ("", ""),
        ("$", ""),
    ],
)
def test_different_answers_are_different(one, other):
    assert not equal(one, other)
    assert not equal(other, one)


@pytest.mark.parametrize("other", [None, "", "5", "None"])
def test_nothing_is_equal_to_no_answer(other):
    assert not equal(None, other)
    assert not equal(other, None)


@given(top=st.integers(-999, 999), bottom=st.integers(1, 999))
def test_a_fraction_is_equal_to_every_way_of_writing_it_and_to_no_neighbour(top, bottom):
    written = [f"{top}/{bottom}", rf"\frac{{{top}}}{{{bottom}}}", f"{2 * top} / {2 * bottom}"]

    assert all(equal(one, other) for one in written for other in [*written, str(top / bottom)])
    assert not equal(written[0], f"{top + 1}/{bottom}")


@given(value=st.integers(-(10**12), 10**12))
def test_an_announced_number_comes_back(value):
    assert equal(extract(f"First 7, then 8.\nThe answer is {value:,}."), str(value))


@given(st.text(alphabet="\\{}()[]frac boxed$%,.=0123456789answer:AB\n", max_size=60))
def test_no_text_is_too_strange(text):
    answer = extract(text)

    assert answer is None or answer.strip()
    assert isinstance(equal(answer, text), bool)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "{" * 100_000,
            r"\boxed{" * 20_000,
            r"\frac{" * 20_000,
            "answer " * 20_000,
            "1" * 100_000,
        ),
        *(",123" * 30_000, "(" * 100_000, "answer" + " " * 100_000, "1/" * 50_000, "-" * 100_000),
        *("1" + " " * 100_000 + "a", "1e999999999", "9^9^9^9^9^9", "(" * 490 + ")" * 490),
    ],
)
def test_hostile_text_costs_little(text):
    start = time.perf_counter()
    extract(text)
    equal(text, text + "1")
    equal(text[:999], text[:998] + "z")

    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("name", ["gsm8k", "math500", "svamp"])
def test_the_answer_of_every_published_solution_is_found(name):
    path = MATH_MIX / f"eval_{name}.jsonl"
    if not path.exists():
        pytest.skip(f"needs {path.name} of the math-mix data (S2L_MATH_MIX names its folder)")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    missed = [row["answer"] for row in rows if not equal(extract(row["output"]), row["answer"])]

    assert not missed
