"""Two tables of completions, written by hand: which of them give the right answer."""

from pathlib import Path

import pytest

from s2l_ray.evaluation.answers import equal, extract

FOLDER = Path(__file__).parent
KNOWN = {
    "answer_cases.txt": {
        "right ¦ place? ¦ 5 ¦ The answer is between 4 and 6, so 5.",
        "right ¦ separators? ¦ 3.5 ¦ Die Antwort ist 3,5.",
        "right ¦ fraction? ¦ 0.33 ¦ The answer is 1/3, about 0.33.",
        "right ¦ ratio? ¦ 3:5 ¦ 6:10",
    },
    "answer_cases_held_out.txt": set(),
}
"""Cases that come out otherwise than the table expects."""


def cases(name: str) -> list[str]:
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def comes_out_as_expected(case: str) -> bool:
    expected, _, gold, completion = case.split(" ¦ ", 3)
    assert expected in ("right", "wrong")
    return equal(extract(completion.replace("⏎", "\n")), gold) == (expected == "right")


@pytest.mark.parametrize("name", KNOWN)
def test_exactly_the_known_cases_come_out_otherwise(name):
    assert {case for case in cases(name) if not comes_out_as_expected(case)} == KNOWN[name]


def test_the_tables_are_as_large_as_the_documentation_says():
    assert [len(cases(name)) for name in KNOWN] == [431, 90]


@pytest.mark.parametrize("name", KNOWN)
def test_no_case_stands_twice(name):
    assert len(set(cases(name))) == len(cases(name))
