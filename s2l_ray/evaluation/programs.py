"""Completions that are programs: counted, or run for what they print.

No number is read in the code of a program.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

from s2l_ray.evaluation import sandbox
from s2l_ray.evaluation.final_answers import extract, stated
from s2l_ray.evaluation.program_texts import Program, program

Fate = Literal["not run", "ran", "failed", "too long"]


class Reading(NamedTuple):
    """The final answer of a text, and what became of its program; None if it has none."""

    answer: str | None
    program: Fate | None


def readings(texts: Sequence[str], *, run: bool, at_once: int) -> list[Reading]:
    """Return the final answer of every text.

    The answer of a program is the final answer in what it prints; of one that is not run, fails or
    prints nothing, it is what the words beside the code announce.

    Args:
        run: whether programs are run, in a sandbox.
        at_once: most programs that run at the same time.

    Raises:
        ConfigError: programs cannot be run apart from this machine.
    """
    found = [program(text) for text in texts]
    programs = [each for each in found if each is not None]
    with ThreadPoolExecutor(at_once) as pool:
        read = iter(list(pool.map(_run if run else _left, programs)))
    return [
        Reading(extract(text), None) if each is None else next(read)
        for text, each in zip(texts, found, strict=True)
    ]


def _left(program: Program) -> Reading:
    return Reading(stated(program.words), "not run")


def _run(program: Program) -> Reading:
    result = sandbox.run(program.code)
    printed = extract(result.output) if result.outcome == "ran" else None
    return Reading(printed or stated(program.words), result.outcome)
