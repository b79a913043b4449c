"""Completions that are programs, without a sandbox."""

import pytest

from s2l_ray.evaluation.program_texts import program
from s2l_ray.evaluation.programs import Reading, readings

BARE = """num_eggs = 16
eaten = 2
result = num_eggs - eaten
print(result)"""
FENCED = f"Let us compute.\n```python\n{BARE}\n```\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (BARE, BARE),
        (f"import math\n{BARE}", f"import math\n{BARE}"),
        (FENCED, f"{BARE}\n"),
        (f"```\n{BARE}\n```", f"{BARE}\n"),
        (f"```python\n{BARE}", BARE),  # cut off
        (f"Here it is:\n{BARE}", BARE),
        ("from sympy import *\nx = symbols('x')", "from sympy import *\nx = symbols('x')"),
        ("def f(x):\n    return 2", "def f(x):\n    return 2"),
        ("# 3 eggs\nprint(3)", "# 3 eggs\nprint(3)"),
    ],
)
def test_a_program_is_found(text, code):
    found = program(text)

    assert found is not None
    assert found.code == code


@pytest.mark.parametrize(
    "text",
    [
        "x = 5",
        "x = 5\ny = 6\nThe answer is 11.",
        "The answer is 5.",
        "We import 5 apples from Spain and print the bill.",
        "```\n42\n```",
        "from 3 to 5",
        "",
    ],
)
def test_a_text_is_no_program(text):
    assert program(text) is None


@pytest.mark.parametrize("text", [BARE, FENCED, BARE.replace("print(result)", "print(res")])
def test_no_number_is_read_in_the_code_of_a_program(text):
    assert readings([text], run=False, at_once=1) == [Reading(None, "not run")]


def test_what_is_announced_beside_the_code_is_the_answer():
    text = f"{FENCED}\nThe answer is 14."

    assert readings([text], run=False, at_once=1) == [Reading("14", "not run")]


def test_texts_keep_their_places_among_programs():
    read = readings(["The answer is 3.", BARE, "4", BARE, ""], run=False, at_once=2)

    assert [reading.answer for reading in read] == ["3", None, "4", None, None]
    assert [reading.program for reading in read] == [None, "not run", None, "not run", None]
