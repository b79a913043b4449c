"""How often are answers judged wrong? By the program, and by math-verify alone.

    python benchmarks/answers.py
    python benchmarks/answers.py --rows ../shared/data/math-mix/*.jsonl

The first counts errors on the two tables of tests/evaluation that were written by hand. The second
counts published solutions (the field `output`) whose final answer is not the published one
(`answer`).
"""

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path

from math_verify import (
    ExprExtractionConfig,
    LatexExtractionConfig,
    StringExtractionConfig,
    parse,
    verify,
)

from s2l_ray.evaluation.answers import equal, extract

TABLES = Path(__file__).parent.parent / "tests" / "evaluation"
STRINGS = {"choice": tuple("ABCDE"), "text": ("yes", "no", "true", "false")}
Judge = Callable[[str, str, str], bool]


def by_program(kind: str, gold: str, completion: str) -> bool:
    """Judge as the stage `evaluation` does."""
    return equal(extract(completion), gold)


def by_math_verify(kind: str, gold: str, completion: str) -> bool:
    """Judge by math-verify's own rules; letters and yes or no are strings where they are asked."""
    rules = [LatexExtractionConfig(), ExprExtractionConfig()]
    if kind in STRINGS:
        rules.append(StringExtractionConfig(strings=STRINGS[kind]))
    found, in_latex = parse(completion, rules), parse(f"${gold}$", rules)
    return verify(parse(gold, rules) or in_latex, found) or verify(in_latex, found)


def count(name: str, judge: Judge) -> None:
    lines = (TABLES / name).read_text(encoding="utf-8").splitlines()
    cases = [line.split(" ¦ ", 3) for line in lines if line and not line.startswith("#")]
    false_right = false_wrong = 0
    for expected, kind, gold, completion in cases:
        said = judge(kind.strip("?"), gold, completion.replace("⏎", "\n"))
        false_right += said and expected == "wrong"
        false_wrong += not said and expected == "right"
    rate = (false_right + false_wrong) / len(cases)
    print(
        f"{name:<28}{judge.__name__:<16}{len(cases):>5} cases, {false_right:>3} false right, "
        f"{false_wrong:>3} false wrong, {rate:.1%}"
    )


def count_rows(file: Path) -> None:
    with file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    wrong = sum(not equal(extract(row["output"]), str(row["answer"])) for row in rows)
    print(f"{file.name:<28}{len(rows):,} solutions, {wrong:,} with another answer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, nargs="*", default=[])
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    for file in given.rows:
        count_rows(file)
    if not given.rows:
        for name in ("answer_cases.txt", "answer_cases_held_out.txt"):
            count(name, by_program)
            count(name, by_math_verify)


if __name__ == "__main__":
    main()
