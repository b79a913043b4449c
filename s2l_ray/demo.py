"""The demo's pool: short reasoning tasks, a few of them common and most of them rare.

The rows are generated (reasoning-gym, Apache-2.0), so nothing is downloaded, and every answer can
be checked. The frequency of a task falls like 1/rank, as in real mixtures of sources. A selector
must make sure that enough rows of the rare tasks are selected.
"""

import json
import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from s2l_ray.artifacts.manifest import open_run
from s2l_ray.errors import ConfigError
from s2l_ray.storage.location import Location

SEED = 42
NUM_TRAIN = 3_500
NUM_EVAL_PER_TASK = 10
VOCAB_SIZE = 2_048
TEMPLATE = "Question: {prompt}\nAnswer: "
Row = dict[str, str]


@dataclass(frozen=True)
class Task:
    """A generator of reasoning-gym, the sentence that its answers begin with, and its options."""

    name: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)


TASKS = (  # the most frequent first
    Task("chain_sum", "Add and subtract from left to right.", {"max_terms": 3, "max_digits": 2}),
    Task("simple_equations", "Isolate the unknown.", {"max_terms": 2, "max_value": 20}),
    Task(
        "calendar_arithmetic",
        "The weekdays repeat every seven days.",
        {"tasks": ["weekday_offset", "weekday_of_date", "is_leap_year"]},
    ),
    Task("products", "Multiply digit by digit and add up.", {"max_digits": 2}),
    Task("gcd", "Look for the largest number that divides both.", {"max_value": 100}),
    Task(
        "letter_counting", "Go through the text letter by letter.", {"max_words": 6, "min_words": 3}
    ),
    Task("complex_arithmetic", "Real and imaginary parts are kept apart."),
    Task("spell_backward", "Read the letters from the last to the first.", {"max_word_len": 5}),
    Task(
        "fraction_simplification",
        "Divide top and bottom by what they share.",
        {"max_value": 20, "max_factor": 9, "styles": ("plain",)},
    ),
    Task("basic_arithmetic", "Work out the brackets first.", {"max_terms": 3, "max_digits": 2}),
    Task("family_relationships", "Draw the family tree.", {"max_family_size": 4}),
    Task(
        "leg_counting",
        "Each kind has its own number of legs.",
        {"min_animals": 2, "max_animals": 2, "max_instances": 5},
    ),
    Task(
        "time_intervals",
        "Take the start from the end.",
        {"task_types": ["time"], "max_time_difference_seconds": 7_200},
    ),
    Task("syllogism", "Picture the groups as circles."),
    Task(
        "number_sequence",
        "Find the rule behind the terms.",
        {"max_terms": 6, "min_value": 0, "max_value": 20, "max_complexity": 2},
    ),
    Task("count_bits", "Write the number in base two.", {"max_n": 4_095}),
    Task("lcm", "Look for the first multiple of both.", {"max_value": 30}),
    Task("simple_geometry", "The angles have a fixed sum.", {"max_sides": 4}),
    Task("prime_factorization", "Split off small primes one by one.", {"max_value": 400}),
    Task("aiw", "Count the person in the question too."),
    Task("decimal_chain_sum", "Line up the points.", {"max_terms": 2, "max_digits": 1}),
    Task("coin_flip", "Every sequence of sides is equally likely."),
    Task("count_primes", "Cross out all multiples.", {"max_n": 100}),
    Task("base_conversion", "Go through powers of the base.", {"max_base": 10, "max_value": 100}),
)


EXPLANATION = """\
The pool has {rows:,} rows; a few tasks are common and most are rare. Neither S2L nor random is
told which task a row is of: S2L finds kinds of rows in the embeddings of the reference, and
clusters the losses inside each. balanced-random is told the task. Each selects 384 rows. The same
small model is trained on each subset for as many steps, with three seeds that were fixed
beforehand, and evaluated on held-out rows, as many of every task. Intervals cover other seeds and
other rows, but no other pool, and no other size of model: try your own with `s2l compare`."""


def write_inputs(folder: Path) -> Path:
    """Write the pool and the tokenizer to `folder`/inputs, once; return the configuration's path.

    Raises:
        StorageError: `folder` holds something that is not a run.
    """
    open_run(Location.of(folder))
    inputs = folder / "inputs"
    if not inputs.exists():
        made = Path(tempfile.mkdtemp(prefix=".inputs-", dir=folder))
        write_pool(made, seed=SEED)
        (made / "template.txt").write_text(TEMPLATE, encoding="utf-8")
        write_tokenizer(made / "train.jsonl", made / "tokenizer")
        made.rename(inputs)
    return Path(__file__).with_name("demo.yaml")


def overrides(folder: Path) -> list[str]:
    """Return the values for `--set` that run the demo's configuration in `folder`."""
    inputs = folder / "inputs"
    return [
        f"run_dir={json.dumps(str(folder))}",
        f"data.train={json.dumps([str(inputs / 'train.jsonl')])}",
        f"data.template={json.dumps(str(inputs / 'template.txt'))}",
        f"data.eval.tasks={json.dumps(str(inputs / 'eval.jsonl'))}",
        f"reference.model.tokenizer={json.dumps(str(inputs / 'tokenizer'))}",
        f"target.model.tokenizer={json.dumps(str(inputs / 'tokenizer'))}",
    ]


def explanation() -> str:
    """Return the text that explains what the demo compares."""
    return EXPLANATION.format(rows=sum(train_counts()))


def write_pool(directory: Path, *, seed: int) -> None:
    """Write train.jsonl and eval.jsonl to `directory`; equal seeds give equal files.

    A row has instruction, output (ending in "The answer is X."), answer, source and id. No
    instruction occurs twice, in one file or in both. eval.jsonl has the same number of rows for
    every task.

    Raises:
        ConfigError: reasoning-gym is not installed.
    """
    gym = generators()
    train: list[Row] = []
    held_out: list[Row] = []
    for rank, (task, num_train) in enumerate(zip(TASKS, train_counts(), strict=True)):
        made = rows(gym, task, seed=seed * len(TASKS) + rank)
        held_out += _numbered(islice(made, NUM_EVAL_PER_TASK), f"{task.name}-eval")
        train += _numbered(islice(made, num_train), task.name)
    random.Random(seed).shuffle(train)  # noqa: S311 - an order, not a secret
    directory.mkdir(parents=True, exist_ok=True)
    _write_jsonl(directory / "train.jsonl", train)
    _write_jsonl(directory / "eval.jsonl", held_out)


def train_counts(num_train: int = NUM_TRAIN) -> list[int]:
    """Return the rows of each task, which fall like 1/rank and add up to about `num_train`."""
    harmonic = sum(1 / rank for rank in range(1, len(TASKS) + 1))
    return [round(num_train / harmonic / rank) for rank in range(1, len(TASKS) + 1)]


def write_tokenizer(train: Path, directory: Path, *, vocab_size: int = VOCAB_SIZE) -> None:
    """Train a tokenizer on the rows of `train` as TEMPLATE renders them; save it to `directory`."""
    from s2l_ray.models.tokenizers import train_tokenizer

    train_tokenizer(_rendered(train), vocab_size).save_pretrained(str(directory))


def generators() -> ModuleType:
    try:
        import reasoning_gym
    except ImportError:
        raise ConfigError(
            "the demo generates its rows with reasoning-gym, which is not installed. "
            'Run `pip install "s2l-ray[demo]"`.'
        ) from None
    return reasoning_gym


def rows(gym: ModuleType, task: Task, *, seed: int) -> Iterator[Row]:
    """Yield rows of one task without end, each instruction once."""
    seen = set()
    # The generator draws row i from seed + i. Seeds are far apart, so that no two share rows.
    items = gym.create_dataset(task.name, seed=seed * 1_000_000, size=1_000_000, **task.options)
    for item in items:
        instruction, answer = item["question"].strip(), str(item["answer"])
        if instruction not in seen:
            seen.add(instruction)
            output = f"{task.method} The answer is {answer}.".strip()
            yield {
                "instruction": instruction,
                "output": output,
                "answer": answer,
                "source": task.name,
            }


def _numbered(rows: Iterable[Row], prefix: str) -> list[Row]:
    return [{**row, "id": f"{prefix}-{number:04d}"} for number, row in enumerate(rows)]


def _write_jsonl(path: Path, rows: Sequence[Row]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")


def _rendered(train: Path) -> Iterator[str]:
    with train.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield TEMPLATE.replace("{prompt}", row["instruction"]) + row["output"]
