"""Generate a skewed pool for `s2l compare`: 60 reasoning tasks, frequencies like 1/rank.

    python benchmarks/skewed_pool.py --out runs/skewed/inputs
    python benchmarks/skewed_pool.py --out runs/planted/inputs --wrong 0.1 --repeated 0.1
    s2l compare configs/evidence/skewed.yaml

The first 24 tasks are those of the demo. With `--wrong`, that share of the rows has the answer of
another row of its task; with `--repeated`, that share are rows that occur before with another id.
The field `planted` says which; nothing else reads it. Held-out rows are all right, and as many of
every task. Equal arguments give equal files.
"""

import argparse
import json
import random
from itertools import islice
from pathlib import Path

from s2l_ray import demo
from s2l_ray.demo import TASKS, Task

MORE = (
    "sentence_reordering", "decimal_arithmetic", "number_filtering", "caesar_cipher",
    "word_sequence_reversal", "power_function", "number_format", "dice", "bitwise_arithmetic",
    "ransom_note", "maze", "cryptarithm", "rotate_matrix", "gsm_symbolic", "graph_color",
    "isomorphic_strings", "survo", "color_cube_rotation", "word_sorting", "palindrome_generation",
    "mini_sudoku", "course_schedule", "manipulate_matrix", "rush_hour", "knights_knaves",
    "binary_alternation", "number_sorting", "simple_integration", "largest_island",
    "binary_matrix", "tsumego", "propositional_logic", "polynomial_multiplication",
    "letter_jumble", "list_functions", "self_reference",
)  # fmt: skip
"""Generators with short rows, without options."""
HELD_OUT_PER_TASK = 6
MOST_CHARACTERS = 700
"""Rows above this length are left out: small models read few tokens."""


def tasks() -> list[Task]:
    """Return all tasks, the most frequent first: those of the demo and the others take turns."""
    others = [Task(name, "") for name in MORE]
    mixed = [task for pair in zip(TASKS, others, strict=False) for task in pair]
    return [*mixed, *others[len(TASKS) :]]


def counts(num_rows: int, num_tasks: int) -> list[int]:
    """Return the rows of each task, which fall like 1/rank and add up to about `num_rows`."""
    harmonic = sum(1 / rank for rank in range(1, num_tasks + 1))
    return [max(round(num_rows / harmonic / rank), 2) for rank in range(1, num_tasks + 1)]


def write(out: Path, *, num_rows: int, wrong: float, repeated: float, seed: int) -> None:
    """Write train.jsonl, eval.jsonl, template.txt and a tokenizer to `out`."""
    gym, chance = demo.generators(), random.Random(seed)  # noqa: S311 - no secret
    train, held_out = [], []
    for place, (task, number) in enumerate(zip(tasks(), counts(num_rows, 60), strict=True)):
        made = demo.rows(gym, task, seed=seed * 1000 + place)
        short = (row for row in made if len(row["instruction"] + row["output"]) < MOST_CHARACTERS)
        held_out += _numbered(islice(short, HELD_OUT_PER_TASK), f"{task.name}-eval")
        train += _planted(_numbered(islice(short, number), task.name), wrong, repeated, chance)
    chance.shuffle(train)
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("eval", held_out)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (out / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")
    (out / "template.txt").write_text(demo.TEMPLATE, encoding="utf-8")
    demo.write_tokenizer(out / "train.jsonl", out / "tokenizer", vocab_size=4_096)
    print(f"{len(train):,} rows for training, {len(held_out):,} held out, in {out}")


def _numbered(rows, prefix: str) -> list[dict]:
    return [
        {**row, "id": f"{prefix}-{number:05d}", "planted": ""} for number, row in enumerate(rows)
    ]


def _planted(rows: list[dict], wrong: float, repeated: float, chance: random.Random) -> list[dict]:
    """Return the rows of one task, some with wrong answers, some in the place of repetitions."""
    made = []
    for place, row in enumerate(rows):
        draw = chance.random()
        other = rows[chance.randrange(len(rows))]
        if draw < wrong and other["answer"] != row["answer"]:
            row = {**row, "output": other["output"], "answer": other["answer"], "planted": "wrong"}
        elif wrong <= draw < wrong + repeated and place:
            earlier = made[chance.randrange(place)]
            row = {**earlier, "id": row["id"], "planted": "repeated"}
        made.append(row)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--wrong", type=float, default=0.0)
    parser.add_argument("--repeated", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    write(
        given.out,
        num_rows=given.rows,
        wrong=given.wrong,
        repeated=given.repeated,
        seed=given.seed,
    )


if __name__ == "__main__":
    main()
