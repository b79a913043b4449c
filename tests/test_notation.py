"""Large numbers in print, wherever they are printed."""

import re
from pathlib import Path

import pytest

from s2l_ray import notation
from s2l_ray.report import numbers


@pytest.mark.parametrize(
    ("operations", "text"),
    [
        (0, "0 FLOP"),
        (999, "999 FLOP"),
        (999.6, "1 kFLOP"),
        (83.6e9, "83.6 GFLOP"),
        (1.26e12, "1.26 TFLOP"),
        (1.234e15, "1.23 PFLOP"),
        (5e22, "50 ZFLOP"),
        (5e25, "5e+04 ZFLOP"),
    ],
)
def test_operations_have_three_digits_and_a_prefix(operations, text):
    assert notation.flops(operations) == text


def test_counts_of_the_report_have_the_same_prefixes():
    assert numbers.power(1.26e12) == notation.with_prefix(1.26e12) == "1.26 T"


def test_no_other_module_writes_operations_in_a_notation_of_its_own():
    package = Path(notation.__file__).parent
    others = [file for file in package.rglob("*.py") if file.name != "notation.py"]
    own = re.compile(r"\{[^{}]*(?<!t)flops[^{}]*:[^{}]*[eg]\}|\}[kMGTPEZ]?FLOP")

    assert [str(file) for file in others if own.search(file.read_text(encoding="utf-8"))] == []
